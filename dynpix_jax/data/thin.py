"""Morphological thinning of binary maps to convergence (MATLAB's `bwmorph(map, 'thin', inf)`).

Source: Z. Guo and R. W. Hall, "Parallel thinning with two-subiteration algorithms", CACM 1989, algorithm A1,
in the form of L. Lam, S.-W. Lee and C. Y. Suen, "Thinning methodologies: a comprehensive survey", PAMI 1992,
page 879.
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

# Bit k of a pixel's neighbourhood code is its neighbour x_(k+1): east first, then counter-clockwise. The
# kernel is correlated with the map, so each entry sits where its neighbour is.
_BITS = np.array([[8, 4, 2], [16, 0, 1], [32, 64, 128]], np.float32)


@cache
def removal_tables() -> tuple[np.ndarray, np.ndarray]:
    """Two tables (256,) of uint8: 0 where a pixel with that neighbourhood is removed, 1 where it stays.

    One table for each of the two sub-iterations.
    """
    codes = np.arange(256)
    x = [((codes >> k) & 1).astype(bool) for k in range(8)]  # x[0] is x1 (east), x[7] is x8
    x.append(x[0])
    crossings = sum((~x[i] & (x[i + 1] | x[i + 2])).astype(int) for i in (0, 2, 4, 6))
    n1 = sum((x[i] | x[i + 1]).astype(int) for i in (0, 2, 4, 6))
    n2 = sum((x[i + 1] | x[i + 2]).astype(int) for i in (0, 2, 4, 6))
    fewest = np.minimum(n1, n2)
    removable = (crossings == 1) & (fewest >= 2) & (fewest <= 3)
    first = removable & ~((x[1] | x[2] | ~x[7]) & x[0])
    second = removable & ~((x[5] | x[6] | ~x[3]) & x[4])
    return (~first).astype(np.uint8), (~second).astype(np.uint8)


def thin(mask: np.ndarray) -> np.ndarray:
    """Thin a boolean map (H, W) until nothing changes; outside it is empty. Boolean, a subset of `mask`."""
    if mask.ndim != 2:
        raise ValueError(f"thin: expected a map (H, W), got shape {mask.shape}")
    current = np.ascontiguousarray(mask, dtype=np.uint8)
    if mask.size == 0:
        return current.astype(bool)
    np.minimum(current, 1, out=current)
    remaining = cv2.countNonZero(current)
    while True:
        for table in removal_tables():
            codes = cv2.filter2D(current, -1, _BITS, borderType=cv2.BORDER_CONSTANT)
            current &= cv2.LUT(codes, table)
        before, remaining = remaining, cv2.countNonZero(current)
        if remaining == before:
            return current.astype(bool)
