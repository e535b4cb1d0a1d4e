"""Pictures of a large photo, drawn and written band by band: memory is that of one band."""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from dynpix_jax.core.errors import UserError, cause_of
from dynpix_jax.visualization.task_pictures import TaskPictures

ROWS = 128
"""Of a band."""


class PngFile:
    """A PNG file that is written row by row; removed again if that fails.

    Args:
        path: Of the file; its folder is made.
        size: (H, W) of the picture.

    Raises:
        UserError: It cannot be written.
    """

    def __init__(self, path: Path, size: tuple[int, int]) -> None:
        self._path, self._size = path, size
        self._packer = zlib.compressobj(4)
        self._last: np.ndarray | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb")
        except OSError as error:
            self._fail(error)

    def __enter__(self) -> PngFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        done = False
        try:
            if kind is None:
                self._chunk(b"IDAT", self._packer.flush())
                self._chunk(b"IEND", b"")
                self._close()  # writes what is left in the buffer
                done = True
        finally:
            if not done:
                with contextlib.suppress(OSError):
                    self._file.close()
                self._path.unlink(missing_ok=True)

    def write(self, rows: np.ndarray) -> None:
        """Adds rows: uint8 or uint16 (n, W), or uint8 (n, W, 3)."""
        content = rows.astype(rows.dtype.newbyteorder(">")).reshape(len(rows), -1).view(np.uint8)
        if self._last is None:
            self._begin(rows)
            self._last = np.zeros_like(content[0])
        # Filter 2 (up): each byte less the one above.
        above = np.concatenate([self._last[None], content[:-1]])
        filtered = np.concatenate([np.full((len(rows), 1), 2, np.uint8), content - above], axis=1)
        self._last = content[-1].copy()
        self._chunk(b"IDAT", self._packer.compress(filtered.tobytes()))

    def _begin(self, rows: np.ndarray) -> None:
        height, width = self._size
        colour = 2 if rows.ndim == 3 else 0
        header = struct.pack(">IIBBBBB", width, height, 8 * rows.dtype.itemsize, colour, 0, 0, 0)
        self._put(b"\x89PNG\r\n\x1a\n")
        self._chunk(b"IHDR", header)

    def _chunk(self, kind: bytes, content: bytes) -> None:
        if content or kind == b"IEND":
            checksum = struct.pack(">I", zlib.crc32(kind + content))
            self._put(struct.pack(">I", len(content)) + kind + content + checksum)

    def _close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            self._fail(error)

    def _put(self, content: bytes) -> None:
        try:
            self._file.write(content)
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        raise UserError(f"cannot write the picture {self._path}: {cause_of(error)}") from None


def save_bands(
    drawn: TaskPictures,
    photo: np.ndarray,
    prediction: np.ndarray,
    path_of: Callable[[str], Path],
    ids: np.ndarray | None = None,
) -> dict[str, Path]:
    """Writes `TaskPictures.files` of a photo.

    Args:
        drawn: Draws them.
        photo: uint8 (H, W, 3).
        prediction: Of pixels, (h, w) or (h, w, C): of the photo, or of a smaller one, and enlarged.
        path_of: Where a picture goes, by the end of its name.
        ids: Values in the place of those of ``map``; None keeps them.

    Returns:
        The files, by the ends of their names.
    """
    like = drawn.like(prediction)
    size = photo.shape[:2]
    opened: dict[str, PngFile] = {}
    try:
        for first in range(0, size[0], ROWS):
            rows = slice(first, min(first + ROWS, size[0]))
            seen = slice(max(rows.start - drawn.reach, 0), min(rows.stop + drawn.reach, size[0]))
            inner = slice(rows.start - seen.start, rows.stop - seen.start)
            whole = like.files(photo[seen], enlarged(prediction, size, seen))
            pictures = {kind: picture[inner] for kind, picture in whole.items()}
            if ids is not None:
                pictures["map"] = ids[pictures["map"]]
            for kind, picture in pictures.items():
                if kind not in opened:
                    opened[kind] = PngFile(path_of(kind), size)
                opened[kind].write(picture)
        for file in opened.values():
            file.__exit__(None, None, None)
    except BaseException as error:
        for file in opened.values():
            file.__exit__(type(error), error, None)
        raise
    return {kind: path_of(kind) for kind in opened}


def enlarged(prediction: np.ndarray, size: tuple[int, int], rows: slice) -> np.ndarray:
    """Some rows of a prediction (h, w) or (h, w, C) that is resized to (H, W), as `TaskPictures.resized`."""
    height, width = prediction.shape[:2]
    if (height, width) == size:
        return prediction[rows]
    places = np.arange(rows.start, rows.stop)
    if np.issubdtype(prediction.dtype, np.integer):
        chosen = prediction[np.minimum(places * height // size[0], height - 1)]
        return cv2.resize(chosen, (size[1], len(places)), interpolation=cv2.INTER_NEAREST)
    centres = np.clip((places + 0.5) * (height / size[0]) - 0.5, 0, height - 1)
    above = np.minimum(centres.astype(int), max(height - 2, 0))
    below = np.minimum(above + 1, height - 1)
    part = prediction[above[0] : below[-1] + 1]
    wide = cv2.resize(part, (size[1], len(part)), interpolation=cv2.INTER_LINEAR)
    share = (centres - above).astype(np.float32).reshape(-1, *[1] * (wide.ndim - 1))
    return (1 - share) * wide[above - above[0]] + share * wide[below - above[0]]
