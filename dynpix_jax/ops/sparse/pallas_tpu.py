"""Active tiles only, as a Pallas kernel for TPUs (Mosaic).

The output is cut into tiles. Those with an active position are listed (scalar prefetch); the grid runs over
the list only, with a length known at run time, so an inactive tile costs neither a step nor a copy. Each
step copies the tile's window of the input into VMEM while the step before it computes, multiplies it tap by
tap on the matrix unit, and writes zeros where the mask is False inside the tile. Inactive tiles keep the
zeros that the output starts with.

Tiles are saved, not positions: masks in blobs save about their density, a mask of independent pixels leaves
nearly every tile active.

Strides: the padded input is split into its phases (every s-th row and column), in which a strided convolution
has stride 1. Dilation: the window grows by the reach of the taps, or a slab of rows is copied for each row of
taps if that is less. ``pallas_tpu_plan.py`` chooses tiles and blocks.
"""

from __future__ import annotations

import itertools
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from dynpix_jax.core.typing import Array, Mask
from dynpix_jax.ops.conv import Pair, conv_output_size, torch_padding
from dynpix_jax.ops.sparse.active import active_set
from dynpix_jax.ops.sparse.call import Call
from dynpix_jax.ops.sparse.gather import gather
from dynpix_jax.ops.sparse.interpret import interpreting
from dynpix_jax.ops.sparse.pallas_tpu_plan import PASSES, VMEM_LIMIT, Plan, make_plan
from dynpix_jax.ops.sparse.vjp import derivative_of

# Half of the 1 MiB of scalar memory is for the list of active tiles.
_MAX_TILES = 2**17


def refuses(call: Call) -> str:
    """Why the kernel cannot run a convolution of these shapes and dtype; "" if it can."""
    x, layer = call.x, call.convolution
    if x.dtype.name not in PASSES:
        return f"it needs float32 or bfloat16, x is {x.dtype}"
    geometry = (layer.window, layer.strides, layer.dilation)
    plan = make_plan(x.shape[-1], layer.kernel.shape[-1], *geometry, x.dtype)
    if plan is None:
        return (
            f"windows of {layer.window[0]}x{layer.window[1]} with strides {layer.strides} and dilation "
            f"{layer.dilation} do not fit into {VMEM_LIMIT >> 20} MiB of vector memory"
        )
    rows, columns = _tiles(conv_output_size((x.shape[1], x.shape[2]), *geometry), plan.tile)
    if x.shape[0] * rows * columns > _MAX_TILES:
        return f"{x.shape[0] * rows * columns} tiles are more than the {_MAX_TILES} that scalar memory lists"
    return ""


def forward(call: Call, *, interpret: bool | pltpu.InterpretParams | None = None) -> Array:
    """The kernel, without a derivative.

    Args:
        call: Call of a single convolution. Its active set is not used: tiles are listed, not positions.
        interpret: Runs it slowly on any backend; True simulates its values, ``InterpretParams`` its copies
            too. None: :func:`~dynpix_jax.ops.sparse.interpret.interpreting`.

    Raises:
        ValueError: The reason that :func:`refuses` gives.
    """
    if reason := refuses(call):
        raise ValueError(f"pallas_tpu: {reason}")
    x, mask, layer = call.x, call.mask, call.convolution
    kernel, bias, strides, dilation = layer.kernel, layer.bias, layer.strides, layer.dilation
    *window, channels, features = kernel.shape
    plan = make_plan(channels, features, (window[0], window[1]), strides, dilation, x.dtype)
    assert plan is not None
    if 0 in mask.shape:
        return jnp.zeros((*mask.shape, features), x.dtype)

    grid = _tiles((mask.shape[1], mask.shape[2]), plan.tile)
    masks, ids, steps = _active_tiles(mask, plan.tile)
    images = _phases(x, plan, grid, (window[0], window[1]), strides, dilation)
    padded_features = plan.blocks[1] * plan.features
    padding = [(0, plan.blocks[0] * plan.channels - channels), (0, padded_features - features)]
    weights = jnp.pad(kernel.reshape(-1, channels, features), [(0, 0), *padding])
    offset = jnp.zeros((features,), x.dtype) if bias is None else bias
    offset = jnp.pad(offset.astype(jnp.float32), (0, padded_features - features))[None]

    # Whole tiles: no block extends beyond the array.
    zeros = jnp.zeros((len(mask), grid[0] * plan.tile[0], grid[1] * plan.tile[1], padded_features), x.dtype)
    run = pl.pallas_call(
        partial(_kernel, plan=plan),
        jax.ShapeDtypeStruct(zeros.shape, zeros.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            # The weights of a block of features stay in VMEM over all tiles.
            grid=(plan.blocks[1], steps, plan.blocks[0]),
            in_specs=[
                *(_window_spec(plan, grid, copy) for copy in range(plan.copies)),
                pl.BlockSpec(
                    (weights.shape[0], plan.channels, plan.features),
                    lambda f, i, c, ids: (0, c, f),
                    pipeline_mode=pl.Buffered(plan.weight_buffers),
                ),
                pl.BlockSpec((1, plan.features), lambda f, i, c, ids: (0, f)),
                pl.BlockSpec((pl.squeezed, *plan.tile), lambda f, i, c, ids: (ids[i], 0, 0)),
                pl.BlockSpec(memory_space=pl.ANY),
            ],
            out_specs=pl.BlockSpec(
                (pl.squeezed, *plan.tile, plan.features), lambda f, i, c, ids: (*_unravel(ids[i], grid), f)
            ),
            scratch_shapes=[pltpu.VMEM((plan.positions, plan.features), jnp.float32)],
        ),
        # Inactive tiles keep the zeros: the last operand, counted with the list of tiles.
        input_output_aliases={plan.copies + 4: 0},
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT
        ),
        interpret=interpreting() if interpret is None else interpret,
        name="perforated_conv",
    )
    tiles = run(ids, *[images] * plan.copies, weights, offset, masks, zeros)
    return tiles[:, : mask.shape[1], : mask.shape[2], :features]


pallas_tpu = derivative_of(gather)(forward)
"""The kernel with the derivative of ``gather``."""


def _tiles(size: Pair, tile: Pair) -> Pair:
    return -(-size[0] // tile[0]), -(-size[1] // tile[1])


def _active_tiles(mask: Mask, tile: Pair) -> tuple[Array, Array, Array]:
    """The mask by tiles, float32 (tiles, *tile); ids of active tiles, ascending; the number of steps.

    An empty mask runs one step, whose results are all masked: a grid must not be empty.
    """
    batch, height, width = mask.shape
    rows, columns = _tiles((height, width), tile)
    padded = jnp.pad(mask, ((0, 0), (0, rows * tile[0] - height), (0, columns * tile[1] - width)))
    masks = padded.reshape(batch, rows, tile[0], columns, tile[1]).swapaxes(2, 3)
    listed = active_set(masks.any((3, 4)))
    ids = jnp.minimum(listed.indices, batch * rows * columns - 1)
    return masks.reshape(-1, *tile).astype(jnp.float32), ids, jnp.maximum(listed.count, 1)


def _phases(x: Array, plan: Plan, grid: Pair, window: Pair, strides: Pair, dilation: Pair) -> Array:
    """(B, phases, rows, columns, channels): the padded input, split into the phases that the taps read."""
    _, _, columns = plan.copied
    rows = grid[0] * plan.tile[0] + plan.rows.reach
    columns = grid[1] * plan.tile[1] + columns - plan.tile[1]
    low = torch_padding(window, dilation)
    # May cut off rows that no tap reads.
    high = (rows * strides[0] - x.shape[1] - low[0], columns * strides[1] - x.shape[2] - low[1])
    extra = plan.blocks[0] * plan.channels - x.shape[3]
    config = [(0, 0, 0), (low[0], high[0], 0), (low[1], high[1], 0), (0, extra, 0)]
    padded = lax.pad(x, jnp.zeros((), x.dtype), config)
    phases = itertools.product(plan.rows.phases, plan.columns.phases)
    return jnp.stack([padded[:, r :: strides[0], c :: strides[1]] for r, c in phases], axis=1)


def _unravel(tile: Array, grid: Pair) -> tuple[Array, Array, Array]:
    """(image, row, column) of a tile in ``grid``; on the scalar core, where // needs another comparison."""
    image, within = lax.div(tile, grid[0] * grid[1]), lax.rem(tile, grid[0] * grid[1])
    return image, lax.div(within, grid[1]), lax.rem(within, grid[1])


def _window_spec(plan: Plan, grid: Pair, copy: int) -> pl.BlockSpec:
    """The copy of a step: the window of its tile, or the slab for the ``copy``-th row of taps."""
    phase, shift = plan.rows.taps[copy] if plan.copies > 1 else (0, 0)
    phase *= len(plan.columns.phases)

    def start(f: Array, i: Array, c: Array, ids: Array) -> tuple[Array | int, ...]:
        image, row, column = _unravel(ids[i], grid)
        first = pl.multiple_of(column * plan.tile[1], plan.tile[1])
        channel = pl.multiple_of(c * plan.channels, plan.channels)
        return image, phase, row * plan.tile[0] + shift, first, channel

    shape = (*plan.copied, plan.channels)
    return pl.BlockSpec((pl.squeezed, *(pl.Element(n) for n in shape)), start)


def _kernel(ids: Array, *refs: Array, plan: Plan) -> None:
    """One tile, one block of features, one block of channels: adds the product of every tap."""
    del ids
    windows, (weights, offset, mask, _, out, sums) = refs[: plan.copies], refs[plan.copies :]
    rows, columns = plan.tile
    block = pl.program_id(2)

    @pl.when(block == 0)
    def start() -> None:
        sums[...] = jnp.broadcast_to(offset[...], sums.shape)

    total = sums[...]
    for v, (column_phase, left) in enumerate(plan.columns.taps):
        for window, row_phase, taps in _reads(plan):
            # Rows are the outer dimension, so slices are free; columns are moved once for all rows of taps.
            phase = row_phase * len(plan.columns.phases) + column_phase
            moved = windows[window][phase, :, left : left + columns, :]
            for u, top in taps:
                total += jnp.dot(
                    moved[top : top + rows].reshape(plan.positions, plan.channels),
                    weights[u * len(plan.columns.taps) + v],
                    precision=lax.Precision.HIGHEST if plan.itemsize == 4 else lax.Precision.DEFAULT,
                    preferred_element_type=jnp.float32,
                )
    sums[...] = total

    @pl.when(block == plan.blocks[0] - 1)
    def finish() -> None:
        values = sums[...].reshape(rows, columns, plan.features)
        out[...] = jnp.where(mask[...][..., None] > 0, values, 0).astype(out.dtype)


def _reads(plan: Plan) -> list[tuple[int, int, list[Pair]]]:
    """[(copy, its phase of rows, [(row of taps, its first row)])]; each row of taps appears once."""
    if plan.copies > 1:
        return [(u, 0, [(u, 0)]) for u in range(len(plan.rows.taps))]
    return [
        (0, phase, [(u, top) for u, (p, top) in enumerate(plan.rows.taps) if p == phase])
        for phase in range(len(plan.rows.phases))
    ]
