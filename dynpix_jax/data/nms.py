"""Non-maximum suppression of soft boundary maps, as the structured-edge evaluation scripts do it.

Source: the conventions of P. Dollar's edge toolbox (`edgesNms`) and of the evaluation scripts that circulate
for HED, RCF and their descendants, which smooth the map once before they suppress it. Reported ODS values of
deep detectors on BSDS500 are values after this step.
"""

from __future__ import annotations

import cv2
import numpy as np


def triangle_filter(image: np.ndarray, radius: int) -> np.ndarray:
    """Smooth (H, W) floats with the separable triangle kernel of integer `radius` >= 1, symmetric at borders.

    Radius 1 is (1, 2, 1) / 4, radius 4 is (1, 2, 3, 4, 5, 4, 3, 2, 1) / 25 along both axes.
    """
    if radius < 1:
        raise ValueError(f"triangle_filter: radius must be at least 1, got {radius}")
    ramp = np.arange(1, radius + 1, dtype=np.float64)
    kernel = np.concatenate([ramp, [radius + 1.0], ramp[::-1]]) / (radius + 1) ** 2
    return cv2.sepFilter2D(np.ascontiguousarray(image), -1, kernel, kernel, borderType=cv2.BORDER_REFLECT)


def orientation(edges: np.ndarray) -> np.ndarray:
    """Direction of the normal of the ridges of `edges` (H, W), radians in [0, pi), x to the right and y down.

    From the second derivatives of the map after a triangle filter of radius 4. This is the original tool's
    formula, and approximate: the tangent comes out squared (up to 13 degrees off, exact at multiples of 45),
    and where the mixed derivative is exactly zero the result is 0. Scores depend on it, so it is kept.
    """
    if min(edges.shape) < 2:
        return np.zeros_like(edges)
    smooth = triangle_filter(edges, 4)
    dy, dx = np.gradient(smooth)
    dxx = np.gradient(dx, axis=1)
    dyy, dxy = np.gradient(dy)
    return np.mod(np.arctan(dyy * np.sign(-dxy) / (dxx + 1e-5)), np.pi)


def _bilinear(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Values of `image` (H, W) at the points (x, y), clamped just inside the image."""
    height, width = image.shape
    x = np.clip(x, 0.0, max(width - 1.001, 0.0))
    y = np.clip(y, 0.0, max(height - 1.001, 0.0))
    left, top = x.astype(np.intp), y.astype(np.intp)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    fx, fy = x - left, y - top
    upper = image[top, left] * (1 - fx) + image[top, right] * fx
    lower = image[bottom, left] * (1 - fx) + image[bottom, right] * fx
    return upper * (1 - fy) + lower * fy


def suppress(
    edges: np.ndarray, normals: np.ndarray, *, radius: int = 1, multiplier: float = 1.01, fade: int = 5
) -> np.ndarray:
    """Set to zero every pixel that a neighbour along its normal exceeds; fade the border linearly.

    `edges` (H, W) floats, `normals` (H, W) radians. A pixel is kept if `multiplier` times its value is at
    least the bilinearly sampled value at distances 1..`radius` on both sides. The outermost `fade` rows and
    columns are multiplied by 0, 1/fade, 2/fade, ... because detectors are unreliable there.
    """
    if edges.shape != normals.shape or edges.ndim != 2:
        raise ValueError(f"suppress: edges {edges.shape} and normals {normals.shape} must be one (H, W)")
    rows, columns = np.nonzero(edges)
    value = edges[rows, columns]
    cosine, sine = np.cos(normals[rows, columns]), np.sin(normals[rows, columns])
    keep = np.ones(len(rows), bool)
    for step in (s for s in range(-radius, radius + 1) if s):
        keep &= value * multiplier >= _bilinear(edges, columns + step * cosine, rows + step * sine)
    result = np.zeros_like(edges)
    result[rows[keep], columns[keep]] = value[keep]
    height, width = edges.shape
    # Both sides fade by multiplication, one after the other, so that tiny images behave as in the original.
    band = min(fade, width // 2, height // 2)
    for i in range(band):
        for line in (result[i], result[height - 1 - i], result[:, i], result[:, width - 1 - i]):
            line *= i / band
    return result


def non_maximum_suppression(
    edges: np.ndarray, *, smooth: bool = True, radius: int = 1, multiplier: float = 1.01, fade: int = 5
) -> np.ndarray:
    """Thin a soft boundary map (H, W) in [0, 1] to its ridges; float64 of the same shape.

    `smooth` (default) first filters the map with the (1, 2, 1) kernel along both axes: the convention behind
    the published scores of deep detectors. Turn it off for a detector that already smooths.
    """
    if edges.ndim != 2:
        raise ValueError(f"non_maximum_suppression: expected a map (H, W), got shape {edges.shape}")
    edges = np.asarray(edges, np.float64)
    if smooth:
        edges = triangle_filter(edges, 1)
    return suppress(edges, orientation(edges), radius=radius, multiplier=multiplier, fade=fade)
