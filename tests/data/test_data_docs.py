"""docs/data.md names every source, with its splits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dynpix_jax.data.sources import SOURCES

ROOT = Path(__file__).resolve().parents[2]
TABLE = (ROOT / "docs/data.md").read_text(encoding="utf-8").split("## Labels")[0]
ROWS = dict(re.findall(r"^\| `(\w+)` \|.*\| (.+) \|$", TABLE, re.MULTILINE))


def test_every_source_is_there():
    files = {
        path.stem.removesuffix("_source")
        for path in (ROOT / "dynpix_jax/data").glob("*.py")
        if re.search(r"^    splits = ", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert len(files) > 10
    assert files <= set(ROWS)


@pytest.mark.parametrize("name", [name for name in ROWS if name not in ("joint", "packed", "tfds")])
def test_splits(name):
    assert tuple(ROWS[name].split(", ")) == SOURCES.resolve(name, "name").splits
