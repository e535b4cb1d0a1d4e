"""Resizing, up and down, that agrees with PyTorch's ``interpolate`` to rounding.

``jax.image.resize`` differs in three ways: half-pixel centres for "nearest", antialiasing when shrinking,
and no ``align_corners``.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dynpix_jax.core.typing import Array

RESIZE_SCOPE = "resize"
"""Name of products that only resize in the counts of `flops` (MacReport.without_resizing)."""


def resize_bilinear(x: Array, size: tuple[int, int], *, align_corners: bool = False) -> Array:
    """Bilinear resizing without antialiasing.

    Two products with small interpolation matrices: fast forward and backward on every backend. Every value of
    a row or column has a weight, possibly 0, so the input must be finite.

    Args:
        x: (B, H, W, C), floating.
        size: (H', W') of the result.
        align_corners: Whether the centres of the corner pixels coincide (True) or their outer corners
            (False).

    Returns:
        (B, H', W', C) of the dtype of ``x``, rounded to it after each axis.

    Raises:
        ValueError: ``x`` is not four-dimensional or not floating, or a size is empty.
    """
    _check("resize_bilinear", x, size)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"resize_bilinear: x must be floating, got {x.dtype}; resize_nearest takes labels")
    height, width = size
    # The axis that grows least goes first: the second product then works on the smaller array.
    axes = (1, 2) if height * x.shape[2] <= width * x.shape[1] else (2, 1)
    for axis in axes:
        new = height if axis == 1 else width
        if new != x.shape[axis]:
            x = _interpolate(x, _bilinear_matrix(x.shape[axis], new, align_corners=align_corners), axis)
    return x


def resize_nearest(x: Array, size: tuple[int, int]) -> Array:
    """Nearest-neighbour resizing: pixel i of the result is pixel floor(i * H / H') of the input.

    Args:
        x: (B, H, W, C) or (B, H, W), any dtype.
        size: (H', W') of the result.

    Raises:
        ValueError: ``x`` has another number of dimensions, or a size is empty.
    """
    _check("resize_nearest", x, size, ranks=(3, 4))
    for axis, new in zip((1, 2), size, strict=True):
        old = x.shape[axis]
        index = _nearest_index(old, new)
        # Slices and repetitions are cheaper than a gather.
        if np.array_equal(index, np.arange(old)):
            continue
        if old % new == 0 and np.array_equal(index, np.arange(0, old, old // new)):
            x = lax.slice_in_dim(x, 0, None, stride=old // new, axis=axis)
        elif new % old == 0 and np.array_equal(index, np.arange(new) // (new // old)):
            x = jnp.repeat(x, new // old, axis=axis)
        else:
            x = jnp.take(x, jnp.asarray(index), axis=axis, mode="clip")
    return x


def cells_to_pixels(x: Array, size: tuple[int, int], stride: int) -> Array:
    """Every pixel takes the nearest cell of a network's map, whose cell i lies at pixel ``stride * i``.

    A ResNet's padding puts it there. :func:`resize_nearest` would stretch the map, and shift it by up to half
    a cell.

    Args:
        x: (B, h, w) or (B, h, w, C); any dtype.
        size: (H, W) of the image.
        stride: Pixels from cell to cell.

    Returns:
        (B, H, W[, C]). Pixels beyond the last cell take its value; midway the later cell is taken.
    """
    _check("cells_to_pixels", x, size, ranks=(3, 4))
    for axis, new in zip((1, 2), size, strict=True):
        x = jnp.take(x, jnp.asarray(_nearest_cells(new, x.shape[axis], stride)), axis=axis, mode="clip")
    return x


def pixels_to_cells(marked: Array, size: tuple[int, int], stride: int) -> Array:
    """The cells of a network's map that are the nearest cell of a marked pixel; see :func:`cells_to_pixels`.

    Args:
        marked: bool (B, H, W), pixels of the image.
        size: (h, w) of the map.
        stride: Pixels from cell to cell.

    Returns:
        bool (B, h, w).
    """
    _check("pixels_to_cells", marked, size, ranks=(3,))
    counts = marked[..., None].astype(jnp.float32)
    for axis, cells in zip((1, 2), size, strict=True):
        nearest = _nearest_cells(marked.shape[axis], cells, stride)
        counts = _interpolate(counts, np.equal.outer(np.arange(cells), nearest), axis)
    return counts[..., 0] > 0.5


def resize_images(images: Array, size: tuple[int, int]) -> Array:
    """(B, H, W, 3) images at another size: bilinear, blurred first when made smaller."""
    if images.shape[1:3] == size:
        return images
    shape = (images.shape[0], *size, images.shape[3])
    resized: Array = jax.image.resize(images.astype(jnp.float32), shape, "linear", antialias=True)
    return resized


def mean_scale(old: Sequence[int], new: Sequence[int]) -> float:
    """The scale between two sizes (H, W): the geometric mean over both sides, which differ by rounding."""
    return float(np.sqrt(new[0] / old[0] * new[1] / old[1]))


def _nearest_index(old: int, new: int) -> np.ndarray:
    # In float32 like PyTorch: where i * scale is a whole number, the rounding decides (2 -> 82 repeats the
    # first pixel 42 times). Doubling is exact.
    if new == 2 * old:
        return np.arange(new) // 2
    scale = np.float32(old) / np.float32(new)
    index: np.ndarray = np.floor(np.arange(new, dtype=np.float32) * scale).astype(np.int32)
    return index.clip(max=old - 1)


def _nearest_cells(pixels: int, cells: int, stride: int) -> np.ndarray:
    """The nearest cell of each pixel of a row; midway the later one."""
    nearest: np.ndarray = np.minimum((np.arange(pixels) + stride // 2) // stride, cells - 1)
    return nearest


def _check(name: str, x: Array, size: tuple[int, int], ranks: tuple[int, ...] = (4,)) -> None:
    if x.ndim not in ranks:
        shapes = " or ".join("(B, H, W, C)" if rank == 4 else "(B, H, W)" for rank in ranks)
        raise ValueError(f"{name}: x must be {shapes}, got shape {x.shape}")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"{name}: size must be two positive integers (H, W), got {size}")


def _bilinear_matrix(old: int, new: int, *, align_corners: bool) -> np.ndarray:
    """(new, old) weights; each row has one or two entries and sums to 1."""
    target = np.arange(new)
    if align_corners:
        source = target * ((old - 1) / (new - 1) if new > 1 else 0.0)
    else:
        source = np.maximum((target + 0.5) * (old / new) - 0.5, 0.0)
    low = np.minimum(source.astype(np.int64), old - 1)
    high = np.minimum(low + 1, old - 1)
    fraction = source - low
    matrix = np.zeros((new, old))
    np.add.at(matrix, (target, low), 1 - fraction)
    np.add.at(matrix, (target, high), fraction)
    return matrix


def _interpolate(x: Array, matrix: np.ndarray, axis: int) -> Array:
    # HIGHEST: an accelerator's default (bfloat16, TF32) would show as an error of up to 1 in 250.
    weights = jnp.asarray(matrix, x.dtype)
    equation = "ph,bhwc->bpwc" if axis == 1 else "pw,bhwc->bhpc"
    with jax.named_scope(RESIZE_SCOPE):
        return jnp.einsum(equation, weights, x, precision=lax.Precision.HIGHEST)
