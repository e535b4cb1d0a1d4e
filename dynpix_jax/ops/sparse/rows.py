"""Rows that share a mask: the form of an active set for consecutive layers under one mask.

Between two exits of a network the mask does not change, nor do the addresses that its layers read. The
positions are listed once, and every layer works on compact arrays (row, channel): row 0 stands for positions
outside the image and is zero; then come the active rows; then the interpolated rows, which are read but not
computed. The other positions of the map are never touched.

Compared with :func:`~dynpix_jax.ops.sparse.windows.map_active`, a layer writes no map of zeros first,
computes no address twice, and applies its norm, ReLU and sum while the rows are in the cache.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dynpix_jax.core.typing import Array, Mask
from dynpix_jax.ops.interpolation import EPSILON, Normalize, interpolate_masked
from dynpix_jax.ops.sparse.chunks import Chunks, chunk_size, read_rows
from dynpix_jax.ops.sparse.layers import Convolution, Interpolation, Layer, ResidualBlock, everywhere, on_rows

# Smaller weights add less than 1e-9 of a value: they are divided by at least EPSILON.
_NEGLIGIBLE = 1e-14


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "mask",
        "needed",
        "positions",
        "windows",
        "padded_index",
        "known_row",
        "count",
        "interpolated",
        "end",
    ],
    meta_fields=["radius", "chunks"],
)
@dataclasses.dataclass(frozen=True)
class ActiveRows:
    """The rows of a mask; a pytree, made by :func:`active_rows`.

    Attributes:
        mask: bool (B, H, W); True = compute.
        needed: bool (B, H, W); the positions whose values are read.
        positions: int32 (L,); flat position of each row in (B, H, W), B*H*W for idle rows.
        windows: int32 (L, 9); the rows that the 3x3 window of an active row reads.
        padded_index: int32 (L,); flat position of each row in the map padded by ``radius``.
        known_row: int32 (B*(H+2*radius)*(W+2*radius),); the row of each active position, 0 elsewhere.
        count: int32 scalar; number of active rows.
        interpolated: int32 scalar; the first interpolated row.
        end: int32 scalar; the last row + 1.
        radius: Radius of the interpolation.
        chunks: Sizes of the chunks of rows.
    """

    mask: Mask
    needed: Mask
    positions: Array
    windows: Array
    padded_index: Array
    known_row: Array
    count: Array
    interpolated: Array
    end: Array
    radius: int
    chunks: Chunks


def active_rows(mask: Mask, needed: Mask, channels: int, *, radius: int) -> ActiveRows:
    """Lists the rows of a mask.

    Args:
        mask: bool (B, H, W), True = compute.
        needed: bool (B, H, W); positions whose values will be read. It must contain the mask and its 3x3
            neighbourhood.
        channels: Channels of the layers, for the size of chunks.
        radius: Radius of the interpolation, at least 1.
    """
    _, height, width = mask.shape
    size = mask.size
    chunks = Chunks.of(size, chunk_size(channels, (3, 3)))
    length = 1 + size + chunks.rest + chunks.full
    flat, skipped = mask.reshape(-1), (needed & ~mask).reshape(-1)
    count = jnp.sum(flat, dtype=jnp.int32)
    interpolated = 1 + (count + chunks.rest - 1) // chunks.rest * chunks.rest
    end = interpolated + jnp.sum(skipped, dtype=jnp.int32)
    row = jnp.where(
        flat,
        jnp.cumsum(flat, dtype=jnp.int32),
        jnp.where(skipped, interpolated - 1 + jnp.cumsum(skipped, dtype=jnp.int32), 0),
    )
    position = jnp.arange(size, dtype=jnp.int32)
    target = jnp.where(row > 0, row, length + position)
    positions = jnp.full((length,), size, jnp.int32)
    positions = positions.at[target].set(position, mode="drop", unique_indices=True)

    pad = ((0, 0), (radius, radius), (radius, radius))
    padded = jnp.pad(row.reshape(mask.shape), pad)
    shifted = [
        padded[:, radius + i : radius + i + height, radius + j : radius + j + width]
        for i in (-1, 0, 1)
        for j in (-1, 0, 1)
    ]
    windows = jnp.stack(shifted, -1).reshape(size, 9)
    windows = windows.at[positions].get(mode="fill", fill_value=0)
    known_row = jnp.pad(jnp.where(mask, row.reshape(mask.shape), 0), pad).reshape(-1)
    image, within = positions // (height * width), positions % (height * width)
    rows, columns = within // width + radius, within % width + radius
    padded_index = (image * (height + 2 * radius) + rows) * (width + 2 * radius) + columns
    # Idle rows read the first position: they need an address.
    padded_index = jnp.where(positions < size, padded_index, radius * (width + 2 * radius) + radius)
    return ActiveRows(
        mask,
        needed,
        positions,
        windows,
        padded_index,
        known_row,
        count,
        interpolated,
        end,
        radius,
        chunks,
    )


def run_on_rows(blocks: Sequence[ResidualBlock], x: Array, rows: ActiveRows) -> Array:
    """Residual blocks whose convolutions are masked and interpolated.

    Args:
        blocks: Blocks whose layers are groups of a 3x3 `Convolution`, its `Interpolation`, and layers of
            single rows.
        x: (B, H, W, C), correct at needed positions.
        rows: Rows of the mask.

    Returns:
        (B, H, W, C), correct at needed positions; elsewhere x.
    """
    stream = _load(x, rows)
    raw = jnp.zeros_like(stream)
    # Two buffers: each group reads one and writes the other.
    hidden = [jnp.zeros_like(stream), jnp.zeros_like(stream)]
    for block in blocks:
        *inner, last = _groups(block)
        source = stream
        for turn, group in enumerate(inner):
            hidden[turn % 2], raw = _run_group(group, source, hidden[turn % 2], raw, rows, residual=False)
            source = hidden[turn % 2]
        stream, raw = _run_group(last, source, stream, raw, rows, residual=True)
    return _store(stream, rows, x)


def definition_on_rows(blocks: Sequence[Layer], x: Array, rows: ActiveRows) -> Array:
    """:func:`run_on_rows` computed on whole maps; differentiable."""

    def interpolate(layer: Interpolation, y: Array) -> Array:
        return interpolate_masked(y, rows.mask, layer.lam, radius=rows.radius, normalize=layer.normalize)

    return jnp.where(rows.needed[..., None], everywhere(blocks, x, interpolate=interpolate), x)


def interpolate_rows(y: Array, rows: ActiveRows, layer: Interpolation) -> Array:
    """``y`` (B, H, W, C) with the interpolated rows filled from active ones; others keep their values."""

    @jax.custom_vjp
    def run(y: Array, lam: Array, rows: ActiveRows) -> Array:
        return _interpolate_rows(y, rows, lam, layer.normalize)

    def forward(y: Array, lam: Array, rows: ActiveRows) -> tuple[Array, tuple[Array, Array, ActiveRows]]:
        return run(y, lam, rows), (y, lam, rows)

    def backward(saved: tuple[Array, Array, ActiveRows], gradient: Array) -> tuple[Array, Array, None]:
        y, lam, rows = saved

        def definition(y: Array, lam: Array) -> Array:
            return definition_on_rows([Interpolation(lam, layer.normalize)], y, rows)

        return *jax.vjp(definition, y, lam)[1](gradient), None

    run.defvjp(forward, backward)
    return run(y, layer.lam, rows)


_Group = tuple[Convolution, Interpolation, tuple[Layer, ...]]


def _groups(block: ResidualBlock) -> list[_Group]:
    starts = [i for i, layer in enumerate(block.layers) if isinstance(layer, Convolution)]
    groups: list[_Group] = []
    for start, end in zip(starts, [*starts[1:], len(block.layers)], strict=True):
        convolution, interpolation = block.layers[start : start + 2]
        assert isinstance(convolution, Convolution)
        if not isinstance(interpolation, Interpolation):
            raise ValueError("sparse_block: each convolution of a residual block needs its interpolation")
        groups.append((convolution, interpolation, block.layers[start + 2 : end]))
    return groups


def _load(x: Array, rows: ActiveRows) -> Array:
    """(B, H, W, C) -> the compact rows (L, C)."""
    flat = x.reshape(-1, x.shape[-1])

    def body(size: int, first: Array, out: Array) -> Array:
        positions = lax.dynamic_slice(rows.positions, (first,), (size,))
        return lax.dynamic_update_slice(out, flat.at[positions].get(mode="fill", fill_value=0), (first, 0))

    start = jnp.zeros((len(rows.positions), x.shape[-1]), x.dtype)
    return rows.chunks.sweep(rows.end - 1, body, start, first=1, short=True)


def _store(compact: Array, rows: ActiveRows, x: Array) -> Array:
    """The compact rows written over ``x`` (B, H, W, C)."""

    def body(size: int, first: Array, out: Array) -> Array:
        positions = lax.dynamic_slice(rows.positions, (first,), (size,))
        # Idle rows write past the end, each to its own index.
        positions = jnp.where(positions < len(out), positions, len(out) + jnp.arange(size, dtype=jnp.int32))
        values = lax.dynamic_slice(compact, (first, 0), (size, compact.shape[1]))
        return out.at[positions].set(values, mode="drop", unique_indices=True)

    return rows.chunks.sweep(rows.end - 1, body, x.reshape(-1, x.shape[-1]), first=1, short=True).reshape(
        x.shape
    )


def _run_group(
    group: _Group, source: Array, out: Array, raw: Array, rows: ActiveRows, *, residual: bool
) -> tuple[Array, Array]:
    """Runs one group from ``source`` into ``out``; ``raw`` stores the output of the convolution itself.

    ``residual``: the result is added to ``out``, and a ReLU follows.
    """
    convolution, interpolation, rest = group
    channels = out.shape[1]

    def write(size: int, first: Array, out: Array, y: Array) -> Array:
        y = on_rows(rest, y)
        if residual:
            y = jax.nn.relu(lax.dynamic_slice(out, (first, 0), (size, channels)) + y)
        return lax.dynamic_update_slice(out, y, (first, 0))

    def convolve(size: int, first: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        out, raw = carry
        taps = lax.dynamic_slice(rows.windows, (first, 0), (size, 9))
        y = convolution.on_rows(read_rows(source, taps, rows.count, inside=True).reshape(size, 9, -1))
        return write(size, first, out, y), lax.dynamic_update_slice(raw, y, (first, 0))

    def interpolate(size: int, first: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        out, raw = carry
        center = lax.dynamic_slice(rows.padded_index, (first,), (size,))

        def neighbour(offset: Array) -> tuple[Array, Array]:
            index = rows.known_row[center + offset]
            return raw[index], index > 0

        shape = jax.ShapeDtypeStruct((size, channels), source.dtype)
        y = _mean_of_neighbours(neighbour, shape, interpolation.lam, rows, interpolation.normalize)
        return write(size, first, out, y), raw

    carry = rows.chunks.sweep(rows.count, convolve, (out, raw), first=1)
    skipped = rows.end - rows.interpolated
    return rows.chunks.sweep(skipped, interpolate, carry, first=rows.interpolated, short=True)


def _interpolate_rows(y: Array, rows: ActiveRows, lam: Array, normalize: Normalize) -> Array:
    channels = y.shape[-1]

    def body(size: int, first: Array, out: Array) -> Array:
        center = lax.dynamic_slice(rows.padded_index, (first,), (size,))
        positions = lax.dynamic_slice(rows.positions, (first,), (size,))

        def neighbour(offset: Array) -> tuple[Array, Array]:
            row = rows.known_row[center + offset]
            return out.at[rows.positions[row]].get(mode="fill", fill_value=0), row > 0

        shape = jax.ShapeDtypeStruct((size, channels), y.dtype)
        filled = _mean_of_neighbours(neighbour, shape, lam, rows, normalize)
        positions = jnp.where(positions < len(out), positions, len(out) + jnp.arange(size, dtype=jnp.int32))
        return out.at[positions].set(filled, mode="drop", unique_indices=True)

    skipped, flat = rows.end - rows.interpolated, y.reshape(-1, channels)
    out = rows.chunks.sweep(skipped, body, flat, first=rows.interpolated, short=True)
    return out.reshape(y.shape)


def _mean_of_neighbours(
    neighbour: Callable[[Array], tuple[Array, Array]],
    result: jax.ShapeDtypeStruct,
    lam: Array,
    rows: ActiveRows,
    normalize: Normalize,
) -> Array:
    """Eq. 3 of the anytime paper at some rows.

    Neighbours are visited in order of distance, as long as their weight matters.

    Args:
        neighbour: Offset in the padded map -> values (n, C), and whether they are known (n,).
        result: Shape and dtype of the mean.
        lam: Parameter of the weights.
        rows: Rows of the mask.
        normalize: See `interpolate_masked`.
    """
    r, width = rows.radius, rows.mask.shape[2] + 2 * rows.radius
    steps = [(i, j) for i in range(-r, r + 1) for j in range(-r, r + 1) if (i, j) != (0, 0)]
    steps.sort(key=lambda step: step[0] ** 2 + step[1] ** 2)
    offsets = jnp.asarray(np.array([i * width + j for i, j in steps], np.int32))
    weights = jnp.exp(-(lam**2) * np.array([i * i + j * j for i, j in steps], np.float32))
    count = jnp.sum(weights > _NEGLIGIBLE, dtype=jnp.int32)

    def add(index: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        values, known = neighbour(offsets[index])
        weight = weights[index] * known
        return sums[0] + weight[:, None] * values, sums[1] + weight

    start = (jnp.zeros(result.shape, jnp.float32), jnp.zeros(result.shape[:1], jnp.float32))
    sums: tuple[Array, Array] = lax.fori_loop(0, count, add, start)
    total = weights.sum() if normalize == "full" else sums[1]
    return (sums[0] / (total + EPSILON)[..., None]).astype(result.dtype)
