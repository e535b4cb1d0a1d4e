"""What the page shows of a panorama: its photo, and its normals before and after a click."""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np

from dynpix_jax.core.errors import UserError
from dynpix_jax.data.panorama import (
    Axes,
    decode_normals,
    depth_angle,
    detect_axes,
    estimate_angle,
    local_normals,
)
from dynpix_jax.data.stanford2d3d import Panorama, clicked_angle, decode_depth
from tools.annotate_panorama.points import Point

SHOWN_WIDTH = 1024
"""Pictures are shown at most this wide; points are kept in pixels of the full panorama."""

_BAND = np.array([255, 220, 0], np.float32)


@dataclasses.dataclass(frozen=True)
class View:
    """One panorama, prepared for showing.

    Attributes:
      size: (H, W) of the full panorama.
      step: full pixels to one shown.
      photo: JPEG.
      normals: stored normals as shown, float32 (h, w, 3).
      half: picture of the normals at half of the size, uint8, in which the source finds the angle of a point.
      axes: of the normals.
      angle: of column 0, radians; found by the depth, or guessed where there is none.
    """

    size: tuple[int, int]
    step: int
    photo: bytes
    normals: np.ndarray
    half: np.ndarray
    axes: Axes
    angle: float

    @staticmethod
    def read(panorama: Panorama) -> View:
        """Reads the panorama.

        Raises:
          UserError: a file is missing or broken.
        """
        image = panorama.read("rgb")
        height, width = image.shape[:2]
        step = max(1, -(-width // SHOWN_WIDTH))
        small = cv2.resize(image, (width // step, height // step), interpolation=cv2.INTER_AREA)
        stored = panorama.read("normal")
        normals, half = decode_normals(stored[::step, ::step]), stored[::2, ::2].copy()
        axes = detect_axes(decode_normals(half))
        try:
            depth = decode_depth(panorama.read("depth")[::step, ::step])
            angle = depth_angle(normals, depth, axes)
        except (UserError, ValueError):
            angle = estimate_angle(normals, axes)  # the depth only helps to draw the bands
        return View((height, width), step, _encode(small, ".jpg"), normals, half, axes, angle)

    def stored_picture(self) -> bytes:
        """PNG of the stored normals with the canonical bands."""
        local = local_normals(self.normals, self.angle, self.axes)
        return _encode(_paint(self.normals, facing_bands(local)), ".png")

    def local_picture(self, point: Point) -> bytes:
        """PNG of the normals turned by ``point``, with the bands that it implies.

        Red points to the right, green up, blue towards the viewer.

        Raises:
          ValueError: no upright surface is there.
        """
        local = local_normals(self.normals, self.angle_at(point), self.axes)
        return _encode(_paint(local * np.array([1, -1, -1], np.float32), facing_bands(local)), ".png")

    def angle_at(self, point: Point) -> float:
        """The angle of column 0 for a point, as the source will find it.

        Raises:
          ValueError: no upright surface is there.
        """
        return clicked_angle(self.half, point, self.axes)


def facing_bands(local: np.ndarray, degrees: float = 2.0) -> np.ndarray:
    """The canonical points: upright surfaces that face the viewer.

    Args:
      local: (H, W, 3) normals in the viewer's axes.
      degrees: how far a surface may be turned away.

    Returns:
      bool (H, W).
    """
    tilt = math.sin(math.radians(10))
    side = math.sin(math.radians(degrees))
    return (np.abs(local[..., 1]) < tilt) & (np.abs(local[..., 0]) < side) & (local[..., 2] < 0)


def _paint(vectors: np.ndarray, bands: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3): 127.5 (v + 1), grey where there is no vector, the bands in yellow."""
    picture = 127.5 * (vectors + 1)
    picture[bands] = 0.35 * picture[bands] + 0.65 * _BAND
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)


def _encode(picture: np.ndarray, kind: str) -> bytes:
    done, content = cv2.imencode(kind, picture[..., ::-1])
    assert done
    return content.tobytes()
