"""Runs of masked 3x3 layers on the rows that matter, one after another, without their maps.

Between two exits a mask does not change, so neither does what has to be read for what: here the positions are
listed once, and every layer of a run works on compact arrays of rows (row, channel). Row 0 stands for all
outside of the image and is zero. Then come the active rows; then, at `ring`, rows that are interpolated
because somebody reads them. The others of the map are never touched.

Beside `map_active`, which these loops follow in their chunks, a layer here writes no map of zeros first,
finds no address twice, and its norm, ReLU and sum are done while the rows are in the cache.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dynpix_jax.core.typing import Array, Mask
from dynpix_jax.ops.interpolation import EPSILON, Normalize
from dynpix_jax.ops.sparse.active import chunk_size

Carry = TypeVar("Carry")
Affine = tuple[Array, Array]

_NEGLIGIBLE = 1e-14
"""Weights below add less than 1e-9 of a value: what they are divided by is at least EPSILON."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["places", "windows", "spots", "near", "active", "ring", "end"],
    meta_fields=["shape", "radius", "chunk", "rest"],
)
@dataclasses.dataclass(frozen=True)
class ActiveRows:
    """The rows of a mask; a pytree, made by :func:`active_rows`.

    Attributes:
      places: int32 (L,); flat position of each row in (B, H, W), B*H*W for rows that are none.
      windows: int32 (L, 9); the rows that the 3x3 window of an active row reads.
      spots: int32 (L,); flat position in the map padded by ``radius``.
      near: int32 (B*(H+2*radius)*(W+2*radius),); the row of each active position, 0 elsewhere.
      active, ring, end: int32 scalars; number of active rows, first interpolated row, last row + 1.
      shape: (B, H, W). radius: of the interpolation. chunk, rest: rows at a time.
    """

    places: Array
    windows: Array
    spots: Array
    near: Array
    active: Array
    ring: Array
    end: Array
    shape: tuple[int, int, int]
    radius: int
    chunk: int
    rest: int


@dataclasses.dataclass(frozen=True)
class Layer:
    """kernel (3, 3, C, C); affine: multiplier and offset (C,) of its norm; lam: of its interpolation."""

    kernel: Array
    affine: Affine
    lam: Array


def active_rows(mask: Mask, needed: Mask, channels: int, *, radius: int) -> ActiveRows:
    """Lists the rows of a mask.

    Args:
      mask: bool (B, H, W), True = compute.
      needed: bool (B, H, W); positions whose values will be read. Has to hold the mask, and to be complete
        its 3x3 neighbourhood.
      channels: of the layers, for the size of chunks.
      radius: of the interpolation, at least 1.
    """
    batch, height, width = mask.shape
    size = mask.size
    chunk = min(chunk_size(channels, (3, 3)), size)
    rest = min(chunk, max(chunk // 8, 32))
    length = 1 + size + rest + chunk
    flat, interpolated = mask.reshape(-1), (needed & ~mask).reshape(-1)
    count = jnp.sum(flat, dtype=jnp.int32)
    ring = 1 + (count + rest - 1) // rest * rest
    end = ring + jnp.sum(interpolated, dtype=jnp.int32)
    row = jnp.where(
        flat,
        jnp.cumsum(flat, dtype=jnp.int32),
        jnp.where(interpolated, ring - 1 + jnp.cumsum(interpolated, dtype=jnp.int32), 0),
    )
    position = jnp.arange(size, dtype=jnp.int32)
    target = jnp.where(row > 0, row, length + position)
    places = jnp.full((length,), size, jnp.int32)
    places = places.at[target].set(position, mode="drop", unique_indices=True)

    pad = ((0, 0), (radius, radius), (radius, radius))
    padded = jnp.pad(row.reshape(mask.shape), pad)
    shifted = [
        padded[:, radius + i : radius + i + height, radius + j : radius + j + width]
        for i in (-1, 0, 1)
        for j in (-1, 0, 1)
    ]
    windows = jnp.stack(shifted, -1).reshape(size, 9)
    windows = windows.at[places].get(mode="fill", fill_value=0)
    near = jnp.pad(jnp.where(mask, row.reshape(mask.shape), 0), pad).reshape(-1)
    image, within = places // (height * width), places % (height * width)
    rows, columns = within // width + radius, within % width + radius
    spots = (image * (height + 2 * radius) + rows) * (width + 2 * radius) + columns
    # Rows that are none look at the first position: some address is needed.
    spots = jnp.where(places < size, spots, radius * (width + 2 * radius) + radius)
    return ActiveRows(
        places, windows, spots, near, count, ring, end, (batch, height, width), radius, chunk, rest
    )


def load(x: Array, rows: ActiveRows) -> Array:
    """(B, H, W, C) -> the compact rows (L, C)."""
    flat = x.reshape(-1, x.shape[-1])

    def body(size: int, first: Array, out: Array) -> Array:
        places = lax.dynamic_slice(rows.places, (first,), (size,))
        return lax.dynamic_update_slice(out, flat.at[places].get(mode="fill", fill_value=0), (first, 0))

    start = jnp.zeros((len(rows.places), x.shape[-1]), x.dtype)
    return _sweep(rows, jnp.int32(1), rows.end - 1, body, start)


def store(compact: Array, rows: ActiveRows, x: Array) -> Array:
    """The compact rows written over ``x`` (B, H, W, C)."""

    def body(size: int, first: Array, out: Array) -> Array:
        places = lax.dynamic_slice(rows.places, (first,), (size,))
        # Rows that are none aim past the end, each at its own place.
        places = jnp.where(places < len(out), places, len(out) + jnp.arange(size, dtype=jnp.int32))
        values = lax.dynamic_slice(compact, (first, 0), (size, compact.shape[1]))
        return out.at[places].set(values, mode="drop", unique_indices=True)

    return _sweep(rows, jnp.int32(1), rows.end - 1, body, x.reshape(-1, x.shape[-1])).reshape(x.shape)


def residual_blocks(
    x: Array, blocks: list[tuple[Layer, Layer]], rows: ActiveRows, *, normalize: Normalize
) -> Array:
    """Residual blocks x <- ReLU(x + N2(C2(ReLU(N1(C1(x)))))), their convolutions masked and interpolated.

    Args:
      x: (B, H, W, C), right at the rows.
      blocks: the two layers of each.

    Returns:
      (B, H, W, C), right at the rows; elsewhere x.
    """
    stream = load(x, rows)
    hidden, raw = jnp.zeros_like(stream), jnp.zeros_like(stream)
    for first, second in blocks:
        hidden, raw = _layer(stream, hidden, raw, first, rows, normalize, residual=False)
        stream, raw = _layer(hidden, stream, raw, second, rows, normalize, residual=True)
    return store(stream, rows, x)


def _layer(
    source: Array,
    out: Array,
    raw: Array,
    layer: Layer,
    rows: ActiveRows,
    normalize: Normalize,
    residual: bool,
) -> tuple[Array, Array]:
    """One layer from ``source`` into ``out``; ``raw`` takes what the convolution itself gives."""
    kernel = layer.kernel.reshape(-1, layer.kernel.shape[-1]).astype(source.dtype)
    multiplier, offset = (value.astype(source.dtype) for value in layer.affine)
    channels = out.shape[1]

    def write(size: int, first: Array, out: Array, y: Array) -> Array:
        y = y * multiplier + offset
        if residual:
            y = lax.dynamic_slice(out, (first, 0), (size, channels)) + y
        return lax.dynamic_update_slice(out, jax.nn.relu(y), (first, 0))

    def convolve(size: int, first: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        out, raw = carry
        taps = lax.dynamic_slice(rows.windows, (first, 0), (size, 9))
        y = _gather(source, taps, rows.active).reshape(size, -1) @ kernel
        return write(size, first, out, y), lax.dynamic_update_slice(raw, y, (first, 0))

    def interpolate(size: int, first: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        out, raw = carry
        spots = lax.dynamic_slice(rows.spots, (first,), (size,))

        def at(offset: Array) -> tuple[Array, Array]:
            index = rows.near[spots + offset]
            return raw[index], index > 0

        y = _mean_of_neighbours(at, (size, channels), source.dtype, layer.lam, rows, normalize)
        return write(size, first, out, y), raw

    carry = _sweep(rows, jnp.int32(1), rows.active, convolve, (out, raw))
    return _sweep(rows, rows.ring, rows.end - rows.ring, interpolate, carry)


def fill_rows(y: Array, rows: ActiveRows, lam: Array, *, normalize: Normalize) -> Array:
    """``y`` (B, H, W, C) with the interpolated rows filled from active ones; the others stay as they are."""
    channels = y.shape[-1]
    flat = y.reshape(-1, channels)

    def body(size: int, first: Array, out: Array) -> Array:
        spots = lax.dynamic_slice(rows.spots, (first,), (size,))
        places = lax.dynamic_slice(rows.places, (first,), (size,))

        def at(offset: Array) -> tuple[Array, Array]:
            row = rows.near[spots + offset]
            return out.at[rows.places[row]].get(mode="fill", fill_value=0), row > 0

        filled = _mean_of_neighbours(at, (size, channels), y.dtype, lam, rows, normalize)
        places = jnp.where(places < len(out), places, len(out) + jnp.arange(size, dtype=jnp.int32))
        return out.at[places].set(filled, mode="drop", unique_indices=True)

    return _sweep(rows, rows.ring, rows.end - rows.ring, body, flat).reshape(y.shape)


def _mean_of_neighbours(
    at: Callable[[Array], tuple[Array, Array]],
    shape: tuple[int, int],
    dtype: jnp.dtype,
    lam: Array,
    rows: ActiveRows,
    normalize: Normalize,
) -> Array:
    """Eq. 3 at some rows; ``at(offset)`` gives values and whether there are any, offset in the padded map.

    Neighbours are visited in order of their distance, and only as far as their weight matters.
    """
    r, width = rows.radius, rows.shape[2] + 2 * rows.radius
    steps = [(i, j) for i in range(-r, r + 1) for j in range(-r, r + 1) if (i, j) != (0, 0)]
    steps.sort(key=lambda step: step[0] ** 2 + step[1] ** 2)
    offsets = jnp.asarray(np.array([i * width + j for i, j in steps], np.int32))
    weights = jnp.exp(-(lam**2) * np.array([i * i + j * j for i, j in steps], np.float32))
    count = jnp.sum(weights > _NEGLIGIBLE, dtype=jnp.int32)

    def add(index: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        values, there = at(offsets[index])
        weight = weights[index] * there
        return sums[0] + weight[:, None].astype(dtype) * values, sums[1] + weight

    start = (jnp.zeros(shape, dtype), jnp.zeros(shape[:1], jnp.float32))
    values, present = lax.fori_loop(0, count, add, start)
    total = weights.sum() if normalize == "full" else present
    return values / (total + EPSILON).astype(dtype)[..., None]


def _gather(source: Array, taps: Array, count: Array) -> Array:
    def read() -> Array:
        return source.at[taps.reshape(-1)].get(mode="promise_in_bounds")

    def apart() -> Array:
        # See ops.active: XLA's CPU compiler must not fuse what follows into the gather.
        return lax.cond(count > 0, read, lambda: jnp.zeros((taps.size, source.shape[1]), source.dtype))

    return lax.platform_dependent(cpu=apart, default=read)


def _sweep(
    rows: ActiveRows,
    start: Array,
    count: Array,
    body: Callable[[int, Array, Carry], Carry],
    carry: Carry,
) -> Carry:
    """body(size, first row, carry) over full chunks, then over shorter ones; the last may reach beyond."""
    full = count // rows.chunk if rows.rest < rows.chunk else 0
    done = full * rows.chunk
    trips = (count - done + rows.rest - 1) // rows.rest
    if rows.rest < rows.chunk:
        carry = lax.fori_loop(0, full, lambda i, c: body(rows.chunk, start + i * rows.chunk, c), carry)
    return lax.fori_loop(0, trips, lambda i, c: body(rows.rest, start + done + i * rows.rest, c), carry)
