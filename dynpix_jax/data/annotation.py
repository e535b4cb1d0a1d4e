"""The canonical points of panoramas: a file that is saved after each change, and the pictures to click in."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections.abc import Collection
from pathlib import Path

import cv2
import numpy as np

from dynpix_jax.core.errors import UserError
from dynpix_jax.data.panorama import (
    Axes,
    decode_normals,
    depth_angle,
    detect_axes,
    estimate_angle,
    facing_bands,
    local_normals,
)
from dynpix_jax.data.stanford2d3d import Panorama, clicked_angle, decode_depth, read_points

Point = tuple[int, int]
# Pictures are shown at most this wide; points are kept in pixels of the full panorama.
SHOWN_WIDTH = 1024
_BAND = np.array([255, 220, 0], np.float32)


class Points:
    """Points (x, y) by panorama, in a file; every change is on the disk before it returns.

    The file is {"points": {NAME: [x, y]}, "history": [[NAME, [x, y] or null], ...]}: the history holds what
    each change replaced, so that undo works after a restart too. A file that is there is continued.

    Raises:
      UserError: the file is not one of these, or a folder, or its folder does not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._points: dict[str, Point] = {}
        self._history: list[tuple[str, Point | None]] = []
        if path.is_file():
            self._points = read_points(path)
            self._history = _read_history(path)
        elif path.is_dir():
            raise UserError(f"--out: {path.absolute()} is a folder; expected a file, such as points.json")
        elif not path.absolute().parent.is_dir():
            raise UserError(f"--out: folder not found: {path.absolute().parent}")

    def all(self) -> dict[str, Point]:
        """A copy of the points."""
        with self._lock:
            return dict(self._points)

    def set(self, name: str, point: Point) -> None:
        """Sets or moves the point of a panorama. OSError, and nothing changed, if it cannot be saved."""
        with self._lock:
            self._save(self._points | {name: point}, [*self._history, (name, self._points.get(name))])

    def undo(self, names: Collection[str]) -> str | None:
        """Takes back the last change of the panoramas `names`; the one that it was of, None if there is none.

        OSError, and nothing changed, if it cannot be saved.
        """
        with self._lock:
            places = [place for place, (name, _) in enumerate(self._history) if name in names]
            if not places:
                return None
            name, old = self._history[places[-1]]
            points = {other: point for other, point in self._points.items() if other != name}
            if old is not None:
                points[name] = old
            self._save(points, [*self._history[: places[-1]], *self._history[places[-1] + 1 :]])
            return name

    def _save(self, points: dict[str, Point], history: list[tuple[str, Point | None]]) -> None:
        content = {"points": dict(sorted(points.items())), "history": history}
        # Replaced at once: a reader, or a power cut, finds the old file or the new one, never a half.
        temporary = self._path.with_name(f"{self._path.name}.tmp")
        with temporary.open("w") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)
        self._points, self._history = points, history


def _read_history(path: Path) -> list[tuple[str, Point | None]]:
    try:
        history = json.loads(path.read_text()).get("history", [])
        return [(str(name), None if old is None else (int(old[0]), int(old[1]))) for name, old in history]
    except (TypeError, ValueError, IndexError, KeyError):
        raise UserError(f'{path}: expected "history": [[NAME, [x, y] or null], ...], or none') from None


@dataclasses.dataclass(frozen=True)
class View:
    """One panorama, prepared for showing.

    size: (H, W) of the full panorama. step: full pixels to one shown.
    photo: JPEG. normals: stored normals as shown, float32 (h, w, 3). half: their picture at half of the size,
    uint8, of which the source finds the angle of a point. axes, angle: of the normals; the angle is found by
    the depth, or guessed where there is none.
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
        """Reads the panorama. Raises UserError for missing or broken files."""
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
        """PNG of the normals turned by `point`, with the bands that it implies.

        Red to the right, green up, blue towards the viewer. Raises ValueError if no upright surface is there.
        """
        local = local_normals(self.normals, self.angle_at(point), self.axes)
        return _encode(_paint(local * np.array([1, -1, -1], np.float32), facing_bands(local)), ".png")

    def angle_at(self, point: Point) -> float:
        """The angle of column 0 for a point, and so whether it is one, as the source will find it.

        Raises ValueError if no upright surface is there.
        """
        return clicked_angle(self.half, point, self.axes)


def _paint(vectors: np.ndarray, bands: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3): 127.5 (v + 1), grey where there is no vector, the bands in yellow."""
    picture = 127.5 * (vectors + 1)
    picture[bands] = 0.35 * picture[bands] + 0.65 * _BAND
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)


def _encode(picture: np.ndarray, kind: str) -> bytes:
    done, content = cv2.imencode(kind, picture[..., ::-1])
    assert done
    return content.tobytes()
