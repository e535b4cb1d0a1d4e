"""What the multi-task data sets share: fields, names of a split, labels at the size of their image."""

from __future__ import annotations

import cv2
import numpy as np

from dynpix_jax.core.source import segmentation
from dynpix_jax.data.figure import PARTS as PART_NAMES
from dynpix_jax.data.thin import thin
from dynpix_jax.data.voc2012 import palette

SALIENCY = segmentation(("background", "salient"), ((0, 0, 0), (255, 255, 255)))
PARTS = segmentation(PART_NAMES, palette(len(PART_NAMES)))

LEAST_LENGTH = 0.5
"""Of a stored normal: shorter ones (128, 128, 128 is nearly zero) are no direction."""


def unit_normals(stored: np.ndarray, least: float = LEAST_LENGTH) -> np.ndarray:
    """Normals float32 (H, W, 3) of unit length, or zero where there is none, that face the camera (z < 0).

    Args:
        stored: (H, W, 3) in [-1, 1], zero = none; the first two components as ours (x right, y down; the
            archives turn and mirror them so), z of either sign.
        least: Shorter ones are none.
    """
    length = np.linalg.norm(stored, axis=-1, keepdims=True)
    normals = np.divide(stored, length, out=np.zeros_like(stored), where=length > least)
    if normals[..., 2].sum(where=length[..., 0] > LEAST_LENGTH) > 0:
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
