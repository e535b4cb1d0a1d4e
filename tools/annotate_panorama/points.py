"""The file of canonical points, saved after each change."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Collection
from pathlib import Path

from dynpix_jax.core.errors import UserError
from dynpix_jax.data.stanford2d3d import read_points

Point = tuple[int, int]


class Points:
    """Points (x, y) by panorama, kept in a file; every change is on the disk before its call returns.

    The file is {"points": {NAME: [x, y]}, "history": [[NAME, [x, y] or null], ...]}. The history holds what
    each change replaced, so that undo also works after a restart. An existing file is continued.

    Args:
      path: of the file.

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
        """Sets or moves the point of a panorama.

        Raises:
          OSError: it cannot be saved; nothing has changed.
        """
        with self._lock:
            self._save(self._points | {name: point}, [*self._history, (name, self._points.get(name))])

    def undo(self, names: Collection[str]) -> str | None:
        """Takes back the last change of any of the panoramas ``names``.

        Returns:
          The panorama of that change; None if there is no change.

        Raises:
          OSError: it cannot be saved; nothing has changed.
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
