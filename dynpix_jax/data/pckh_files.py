"""The files that PCKh is computed from, in both forms in which people hand them round.

HDF5 (.h5), as the stacked-hourglass authors publish them: truth `part` (N, 16, 2) and `normalize` (N,), the
head sizes; predictions `preds` (N, 16, 2). MATLAB (.mat), as HRNet's do: truth gt_valid.mat with `pos_gt_src`
(16, 2, N), `jnt_missing` (16, N) and `headboxes_src` (2, 2, N); predictions `preds` (N, 16, 2). All count
pixels from 1, so they fit each other.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dynpix_jax.core.errors import UserError
from dynpix_jax.data.matlab import open_v73, read_mat

FORMS = "expected .h5 with part and normalize (predictions: preds) or .mat as HRNet's gt_valid.mat (preds)"
HEAD_SHARE = 0.6
"""PCKh's head size is this share of the diagonal of the head's box."""
JOINTS = 16


def read_truth(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Joints (N, 16, 3), x, y and 1 where labelled, and head sizes (N,) of N people; float64, pixels.

    In .h5 files a joint is labelled if both of its coordinates are above 1: unlabelled ones are 0, and what
    lies outside of the image the tool that these files are for leaves out as well.

    Raises:
        UserError: Missing or corrupt file, or one without these arrays.
    """
    if path.suffix == ".mat":
        content = read_mat(path, ("pos_gt_src", "jnt_missing"), "pckh", FORMS)
        joints = np.moveaxis(_shaped(path, "pos_gt_src", content["pos_gt_src"], (JOINTS, 2, None)), 2, 0)
        missing = _shaped(path, "jnt_missing", content["jnt_missing"], (JOINTS, len(joints)))
        labelled = missing.T == 0
        sizes = head_sizes(path, "pckh", FORMS)
    else:
        with open_v73(path, ("part", "normalize"), "pckh", FORMS) as file:
            joints = _shaped(path, "part", file["part"][()], (None, JOINTS, 2))
            sizes = np.asarray(file["normalize"][()], np.float64)
        labelled = (joints > 1).all(-1)
    _shaped(path, "head sizes", sizes, (len(joints),))
    return np.concatenate([joints, labelled[..., None]], axis=-1), sizes


def read_predictions(path: Path) -> np.ndarray:
    """Joints (N, 16, 2), float64, pixels; a UserError for a broken file, or one without `preds`."""
    if path.suffix == ".mat":
        preds = read_mat(path, ("preds",), "pckh", FORMS)["preds"]
    else:
        with open_v73(path, ("preds",), "pckh", FORMS) as file:
            preds = file["preds"][()]
    found = _shaped(path, "preds", preds[..., :2], (None, JOINTS, 2))
    if not np.isfinite(found).all():
        raise UserError(f"pckh: preds in {path} has values that are not finite")
    return found


def head_sizes(path: Path, source: str, where_to_get: str) -> np.ndarray:
    """The head sizes (N,) of gt_valid.mat: 0.6 of the diagonals of the head boxes, pixels, float64."""
    boxes = read_mat(path, ("headboxes_src",), source, where_to_get)["headboxes_src"]
    boxes = _shaped(path, "headboxes_src", boxes, (2, 2, None))
    return np.asarray(HEAD_SHARE * np.linalg.norm(boxes[1] - boxes[0], axis=0))


def _shaped(path: Path, name: str, array: np.ndarray, shape: tuple[int | None, ...]) -> np.ndarray:
    """The array as float64; a UserError if it is not numbers of this shape (None: any extent)."""
    fits = array.ndim == len(shape) and all(
        want in (None, have) for want, have in zip(shape, array.shape, strict=True)
    )
    if not fits or array.dtype.kind not in "biuf":
        expected = " x ".join("N" if want is None else str(want) for want in shape)
        raise UserError(f"pckh: {name} in {path} has shape {array.shape}; expected numbers, {expected}")
    return np.asarray(array, np.float64)
