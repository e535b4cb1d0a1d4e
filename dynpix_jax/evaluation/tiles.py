"""A large image in tiles that overlap, so that its memory is that of one tile.

Tiles begin at multiples of every stride, so each sees its pixels as the whole image would show them. What a
network predicts at a pixel is the same as without tiles where it depends on at most `OVERLAP` pixels around;
beyond that (a pyramid's pooling over all of the image, gates that rank all of its positions) a tile is an
image of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from dynpix_jax.evaluation.inference import starts
from dynpix_jax.evaluation.runner import ImageResult
from dynpix_jax.tasks import Task

LARGEST = 1600 * 1600
"""Pixels of an image that is predicted at once."""
TILE = 1024
"""Side of a tile."""
OVERLAP = 128
"""Pixels that a tile sees beyond those that it predicts."""
_ALIGNED = 64
"""A multiple of the strides of all networks."""

Window = tuple[slice, slice]


@dataclass(frozen=True)
class Tile:
    """A part of an image.

    Attributes:
        seen: Rows and columns that the network sees.
        kept: Those whose prediction is kept; tiles share none, and together have all.
    """

    seen: Window
    kept: Window

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of what the network sees."""
        rows, columns = (part.stop - part.start for part in self.seen)
        return rows, columns

    @property
    def inner(self) -> Window:
        """The kept rows and columns, counted from the first that is seen."""
        rows, columns = (
            slice(kept.start - seen.start, kept.stop - seen.start)
            for seen, kept in zip(self.seen, self.kept, strict=True)
        )
        return rows, columns


def tiles(size: tuple[int, int], side: int = TILE, overlap: int = OVERLAP) -> Iterator[Tile]:
    """The tiles of an image (H, W), row by row."""
    rows, columns = (_spans(whole, side, overlap) for whole in size)
    for seen_rows, kept_rows in rows:
        for seen_columns, kept_columns in columns:
            yield Tile((seen_rows, seen_columns), (kept_rows, kept_columns))


def _spans(whole: int, side: int, overlap: int) -> list[tuple[slice, slice]]:
    """(seen, kept) along one axis."""
    if whole <= side:
        return [(slice(0, whole), slice(0, whole))]
    step = (side - 2 * overlap) // _ALIGNED * _ALIGNED
    first = [start // _ALIGNED * _ALIGNED for start in starts(whole, side, step)]
    stops = [min(start + side, whole) for start in first[:-1]] + [whole]
    # Between two tiles the middle of what both see.
    borders = [0, *((left + right) // 2 for left, right in zip(stops, first[1:], strict=False)), whole]
    seen = [slice(start, stop) for start, stop in zip(first, stops, strict=True)]
    return [(one, slice(*borders[index : index + 2])) for index, one in enumerate(seen)]


def in_tiles(
    predict: Callable[[np.ndarray], ImageResult],
    tasks: Mapping[str, Task],
    image: np.ndarray,
    *,
    side: int | None = None,
    overlap: int = OVERLAP,
    each: Callable[[Tile, ImageResult], None] = lambda tile, result: None,
) -> tuple[dict[str, np.ndarray], ImageResult]:
    """Predicts an image tile by tile, or at once.

    Args:
        predict: Runs one image (h, w, 3).
        tasks: What it predicts; of pixels, if there are several tiles.
        image: uint8 (H, W, 3).
        side: Of a tile. None: `TILE` for a large image whose tasks are of pixels, else all of the image.
        overlap: Pixels that a tile sees beyond those that it predicts.
        each: Called with every tile and its result.

    Returns:
        The decoded predictions of the whole image, and the last tile's result with the MACs and the time of
        all tiles; its shares are means by MACs.
    """
    if side is None:
        side = TILE if is_large(image) and can_tile(tasks) else max(image.shape[:2])
    found: dict[str, np.ndarray] = {}
    total: ImageResult | None = None
    for tile in tiles(image.shape[:2], side, overlap):
        result = predict(np.ascontiguousarray(image[tile.seen]))
        for name, task in tasks.items():
            decoded = np.asarray(task.decode(result.outputs.predictions[name])[0])
            if tile.kept == (slice(0, image.shape[0]), slice(0, image.shape[1])):
                found[name] = decoded  # joints, too
                continue
            if np.issubdtype(decoded.dtype, np.integer) and 0 < task.class_count <= 256:
                decoded = decoded.astype(np.uint8)
            if name not in found:
                found[name] = np.empty((*image.shape[:2], *decoded.shape[2:]), decoded.dtype)
            found[name][tile.kept] = decoded[tile.inner]
        each(tile, result)
        total = result if total is None else replace(_added(total, result), seen=image.shape[:2])
    assert total is not None
    return found, total


class Mosaic:
    """Maps of an image, put together of those of its tiles.

    Args:
        size: (H, W) of the image.
        step: Every so many pixels one is kept; None: so that the longer side has 1600 at most.

    Attributes:
        step: The same.
        maps: Name -> (H / step, W / step).
    """

    def __init__(self, size: tuple[int, int], step: int | None = None) -> None:
        self.step = step or -(-max(size) // 1600)
        self.maps: dict[str, np.ndarray] = {}
        self._size = (-(-size[0] // self.step), -(-size[1] // self.step))

    def add(self, tile: Tile, maps: Mapping[str, np.ndarray]) -> None:
        """Adds the maps of a tile, of the size that it sees."""
        step = self.step
        grid = [np.arange(-(-kept.start // step) * step, kept.stop, step) for kept in tile.kept]
        here = np.ix_(*(places - seen.start for places, seen in zip(grid, tile.seen, strict=True)))
        there = np.ix_(*(places // step for places in grid))
        for name, values in maps.items():
            whole = self.maps.setdefault(name, np.zeros(self._size, values.dtype))
            whole[there] = values[here]


def _added(one: ImageResult, other: ImageResult) -> ImageResult:
    macs = one.macs + other.macs
    part = other.macs / macs

    def mean(name: str) -> float:
        return (1 - part) * one.shares[name] + part * other.shares[name]

    return replace(
        other,
        shares={name: mean(name) for name in one.shares},
        macs=macs,
        macs_open=one.macs_open + other.macs_open,
        milliseconds=one.milliseconds + other.milliseconds,
    )


def is_large(image: np.ndarray) -> bool:
    """Whether an image (H, W, 3) has more pixels than are predicted at once."""
    return image.shape[0] * image.shape[1] > LARGEST


def can_tile(tasks: Mapping[str, Task]) -> bool:
    """Whether all tasks predict pixels."""
    return all(task.stride == 1 for task in tasks.values())
