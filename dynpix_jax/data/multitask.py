"""What the multi-task data sets share: fields, names of a split, labels at the size of their image."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.source import FieldSpec, segmentation
from dynpix_jax.data.figure import PARTS as PART_NAMES
from dynpix_jax.data.files import need_file
from dynpix_jax.data.thin import thin
from dynpix_jax.data.voc2012 import palette

BOUNDARIES = FieldSpec("boundary", (None, None), "float32", range=(0, 1), ignore=-1)
SALIENCY = segmentation(("background", "salient"), ((0, 0, 0), (255, 255, 255)))
PARTS = segmentation(PART_NAMES, palette(len(PART_NAMES)))
ALBEDO = FieldSpec("dense", (None, None, 3), "float32", units="RGB", range=(0, 1), ignore=-1)

LEAST_LENGTH = 0.5
"""Of a stored normal: shorter ones (128, 128, 128 is nearly zero) are no direction."""


def read_names(path: Path, source: str, where_to_get: str) -> list[str]:
    """The names in a list of a split, one a line; none is a UserError."""
    lines = need_file(path, source, where_to_get).read_text(encoding="utf-8").splitlines()
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise UserError(f"{source}: no names in {path}; {where_to_get}")
    return names


def fit(label: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A label at the (H, W) of its image, by the nearest pixel; a few differ from it in the archives."""
    if label.shape[:2] == shape[:2]:
        return label
    resized: np.ndarray = cv2.resize(label, (shape[1], shape[0]), interpolation=cv2.INTER_NEAREST)
    return resized


def unit_normals(stored: np.ndarray) -> np.ndarray:
    """Normals float32 (H, W, 3) of unit length, or zero where there is none, that face the camera (z < 0).

    Args:
        stored: (H, W, 3) in [-1, 1], zero = none; the first two components as ours (x right, y down; the
            archives turn and mirror them so), z of either sign.
    """
    length = np.linalg.norm(stored, axis=-1, keepdims=True)
    normals = np.where(length > LEAST_LENGTH, stored / np.maximum(length, LEAST_LENGTH), 0.0)
    if normals[..., 2].sum() > 0:
        normals[..., 2] *= -1
    return normals.astype(np.float32)


def picture_normals(picture: np.ndarray) -> np.ndarray:
    """Components in [-1, 1] of uint8 colours: 0 is -1, 255 is 1."""
    return picture.astype(np.float32) * np.float32(2 / 255) - 1


def boundaries_between(ids: np.ndarray) -> np.ndarray:
    """Boundaries float32 (H, W) in {0, 1} of a map of ids, as ASTMT draws them: pixels with a Laplacian,
    thinned.
    """
    return thin(cv2.Laplacian(ids.astype(np.float64), cv2.CV_64F) != 0).astype(np.float32)
