"""Layers of the papers' networks in NumPy and SciPy, with the conventions of PyTorch's releases.

Maps are float64 (C, H, W), one image; kernels (out, in / groups, k, k). Nothing here calls the library: the
forward passes of hrnet_reference and papers/*/reference are made of this, and the library's compared with it.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import map_coordinates
from scipy.special import expit

Map = np.ndarray
"""(C, H, W)."""
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def normalized(image: np.ndarray) -> Map:
    """uint8 (H, W, 3) RGB, by the moments of ImageNet."""
    return np.moveaxis((image / 255 - MEAN) / STD, -1, 0)


def conv(
    x: Map,
    kernel: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
) -> Map:
    """Convolution, padded by dilation * (k // 2) zeros."""
    out, _, size, _ = kernel.shape
    pad, reach = dilation * (size // 2), dilation * (size - 1) + 1
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    windows = sliding_window_view(padded, (reach, reach), (1, 2))
    windows = windows[:, ::stride, ::stride, ::dilation, ::dilation]
    by_group = windows.reshape(groups, len(x) // groups, *windows.shape[1:])
    kernels = kernel.reshape(groups, out // groups, *kernel.shape[1:])
    y = np.einsum("gchwij,gocij->gohw", by_group, kernels, optimize=True).reshape(out, *windows.shape[1:3])
    return y if bias is None else y + bias[:, None, None]


def batch_norm(x: Map, scale: np.ndarray, bias: np.ndarray, mean: np.ndarray, var: np.ndarray) -> Map:
    """By stored moments."""
    scale, bias, mean, var = (np.asarray(v, np.float64)[:, None, None] for v in (scale, bias, mean, var))
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


def squeeze_excite(
    x: Map, first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray], most: float = np.inf
) -> Map:
    """Channels scaled by sigmoid(W2 act(W1 mean + b1) + b2), act = min(max(., 0), most); W (out, in)."""
    hidden = np.clip(first[0] @ x.mean((1, 2)) + first[1], 0, most)
    return x * expit(second[0] @ hidden + second[1])[:, None, None]


def relu(x: np.ndarray, most: float = np.inf) -> np.ndarray:
    """ReLU; ReLU6 with ``most`` = 6."""
    return np.clip(x, 0, most)


def max_pool(x: Map) -> Map:
    """Of 3x3, stride 2, padded by one."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    return sliding_window_view(padded, (3, 3), (1, 2))[:, ::2, ::2].max((3, 4))


def average_pool(x: Map) -> Map:
    """Of 2x2, stride 2; an odd row or column at the end is left out."""
    height, width = x.shape[1] // 2, x.shape[2] // 2
    return x[:, : 2 * height, : 2 * width].reshape(len(x), height, 2, width, 2).mean((2, 4))


def bilinear(x: Map, size: tuple[int, int]) -> Map:
    """Resized to (H, W), corners not aligned, no antialiasing."""
    places = [(np.arange(new) + 0.5) * old / new - 0.5 for old, new in zip(x.shape[1:], size, strict=True)]
    grid = np.meshgrid(*places, indexing="ij")
    return np.stack([map_coordinates(one, grid, order=1, mode="nearest") for one in x])


def nearest(x: Map, size: tuple[int, int]) -> Map:
    """Resized to (H, W): pixel i is that at floor(i * old / new)."""
    rows, columns = (np.arange(new) * old // new for old, new in zip(x.shape[1:], size, strict=True))
    return x[:, rows[:, None], columns]


def softmax(x: Map) -> Map:
    """Over the channels."""
    powers = np.exp(x - x.max(0))
    return powers / powers.sum(0)


def interpolated(y: Map, mask: np.ndarray, lam: float, radius: int = 3) -> Map:
    """Eq. 3 of the anytime paper as released: False positions get sum_d k(d) y(d) over True neighbours.

    k(d) = exp(-lam^2 d^2) / (its sum over the window without the centre + 1e-5), position by position.
    """
    _, height, width = y.shape
    steps = [
        (i, j) for i in range(-radius, radius + 1) for j in range(-radius, radius + 1) if (i, j) != (0, 0)
    ]
    weights = np.array([np.exp(-(lam**2) * (i * i + j * j)) for i, j in steps])
    weights /= weights.sum() + 1e-5
    known = np.pad(np.where(mask, y, 0), ((0, 0), (radius, radius), (radius, radius)))
    filled = np.zeros_like(y)
    for (i, j), weight in zip(steps, weights, strict=True):
        filled += weight * known[:, radius + i : radius + i + height, radius + j : radius + j + width]
    return np.where(mask, y, filled)
