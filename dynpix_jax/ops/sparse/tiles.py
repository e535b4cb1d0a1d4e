"""Active tiles with their halo, in plain XLA: a tile with an active position is computed whole.

For masks in blobs, where the neighbours of an active position are active too: the input of a tile is read
once, not once a tap. Independent pixels leave nearly every tile active, and then this costs more than a dense
convolution. On a CPU ``gather`` was faster at every density and number of channels measured
(docs/sparse-execution.md), so ``implementation=None`` never picks this one.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax

from dynpix_jax.core.typing import Array, Mask
from dynpix_jax.ops.conv import Pair, torch_padding
from dynpix_jax.ops.pointwise import pointwise
from dynpix_jax.ops.sparse.active import ActiveSet, active_set
from dynpix_jax.ops.sparse.vjp import sparse_vjp

# Rows and columns of a tile, and tiles at a time: 4096 positions, as many as in a chunk of `gather`.
_TILE, _TILES = 8, 64


def refuses(x: Array, kernel: Array, strides: Pair, dilation: Pair) -> str:
    """Why it cannot run these arguments (shapes are read); "" if it can."""
    if strides != (1, 1):
        return f"it needs strides (1, 1), got {strides}"
    halo = torch_padding((kernel.shape[0], kernel.shape[1]), dilation)
    if max(halo) > _TILE:
        return f"a halo of {max(halo)} is more than its tiles of {_TILE}x{_TILE}"
    if kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0:
        return f"it needs windows of odd size, got {kernel.shape[0]}x{kernel.shape[1]}"
    return ""


@sparse_vjp
def tiles(
    x: Array,
    kernel: Array,
    mask: Mask,
    active: ActiveSet | None,
    bias: Array | None,
    strides: Pair,
    dilation: Pair,
) -> Array:
    """A batch of tiles at a time as one product; zeros where the mask is False."""
    del active
    batch, height, width, channels = x.shape
    features = kernel.shape[-1]
    rows, cols = -(-height // _TILE), -(-width // _TILE)
    covering = jnp.pad(mask, ((0, 0), (0, rows * _TILE - height), (0, cols * _TILE - width)))
    tile_mask = covering.reshape(batch, rows, _TILE, cols, _TILE).any((2, 4))
    listed = active_set(tile_mask)
    at_once = min(_TILES, tile_mask.size)
    pad_rows, pad_cols = torch_padding((kernel.shape[0], kernel.shape[1]), dilation)
    pixels, flat, flat_mask = batch * height * width, x.reshape(-1, channels), mask.reshape(-1)

    def positions(tile: Array, halo: Pair) -> Array:
        """Flat indices (tiles, rows, columns) of the tiles' positions; past the end outside the image."""
        image, within = tile // (rows * cols), tile % (rows * cols)
        row = (within // cols * _TILE)[:, None] + np.arange(-halo[0], _TILE + halo[0], dtype=np.int32)
        col = (within % cols * _TILE)[:, None] + np.arange(-halo[1], _TILE + halo[1], dtype=np.int32)
        inside = ((row >= 0) & (row < height))[:, :, None] & ((col >= 0) & (col < width))[:, None, :]
        index = (image[:, None] * height + row)[:, :, None] * width + col[:, None, :]
        return jnp.where(inside & (tile < tile_mask.size)[:, None, None], index, pixels)

    def step(turn: Array, out: Array) -> Array:
        tile = listed.indices.at[turn * at_once + jnp.arange(at_once)].get(
            mode="fill", fill_value=tile_mask.size
        )
        windows = flat.at[positions(tile, (pad_rows, pad_cols))].get(mode="fill", fill_value=0)
        # A product, for XLA's convolutions of small images are several times slower on a CPU.
        taps = [
            windows[:, i * dilation[0] :, j * dilation[1] :][:, :_TILE, :_TILE]
            for i in range(kernel.shape[0])
            for j in range(kernel.shape[1])
        ]
        y = pointwise(jnp.concatenate(taps, axis=-1), kernel.reshape(-1, features), bias)
        target = positions(tile, (0, 0)).reshape(-1)
        keep = flat_mask.at[target].get(mode="fill", fill_value=False)
        return out.at[target].set(
            jnp.where(keep[:, None], y.reshape(-1, features), 0).astype(out.dtype), mode="drop"
        )

    trips = (listed.count + at_once - 1) // at_once
    out = lax.fori_loop(0, trips, step, jnp.zeros((pixels, features), x.dtype))
    return out.reshape(batch, height, width, features)
