"""Normals of panoramas: from the world's axes to the viewer's (PAG, appendix 1, eq. 11).

A panorama is equirectangular: its columns go once around the vertical, to the right. Its normals are stored
in the axes of the building, which no network can tell from a picture. Seen from column c, the viewer's axes
are x to the right, y down, z forward and level; they turn with c by 2 pi / W a column. One angle is left,
the building's north: eq. 11 takes it from one canonical point, where a wall faces the viewer.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

# Channels of stored normals: two level axes and the vertical one, as the released code has them.
LEVEL, VERTICAL = (0, 2), 1


@dataclasses.dataclass(frozen=True)
class Axes:
    """What the stored axes are.

    Attributes:
        up: 1 if the vertical channel is positive on a floor, -1 if on a ceiling.
        turn: 1 if the second level axis is a quarter turn to the left of the first, seen from above; -1 to
            the right.
    """

    up: int = 1
    turn: int = 1


def decode_normals(picture: np.ndarray) -> np.ndarray:
    """Unit normals float32 (H, W, 3) of a picture uint8 centred at 127.5; zero where it is no unit vector."""
    normals = (picture.astype(np.float32) - np.float32(127.5)) / np.float32(127.5)
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    valid = (length > 0.8) & (length < 1.1)
    return np.where(valid, normals / np.where(valid, length, 1), 0).astype(np.float32)


def detect_axes(normals: np.ndarray) -> Axes:
    """What the stored axes must be, given that floors are below, and that what is seen faces the viewer.

    Args:
        normals: (H, W, 3) stored unit normals, zero = invalid.
    """
    third = normals.shape[0] // 3
    up = normals[-third:, :, VERTICAL].sum() - normals[:third, :, VERTICAL].sum()
    facing = {turn: abs(_resultant(normals, turn)) for turn in (1, -1)}
    return Axes(1 if up >= 0 else -1, 1 if facing[1] >= facing[-1] else -1)


def estimate_angle(normals: np.ndarray, axes: Axes) -> float:
    """The angle of column 0, radians, at which surfaces face the viewer most: a guess, some degrees off."""
    return float(np.angle(_resultant(normals, axes.turn)))


def point_angle(normals: np.ndarray, point: tuple[int, int], axes: Axes, *, radius: int = 2) -> float:
    """The angle of column 0, radians, for which the surface at the canonical point faces the viewer.

    Args:
        normals: (H, W, 3) stored unit normals, zero = invalid.
        point: (x, y), column and row. The mean over `radius` pixels around it is taken.

    Raises:
        ValueError: No upright surface there.
    """
    x, y = point
    height, width = normals.shape[:2]
    rows = np.arange(max(y - radius, 0), min(y + radius + 1, height))
    columns = np.arange(x - radius, x + radius + 1) % width
    level = normals[rows][:, columns][..., LEVEL].sum((0, 1), dtype=np.float64)
    if np.hypot(*level) < 0.5 * len(rows) * len(columns):
        raise ValueError("no upright surface there")
    return float(math.atan2(level[0], level[1]) - axes.turn * 2 * math.pi * x / width)


def local_normals(normals: np.ndarray, angle: float, axes: Axes) -> np.ndarray:
    """Eq. 11: normals float32 (H, W, 3) in the viewer's axes of their column, x right, y down, z forward.

    Args:
        normals: (H, W, 3) stored unit normals, zero = invalid.
        angle: Direction of column 0, radians; `point_angle` or `estimate_angle` or `depth_angle`.
    """
    width = normals.shape[1]
    theta = angle + axes.turn * 2 * math.pi * np.arange(width) / width
    cos, sin = np.cos(theta).astype(np.float32), np.sin(theta).astype(np.float32)
    first, second = normals[..., LEVEL[0]], normals[..., LEVEL[1]]
    # At the canonical point the level part becomes (0, 1), which points at the viewer.
    right = -axes.turn * (cos * first - sin * second)
    towards = sin * first + cos * second
    return np.stack([right, -axes.up * normals[..., VERTICAL], -towards], axis=-1)


def depth_angle(normals: np.ndarray, depth: np.ndarray, axes: Axes, *, top: int = 0, full: int = 0) -> float:
    """The angle of column 0, radians, by which the stored normals fit those of the depth best.

    This finds the canonical points without a click; the paper clicks them.

    Args:
        normals: (H, W, 3) stored unit normals, zero = invalid.
        depth: (H, W) distances from the camera, metres, 0 = invalid.
        top: Rows cut off above.
        full: Height of the whole panorama, 0 = W / 2.

    Raises:
        ValueError: No surface that has both.
    """
    height, width = depth.shape
    directions = panorama_rays(height, width, top=top, full=full)
    points = directions * depth[..., None]
    step = max(1, width // 512)
    along = np.roll(points, -step, axis=1) - np.roll(points, step, axis=1)
    down = np.zeros_like(points)
    down[step:-step] = points[2 * step :] - points[: -2 * step]
    measured = np.cross(along, down)
    measured *= -np.sign((measured * directions).sum(-1, keepdims=True))
    length = np.linalg.norm(measured, axis=-1)
    near = np.abs(along).max(-1) + np.abs(down).max(-1) < 0.3 * depth
    for shift in (-step, step):
        near &= (np.roll(depth, shift, axis=1) > 0) & (np.roll(depth, shift, axis=0) > 0)
    near[:step], near[-step:] = False, False
    valid = near & (length > 0) & (depth > 0) & normals.any(-1)
    if not valid.any():
        raise ValueError("no surface with depth and normals")
    # Angles about the vertical, seen from column 0: what the depth says against what the stored axes say.
    stored = local_normals(normals, 0.0, axes)
    azimuth = 2 * np.pi * np.arange(width) / width
    seen = np.exp(1j * azimuth) * (stored[..., 0] * 1j + stored[..., 2])
    direction = (measured[..., 0] * 1j + measured[..., 2]) / np.where(length > 0, length, 1)
    product = (direction * np.conj(seen))[valid]
    difference = np.angle(product.sum())
    # Once more without what is more than 30 degrees off: edges and clutter.
    kept = product[np.abs(np.angle(product * np.exp(-1j * difference))) < np.pi / 6]
    return float(-axes.turn * np.angle(kept.sum() if kept.size else product.sum()))


def panorama_rays(height: int, width: int, *, top: int = 0, full: int = 0) -> np.ndarray:
    """Unit directions (height, width, 3), x right, y down, z forward as seen from column 0.

    Args:
        top: Rows cut off above.
        full: Height of the whole panorama, 0 = width / 2.
    """
    full = full or width // 2
    azimuth = 2 * np.pi * np.arange(width) / width
    elevation = np.pi * (0.5 - (np.arange(height) + top + 0.5) / full)[:, None]
    level = np.cos(elevation)
    return np.stack(
        [
            level * np.sin(azimuth),
            np.broadcast_to(-np.sin(elevation), (height, width)),
            level * np.cos(azimuth),
        ],
        axis=-1,
    )


def _resultant(normals: np.ndarray, turn: int) -> complex:
    """Mean of the level parts as seen from column 0, complex: long if they face the viewer."""
    width = normals.shape[1]
    level = normals[..., LEVEL[1]].sum(0) + 1j * normals[..., LEVEL[0]].sum(0)
    return complex((level * np.exp(-1j * turn * 2 * np.pi * np.arange(width) / width)).mean())
