"""Feature maps read at pixels: bilinear samples, and linear layers of them, sparse or at every pixel.

Cell t of a map with stride s covers s x s pixels and lies in their middle: pixel p is at t = (p - (s - 1) /
2) / s. Beyond the outermost cells the map is constant. Source: the sampling layer of PixelNet (Bansal
et al., arXiv 1609.06694, section 3) as released, which has no value beyond the last cell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from dynpix_jax.core.typing import Array

Order = Literal["sample_first", "product_first"]
ORDERS: tuple[Order, ...] = ("sample_first", "product_first")

# Multiply-adds in the time of one of an interpolation's four terms, which is bound by memory.
_TERM = 8


def sample_bilinear(features: Array, points: Array, *, stride: int) -> Array:
    """Bilinear samples of a map at pixels, by one gather.

    Args:
        features: (B, h, w, C).
        points: Integers or floats, pixels from 0: (B, N, 2), rows (y, x) of each image, or (N, 3), rows
            (image, y, x) of the whole batch. Images are indices in 0..B - 1.
        stride: Pixels from cell to cell.

    Returns:
        (B, N, C) or (N, C) of the dtype of ``features``. Its gradient adds each row's to four cells.

    Raises:
        ValueError: The shapes do not fit, or a stride below 1.
    """
    _check("sample_bilinear", [features], points, [stride])
    if points.ndim == 3:
        return jax.vmap(partial(_at, stride=stride))(features, points)
    # The images one below the other, as rows of one table.
    batch, height, width, channels = features.shape
    table = features.reshape(batch * height, width, channels)
    first = points[:, 0].astype(jnp.int32) * height
    return _at(table, points[:, 1:], stride, first, height)


def sample_linear(
    maps: Sequence[Array],
    points: Array,
    kernels: Sequence[Array],
    *,
    strides: Sequence[int],
    bias: Array | None = None,
    order: Order | None = None,
) -> Array:
    """A linear layer of hypercolumns at pixels, without joining the maps' samples.

    It sums each map's samples times its part of the kernel. Interpolation and product commute, so a map may
    be multiplied first, which is faster if it has fewer cells than there are points.

    Args:
        maps: (B, h, w, C), one a layer.
        points: As for `sample_bilinear`.
        kernels: (C, D), a map each.
        strides: Strides of the maps.
        bias: (D,) or None.
        order: Order of sample and product; None selects the faster by the shapes of each map.

    Returns:
        (B, N, D) or (N, D).

    Raises:
        ValueError: The shapes do not fit, or an unknown order.
    """
    _check("sample_linear", maps, points, strides, kernels)
    count = points.shape[0] * (points.shape[1] if points.ndim == 3 else 1)
    total = bias
    for features, kernel, stride in zip(maps, kernels, strides, strict=True):
        cells = features.shape[0] * features.shape[1] * features.shape[2]
        if (order or faster_order(cells, count, *kernel.shape)) == "product_first":
            part = sample_bilinear(features @ kernel, points, stride=stride)
        else:
            part = sample_bilinear(features, points, stride=stride) @ kernel
        total = part if total is None else total + part
    assert total is not None
    return total


def faster_order(cells: int, points: int, channels: int, features: int) -> Order:
    """Whether a map of so many ``cells`` and ``channels`` is sampled before or after its product.

    Args:
        points: Number of sampled points.
        features: Channels of the product.
    """
    sample_first = points * (channels * features + _TERM * 4 * channels)
    product_first = cells * channels * features + points * _TERM * 4 * features
    return "product_first" if product_first < sample_first else "sample_first"


def linear_everywhere(
    maps: Sequence[Array],
    kernels: Sequence[Array],
    head: Callable[[Array], Array],
    *,
    strides: Sequence[int],
    size: tuple[int, int],
    bias: Array | None = None,
    offset: int = 0,
    chunk: int = 4096,
) -> Array:
    """``head`` of `sample_linear` at every pixel, in bands of rows: the memory is that of one band.

    Args:
        maps: As for `sample_linear`.
        kernels: As for `sample_linear`.
        strides: As for `sample_linear`.
        bias: As for `sample_linear`.
        head: (n, w, D) -> (n, w, K), pixel by pixel.
        size: (H, W) of the result.
        offset: Row and column of its first pixel in the maps' image.
        chunk: Pixels of a band, at most; but at least a row of the image, and rows that share the work
            evenly.

    Returns:
        (B, H, W, K).

    Raises:
        ValueError: The shapes do not fit, or a chunk below 1.
    """
    _check("linear_everywhere", maps, None, strides, kernels)
    if chunk < 1:
        raise ValueError(f"linear_everywhere: chunk: {chunk}; expected at least 1")
    batch, (height, width) = maps[0].shape[0], size
    bands = -(-height // max(1, chunk // width))
    rows = -(-height // bands)

    def band(index: Array) -> Array:
        image, first = index // bands, index % bands * rows
        total = bias
        for features, kernel, stride in zip(maps, kernels, strides, strict=True):
            cells = min(features.shape[1], -(-(rows - 1) // stride) + 2)
            top = _cell(first + offset, stride, features.shape[1]).astype(jnp.int32)
            top = jnp.clip(top, 0, features.shape[1] - cells)
            start = (image, top, 0, 0)
            part = lax.dynamic_slice(features, start, (1, cells, *features.shape[2:]))[0]
            y = _cell(first + offset + jnp.arange(rows), stride, features.shape[1]) - top
            x = _cell(offset + jnp.arange(width), stride, features.shape[2])
            order = faster_order(cells * features.shape[2], rows * width, *kernel.shape)
            if order == "product_first":
                part = _grid(part @ kernel, y, x)
            else:
                part = _grid(part, y, x) @ kernel
            total = part if total is None else total + part
        assert total is not None
        return head(total)

    found = lax.map(band, jnp.arange(batch * bands))
    return found.reshape(batch, bands * rows, *found.shape[2:])[:, :height]


def hypercolumns(maps: Sequence[Array], *, strides: Sequence[int], size: tuple[int, int]) -> Array:
    """All maps interpolated at every pixel, side by side: (B, H, W, sum of C).

    `sample_linear` and `linear_everywhere` avoid these arrays; for comparison and inspection.

    Args:
        maps: (B, h, w, C), one a layer.
        strides: Strides of the maps.
        size: (H, W).

    Raises:
        ValueError: The shapes do not fit.
    """
    _check("hypercolumns", maps, None, strides)
    y, x = jnp.arange(size[0]), jnp.arange(size[1])
    return jnp.concatenate(
        [
            jax.vmap(_grid, in_axes=(0, None, None))(
                features, _cell(y, stride, features.shape[1]), _cell(x, stride, features.shape[2])
            )
            for features, stride in zip(maps, strides, strict=True)
        ],
        axis=-1,
    )


def _cell(pixel: Array, stride: int, cells: int) -> Array:
    """Where a pixel lies among the cells of an axis, the outermost for what is beyond; float32."""
    place = (jnp.asarray(pixel, jnp.float32) - (stride - 1) / 2) / stride
    return jnp.clip(place, 0.0, cells - 1)


def _corners(place: Array, cells: int) -> tuple[Array, Array, Array]:
    """(lower cell, upper cell, weight of the upper) of places in 0..cells - 1."""
    low = jnp.minimum(jnp.floor(place).astype(jnp.int32), cells - 1)
    return low, jnp.minimum(low + 1, cells - 1), place - low


def _at(table: Array, points: Array, stride: int, first: Array | int = 0, height: int | None = None) -> Array:
    """Samples (N, C) of (h, w, C) at rows (y, x); of the ``height`` rows from ``first`` on."""
    rows, width, channels = table.shape
    height = height or rows
    low_y, high_y, part_y = _corners(_cell(points[:, 0], stride, height), height)
    low_x, high_x, part_x = _corners(_cell(points[:, 1], stride, width), width)
    y = jnp.stack([low_y, low_y, high_y, high_y], axis=1) + jnp.reshape(first, (-1, 1))
    x = jnp.stack([low_x, high_x, low_x, high_x], axis=1)
    over_y, over_x = jnp.stack([1 - part_y, part_y], 1), jnp.stack([1 - part_x, part_x], 1)
    weight = (over_y[:, :, None] * over_x[:, None, :]).reshape(-1, 4)
    # Gathered from float32: the gradient adds many rows to a cell.
    wide = table.astype(jnp.promote_types(table.dtype, jnp.float32)).reshape(rows * width, channels)
    cells = jnp.take(wide, y * width + x, axis=0, mode="clip")
    return (cells * weight[..., None].astype(wide.dtype)).sum(1).astype(table.dtype)


def _grid(part: Array, y: Array, x: Array) -> Array:
    """(h, w, C) at all pairs of places y (H,) and x (W,): (H, W, C)."""
    for axis, place in enumerate((y, x)):
        low, high, weight = _corners(place, part.shape[axis])
        weight = jnp.expand_dims(weight, (1, 2) if axis == 0 else (0, 2)).astype(part.dtype)
        lower = jnp.take(part, low, axis=axis, mode="clip")
        part = lower + (jnp.take(part, high, axis=axis, mode="clip") - lower) * weight
    return part


def _check(
    name: str,
    maps: Sequence[Array],
    points: Array | None,
    strides: Sequence[int],
    kernels: Sequence[Array] | None = None,
) -> None:
    if not maps or any(features.ndim != 4 for features in maps):
        shapes = [features.shape for features in maps]
        raise ValueError(f"{name}: features must be (B, h, w, C), at least one map, got {shapes}")
    if len({features.shape[0] for features in maps}) > 1:
        raise ValueError(f"{name}: maps of {sorted({features.shape[0] for features in maps})} images")
    if len(strides) != len(maps) or any(stride < 1 for stride in strides):
        raise ValueError(f"{name}: strides {list(strides)} of {len(maps)} maps; expected one >= 1 each")
    if points is not None:
        _check_points(name, points, maps[0].shape[0])
    if kernels is not None:
        _check_kernels(name, kernels, [features.shape[-1] for features in maps])


def _check_points(name: str, points: Array, images: int) -> None:
    batched = points.ndim == 3 and points.shape[::2] == (images, 2)
    if not batched and not (points.ndim == 2 and points.shape[1] == 3):
        raise ValueError(
            f"{name}: points must be ({images}, N, 2), rows (y, x), or (N, 3), rows (image, y, x), "
            f"got {points.shape}"
        )


def _check_kernels(name: str, kernels: Sequence[Array], channels: Sequence[int]) -> None:
    shapes = [kernel.shape for kernel in kernels]
    features = shapes[0][-1] if shapes else 0
    if shapes != [(below, features) for below in channels]:
        raise ValueError(f"{name}: kernels of shapes {shapes} for maps with {list(channels)} channels")
