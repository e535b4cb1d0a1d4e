"""Addresses such as gs://... are refused wherever a path is given: they would become folders of that name."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynpix_jax.cli import main
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.text import local_path
from dynpix_jax.data.camvid import CamVid, CamVidConfig


@pytest.mark.parametrize("address", ["gs://bucket/run", "s3://bucket", Path("gs://bucket/run")])
def test_an_address_is_no_path(address: str | Path) -> None:
    with pytest.raises(UserError, match="not an address; mount the bucket"):
        local_path(address)


@pytest.mark.parametrize("path", ["runs/a", "/a/b:c", "C:/runs", "12:30/run", "a:", "photo:1.jpg"])
def test_other_paths_stay(path: str) -> None:
    assert local_path(path) == Path(path)


def test_commands_and_data_roots_refuse_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.main(["eval", "--workdir=runs/a", "--out=gs://bucket/run"]) == 2
    assert "gs://bucket/run: expected a path" in capsys.readouterr().err
    with pytest.raises(UserError, match="gs://bucket/camvid: expected a path"):
        CamVid(CamVidConfig(root="gs://bucket/camvid"), "train")
    assert not list(tmp_path.iterdir())
