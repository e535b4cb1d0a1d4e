"""`dynpix eval-pose`: published predictions and their published scores; a case by hand; mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from dynpix_jax.cli.main import main

Files = tuple[Path, Path]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Two people, head sizes 60 and 20, all joints right but three. Of the second two are not labelled."""
    joints = np.random.default_rng(0).uniform(50, 100, (2, 16, 2))
    preds = joints.copy()
    preds[0, 9, 0] += 30  # just right at 0.5
    preds[0, 12, 1] += 31
    preds[1, 6] += 500  # the pelvis: in no score of all
    joints[1, 0] = 0  # not labelled
    joints[1, 1, 1] = 1  # outside of the image
    preds[1, :2] = 999
    pred, truth = tmp_path / "preds.h5", tmp_path / "valid.h5"
    with h5py.File(pred, "w") as file:
        file["preds"] = preds
    with h5py.File(truth, "w") as file:
        file["part"], file["normalize"] = joints, np.array([60.0, 20.0])
    # The same as HRNet's files have it.
    boxes = np.zeros((2, 2, 2))
    boxes[1] = np.array([[60, 20], [80, 20 * np.sqrt(7) / 3]])
    boxes[1, :, 1] = (20, np.sqrt((20 / 0.6) ** 2 - 20**2))
    missing = np.zeros((16, 2))
    missing[:2, 1] = 1
    mat = {"pos_gt_src": np.moveaxis(joints, 0, 2), "jnt_missing": missing, "headboxes_src": boxes}
    savemat(tmp_path / "gt_valid.mat", mat)
    savemat(tmp_path / "pred.mat", {"preds": np.concatenate([preds, preds[..., :1]], -1)})
    return pred, truth


def call(files: Files, *options: str) -> int:
    return main(["eval-pose", "--pred", str(files[0]), "--gt", str(files[1]), *options])


def test_by_hand(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(files, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["people"], found["joints"]) == (2, 30)
    half, tenth, eleventh = found["scores"]
    assert eleventh["threshold"] == 0.11
    # 2 x 14 joints of all types but two, less two that are not labelled; one is wrong, at 0.1 two.
    assert half["mean"] == pytest.approx(100 * 25 / 26)
    assert tenth["mean"] == pytest.approx(100 * 24 / 26)
    assert (half["head"], half["shoulder"], tenth["head"]) == pytest.approx((100, 75, 50))
    assert (half["by_joint"]["pelvis"], half["by_joint"]["right shoulder"]) == (50, 50)
    folder = files[0].parent
    assert call((folder / "pred.mat", folder / "gt_valid.mat"), "--json") == 0
    assert json.loads(capsys.readouterr().out) == found
    assert call(files, "--threshold", "0.6") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 people, 30 labelled joints"
    assert lines[1].split() == [
        "PCKh,",
        "%",
        "all",
        "head",
        "shoulder",
        "elbow",
        "wrist",
        "hip",
        "knee",
        "ankle",
    ]
    assert lines[2].split() == ["@0.6", *["100.00"] * 8]


def test_mistakes_end_with_one_line_that_names_the_file(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    pred, truth = files

    def fails(*expected: str, options: tuple[str, ...] = ()) -> None:
        assert call(files, *options) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        for text in expected:
            assert text in error

    fails("--threshold 0", options=("--threshold", "0"))
    fails("--threshold nan", options=("--threshold", "nan"))
    with h5py.File(pred, "a") as file:
        del file["preds"]
        file["preds"] = np.zeros((3, 16, 2))
    fails("preds.h5 has 3 people", "valid.h5 2")
    with h5py.File(pred, "a") as file:
        del file["preds"]
        file["preds"] = np.zeros((2, 17, 2))
    fails("preds.h5 has shape (2, 17, 2)", "N x 16 x 2")
    with h5py.File(pred, "a") as file:
        del file["preds"]
    fails("no variable 'preds'", "preds.h5")
    pred.write_bytes(b"no file of this kind")
    fails("preds.h5")
    pred.unlink()
    fails("file not found", "preds.h5")
    with h5py.File(truth, "a") as file:
        file["part"][...] = 0
    with h5py.File(pred, "w") as file:
        file["preds"] = np.zeros((2, 16, 2))
    fails("valid.h5: no labelled joint")
    with h5py.File(pred, "a") as file:
        file["preds"][...] = np.nan
    fails("not finite", "preds.h5")


def test_published_predictions_have_the_published_scores(
    shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The annotations and predictions of a stacked hourglass network on MPII's validation people."""
    folder = shared / "data" / "mpii_pckh"
    if not folder.is_dir():
        pytest.skip(f"no such folder: {folder}")
    options = ("--json", "--threshold", "0.5", "0.11")
    assert call((folder / "valid-ours.h5", folder / "valid.h5"), *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["people"] == 2958
    scores, released = found["scores"]
    # "Mean@0.1" by the arithmetic of mpii.py of HRNet's code, the entry 11 of steps of .01.
    assert released["mean"] == pytest.approx(32.763, abs=5e-4)
    assert scores.pop("by_joint")["head top"] == scores["head"]
    assert scores.pop("threshold") == 0.5
    published = {"mean": 88.02, "head": 95.8, "shoulder": 94.7, "elbow": 88.5, "wrist": 83.4}
    published |= {"hip": 87.5, "knee": 83.1, "ankle": 79.1}
    assert scores == pytest.approx(published, abs=0.05)
