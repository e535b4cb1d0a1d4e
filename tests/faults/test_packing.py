"""Shards that were damaged after they were packed."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from dynpix_jax.core.errors import UserError
from dynpix_jax.data.packed import MANIFEST, read_manifest, verify
from dynpix_jax.data.packing import pack
from dynpix_jax.data.sources import build_source

SECTION = {"name": "scenes", "size": (16, 16), "length": 3, "fields": ("depth",)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pack_in(tmp_path)
    return tmp_path


def pack_in(folder: Path) -> None:
    pack(build_source(SECTION, "train"), SECTION, "train", folder)


def test_a_damaged_shard_is_made_again(folder: Path) -> None:
    (shard,) = (folder / one.file for one in read_manifest(folder).shards)
    whole = shard.read_bytes()
    shard.write_bytes(whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
    with pytest.raises(UserError, match=rf"{shard.name} is damaged: its SHA-256"):
        verify(folder)
    pack_in(folder)
    assert shard.read_bytes() == whole
    verify(folder)


def test_every_flipped_bit_of_a_manifest_is_found(folder: Path) -> None:
    path = folder / MANIFEST
    text, whole = path.read_bytes(), read_manifest(folder)
    for place in range(0, len(text), 2):
        path.write_bytes(text[:place] + bytes([text[place] ^ 1 << place % 8]) + text[place + 1 :])
        with contextlib.suppress(UserError):  # found
            assert read_manifest(folder) == whole


def test_counts_that_the_shards_do_not_have(folder: Path) -> None:
    path = folder / MANIFEST
    content = json.loads(path.read_text())
    del content["checksum"]
    content["names"].append("one more")
    content["shards"][0]["count"] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"holds 3 elements, manifest\.json says 4"):
        verify(folder)
