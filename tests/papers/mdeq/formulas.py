"""What MDEQ computes, MACs of convolutions as the paper counts them: one application of f, stem, head.

The anytime paper's GFLOPs (MACs / 2**30) of n iterations are stem + head + 2 f (n + 1): the counter met the
module of f in two places and counted it twice. n + 1 because f is applied to the start, too. What is computed
is stem + head + f (n + 1); `published_macs` and `counted_macs` give the two.
"""

from __future__ import annotations

import math

from dynpix_jax.papers.mdeq.config import CellConfig

Size = tuple[int, int]


def cell_macs(cell: CellConfig, size: Size) -> float:
    """MACs of one application of f for one (H, W) image."""
    positions = [_positions(size, 4 * 2**i) for i in range(len(cell.channels))]
    macs = 0.0
    for i, width in enumerate(cell.channels):
        macs += positions[i] * (2 * 9.0 * cell.expansion + 1) * width**2
        for j, other in enumerate(cell.channels):
            if j > i:
                macs += float(positions[j] * other * width)
            elif j < i:
                macs += 9.0 * other**2 * sum(positions[j + 1 : i]) + 9.0 * other * width * positions[i]
    return macs


def stem_macs(cell: CellConfig, size: Size) -> float:
    """MACs of the stem for one (H, W) image."""
    width = cell.channels[0]
    return 27.0 * width * _positions(size, 2) + 10.0 * width**2 * _positions(size, 4)


def head_macs(cell: CellConfig, channels: int, size: Size) -> float:
    """MACs of the head's convolutions, to so many ``channels``, for one (H, W) image."""
    width = sum(cell.channels)
    return float(_positions(size, 4) * width * (width + channels))


def counted_macs(cell: CellConfig, channels: int, size: Size, iterations: int) -> float:
    """MACs of a prediction after so many iterations, every product counted once."""
    ends = stem_macs(cell, size) + head_macs(cell, channels, size)
    return ends + (iterations + 1) * cell_macs(cell, size)


def published_macs(cell: CellConfig, channels: int, size: Size, iterations: int) -> float:
    """The same as the anytime paper's tables have it: f counted twice."""
    return counted_macs(cell, channels, size, iterations) + (iterations + 1) * cell_macs(cell, size)


def _positions(size: Size, stride: int) -> int:
    return math.prod(math.ceil(side / stride) for side in size)
