"""Plain NumPy loops in float64 that the operations are compared with."""

from __future__ import annotations

import numpy as np

Pair = tuple[int, int]


def output_size(size: Pair, window: Pair, strides: Pair, dilation: Pair) -> Pair:
    """By counting the places where the window fits."""
    counts = []
    for n, k, s, d in zip(size, window, strides, dilation, strict=True):
        padded = n + 2 * (d * (k // 2))
        counts.append(len([start for start in range(0, padded, s) if start + d * (k - 1) < padded]))
    return counts[0], counts[1]


def window_at(
    x: np.ndarray, b: int, i: int, j: int, window: Pair, strides: Pair, dilation: Pair
) -> np.ndarray:
    """(kh, kw, C) window of output position (i, j), zeros outside."""
    out = np.zeros((*window, x.shape[-1]))
    for u in range(window[0]):
        for v in range(window[1]):
            row = i * strides[0] + (u - window[0] // 2) * dilation[0]
            col = j * strides[1] + (v - window[1] // 2) * dilation[1]
            if 0 <= row < x.shape[1] and 0 <= col < x.shape[2]:
                out[u, v] = x[b, row, col]
    return out


def conv_loop(
    x: np.ndarray,
    kernel: np.ndarray,
    mask: np.ndarray | None = None,
    bias: np.ndarray | float = 0.0,
    strides: Pair = (1, 1),
    dilation: Pair = (1, 1),
) -> np.ndarray:
    """Convolution with torch padding at the positions of the mask, zero elsewhere."""
    window = kernel.shape[:2]
    height, width = output_size(x.shape[1:3], window, strides, dilation)
    out = np.zeros((x.shape[0], height, width, kernel.shape[-1]))
    for b, i, j in np.ndindex(out.shape[:3]):
        if mask is None or mask[b, i, j]:
            patch = window_at(x, b, i, j, window, strides, dilation)
            out[b, i, j] = np.einsum("uvc,uvcd->d", patch, kernel) + bias
    return out


def conv_by_taps(
    x: np.ndarray,
    kernel: np.ndarray,
    bias: np.ndarray | float = 0.0,
    strides: Pair = (1, 1),
    dilation: Pair = (1, 1),
    padding: tuple[Pair, Pair] | None = None,
) -> np.ndarray:
    """`conv_loop` with one product for each tap instead of each position; None: torch padding."""
    window = kernel.shape[:2]
    if padding is None:
        high, wide = (d * (k // 2) for k, d in zip(window, dilation, strict=True))
        padding = ((high, high), (wide, wide))
    padded = np.pad(x, ((0, 0), *padding, (0, 0)))
    height, width = (
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(padded.shape[1:3], window, strides, dilation, strict=True)
    )
    total = np.zeros((len(x), height, width, kernel.shape[-1])) + bias
    for u, v in np.ndindex(*window):
        top, left = u * dilation[0], v * dilation[1]
        rows = slice(top, top + (height - 1) * strides[0] + 1, strides[0])
        columns = slice(left, left + (width - 1) * strides[1] + 1, strides[1])
        total += padded[:, rows, columns] @ kernel[u, v]
    return total
