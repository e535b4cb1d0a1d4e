"""A box-shaped room as a panorama sees it: distances, normals, and normals as files store them."""

from __future__ import annotations

import math

import numpy as np

from dynpix_jax.data.panorama import Axes

HEIGHT, WIDTH = 64, 128


def room(north: float) -> tuple[np.ndarray, np.ndarray]:
    """Distances and normals (x east, y south, z up) of a room of 6 x 4 x 3 m, the viewer off its middle.

    Column 0 looks `north` radians east of the building's north wall.
    """
    azimuth = north + 2 * math.pi * np.arange(WIDTH) / WIDTH
    elevation = math.pi * (0.5 - (np.arange(HEIGHT) + 0.5) / HEIGHT)[:, None]
    ray = np.stack(
        np.broadcast_arrays(
            np.cos(elevation) * np.sin(azimuth), -np.cos(elevation) * np.cos(azimuth), np.sin(elevation)
        ),
        axis=-1,
    )
    # Walls at these distances to the east, south, top, and west, north, bottom.
    walls = np.where(ray > 0, np.array([3.5, 1.5, 1.4]), np.array([-2.5, -2.5, -1.6]))
    hits = np.where(ray == 0, np.inf, walls / np.where(ray == 0, 1, ray))
    nearest = hits.argmin(-1)
    normals = -np.eye(3)[nearest] * np.sign(np.take_along_axis(ray, nearest[..., None], -1))
    return hits.min(-1), normals


def seen(normals: np.ndarray, north: float) -> np.ndarray:
    """The normals in the axes of the viewer of each column, by the directions of these axes."""
    azimuth = north + 2 * math.pi * np.arange(WIDTH) / WIDTH
    forward = np.stack([np.sin(azimuth), -np.cos(azimuth), 0 * azimuth], axis=-1)
    right = np.stack([np.cos(azimuth), np.sin(azimuth), 0 * azimuth], axis=-1)
    return np.stack([(normals * right).sum(-1), -normals[..., 2], (normals * forward).sum(-1)], axis=-1)


def stored(normals: np.ndarray, axes: Axes, degrees: float) -> np.ndarray:
    """The picture uint8 of the normals in level axes that are turned by `degrees` from the walls."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    first = np.array([cos, sin, 0.0])
    left = np.array([sin, -cos, 0.0])  # of `first`, seen from above: east's left is north
    values = [normals @ first, axes.up * normals[..., 2], axes.turn * (normals @ left)]
    return np.round(127.5 + 127.5 * np.stack(values, axis=-1)).astype(np.uint8)


def angles(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos(np.clip((left * right).sum(-1), -1, 1)))
