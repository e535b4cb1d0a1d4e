"""A data set that changed between the stop of a run and its continuation."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from dynpix_jax.cli import main
from dynpix_jax.core.errors import UserError
from dynpix_jax.data.contents import contents_of
from dynpix_jax.data.sources import build_source
from dynpix_jax.training.data_record import DataRecord
from tests.tiny import SHORT_CONFIG


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """BSDS500 in its layout, with three images to train on."""
    for kind in ("images", "groundTruth"):
        (tmp_path / "bsds" / kind / "train").mkdir(parents=True)
    for name in ("a", "b", "c"):
        add(tmp_path / "bsds", name, 16)
    return tmp_path / "bsds"


def add(root: Path, name: str, side: int) -> None:
    Image.new("RGB", (side, side)).save(root / "images" / "train" / f"{name}.jpg")
    cells = np.empty((1, 1), object)
    cells[0, 0] = {"Boundaries": np.zeros((side, side), np.uint8)}
    savemat(root / "groundTruth" / "train" / f"{name}.mat", {"groundTruth": cells})


def record(root: Path, *, accept: bool = False) -> DataRecord:
    source = build_source({"name": "bsds500", "root": str(root), "split": "train"})
    return DataRecord(contents_of(source), accept)


@pytest.mark.parametrize("change", ["missing", "added", "replaced"])
def test_the_first_difference_is_named(root: Path, tmp_path: Path, change: str) -> None:
    before = record(root)
    before.write(tmp_path)
    assert record(root).continue_from(before.summary, tmp_path) is None
    images = root / "images" / "train"
    if change == "missing":
        (images / "b.jpg").unlink()
        told = "3 elements then, 2 now; 'b' is missing"
    elif change == "added":
        add(root, "bb", 16)
        told = "3 elements then, 4 now; 'bb' was added"
    else:
        old, label = images / "b.jpg", (root / "groundTruth/train/b.mat").stat().st_size
        sizes = [old.stat().st_size]
        Image.effect_noise((16, 16), 99).save(old)
        sizes.append(old.stat().st_size)
        told = f"3 now; 'b' was replaced ({sizes[0]}+{label} then, {sizes[1]}+{label} now)"
    with pytest.raises(UserError, match="--accept-changed-data") as refused:
        record(root).continue_from(before.summary, tmp_path)
    assert told in str(refused.value)
    note = record(root, accept=True).continue_from(before.summary, tmp_path)
    assert note is not None
    assert told in note


def test_without_the_list_the_counts_are_told(root: Path, tmp_path: Path) -> None:
    before = record(root)
    (root / "images" / "train" / "b.jpg").unlink()
    with pytest.raises(UserError, match="3 elements then, 2 now; bring them back"):
        record(root).continue_from(before.summary, tmp_path)


def test_every_name_and_size_is_in_the_digest() -> None:
    lines = ["a\t1+2", "b\t3+4"]
    changed = (["a\t1+2"], ["a\t1+2", "b\t3+5"], ["b\t3+4", "a\t1+2"], ["a\t1+2", "c\t3+4"], [*lines, "d\t"])
    digests = {DataRecord(other).summary["sha256"] for other in (lines, *changed)}
    assert len(digests) == 6


@pytest.mark.slow
def test_a_changed_folder_is_refused_unless_it_is_accepted(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b", "c"):
        add(root, name, 48)
    scenes = f'{{"name": "bsds500", "root": {str(root)!r}}}'
    config = re.sub(r"scenes = .*", f"scenes = {scenes}", SHORT_CONFIG)
    (tmp_path / "short.py").write_text(config)
    command = ["train", f"--config={tmp_path / 'short.py'}", f"--workdir={tmp_path / 'run'}"]
    assert main.main(command) == 0
    (root / "images" / "train" / "b.jpg").unlink()
    assert main.main(command) == 2
    assert "3 elements then, 2 now; 'b' is missing" in capsys.readouterr().err
    assert main.main([*command, "--accept-changed-data"]) == 0
    assert "'b' is missing" in capsys.readouterr().out
