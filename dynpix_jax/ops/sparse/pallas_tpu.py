"""Active tiles only, as a Pallas kernel for TPUs (Mosaic).

The output is cut into tiles. Those with an active position are listed (scalar prefetch); the grid runs over
the list only, with a length known at run time, so an inactive tile costs neither a step nor a copy. Each
step copies the tile's window of the input into VMEM while the step before it computes, multiplies it tap by
tap on the matrix unit, computes what follows the convolution on the tile's sums, and writes where the mask is
True inside the tile. Inactive tiles keep what is there.

Tiles are saved, not positions: masks in blobs save about their density, a mask of independent pixels leaves
nearly every tile active.

Strides: the padded input is split into its phases (every s-th row and column), in which a strided convolution
has stride 1. Dilation: the window grows by the reach of the taps, or a slab of rows is copied for each row of
taps if that is less. ``pallas_tpu_plan.py`` chooses tiles and blocks.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
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
from dynpix_jax.ops.sparse.fusion import apply, fusible, groups, join, shortcut_steps, shortcut_vectors
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
    plan = plan_of(call.single(x, layer))
    if plan is None:
        return (
            f"windows of {layer.window[0]}x{layer.window[1]} with strides {layer.strides} and dilation "
            f"{layer.dilation} do not fit into {VMEM_LIMIT >> 20} MiB of vector memory"
        )
    return _too_many_tiles(call, plan)


def fuses(call: Call) -> bool:
    """Whether the kernel runs the chain as a whole: every layer, the shortcut, all within vector memory."""
    if not fusible(call) or call.x.dtype.name not in PASSES:
        return False
    plan = plan_of(call)
    return plan is not None and not _too_many_tiles(call, plan)


def _too_many_tiles(call: Call, plan: Plan) -> str:
    x, layer = call.x, call.convolution
    output = conv_output_size((x.shape[1], x.shape[2]), layer.window, layer.strides, layer.dilation)
    tiles = x.shape[0] * math.prod(_tiles(output, plan.tile))
    return (
        f"{tiles} tiles are more than the {_MAX_TILES} that scalar memory lists" if tiles > _MAX_TILES else ""
    )


def plan_of(call: Call) -> Plan | None:
    """The plan of a chain that the kernel knows; None if it does not fit into vector memory."""
    first, *others = groups(call)
    layer = first.convolution
    return make_plan(
        call.x.shape[-1],
        layer.kernel.shape[-1],
        layer.window,
        layer.strides,
        layer.dilation,
        call.x.dtype,
        chain=tuple(group.convolution.kernel.shape[-1] for group in others),
        reads_output=call.init is not None,
    )


def forward(call: Call, *, interpret: bool | pltpu.InterpretParams | None = None) -> Array:
    """The kernel, without a derivative.

    Args:
        call: A chain that the kernel :func:`fuses`. Its active set is not used: tiles are listed, not
            positions.
        interpret: Runs it slowly on any backend; True simulates its values, ``InterpretParams`` its copies
            too. None: :func:`~dynpix_jax.ops.sparse.interpret.interpreting`.

    Raises:
        ValueError: The reason that :func:`refuses` gives.
    """
    if reason := refuses(call):
        raise ValueError(f"pallas_tpu: {reason}")
    x, mask, layer = call.x, call.mask, call.convolution
    plan = plan_of(call)
    assert plan is not None
    features = groups(call)[-1].convolution.kernel.shape[-1]
    dtype = x.dtype if call.init is None else call.init.dtype
    if 0 in mask.shape:
        return jnp.zeros((*mask.shape, features), dtype)

    grid = _tiles((mask.shape[1], mask.shape[2]), plan.tile)
    masks, ids, steps = _active_tiles(mask, plan.tile)
    images = _phases(x, plan, grid, layer.window, layer.strides, layer.dilation)
    channels = (plan.blocks[0] * plan.channels, plan.blocks[1] * plan.features)
    weights = _padded(layer.kernel.reshape(-1, *layer.kernel.shape[2:]), channels)
    follow = _Following.of(call, plan)

    # Tiles and blocks of features may reach over the edges of the map, which is neither padded nor cut.
    blocks, mode = plan.blocks[1], interpreting() if interpret is None else interpret
    width = features if blocks == 1 else plan.out_features
    start = jnp.zeros((*mask.shape, features), dtype) if call.init is None else call.init
    if isinstance(mode, pltpu.InterpretParams):  # but this interpreter returns what it has padded
        start = _padded(start, (grid[0] * plan.tile[0], grid[1] * plan.tile[1], blocks * width))
    tile = pl.BlockSpec(
        (pl.squeezed, *plan.tile, width),
        lambda f, i, c, ids: (*_unravel(ids[i], grid), f),
    )
    run = pl.pallas_call(
        partial(_kernel, plan=plan, follow=follow),
        jax.ShapeDtypeStruct(start.shape, dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            # The weights of a block of features stay in VMEM over all tiles.
            grid=(blocks, steps, plan.blocks[0]),
            in_specs=[
                *(_window_spec(plan, grid, copy) for copy in range(plan.copies)),
                pl.BlockSpec(
                    (weights.shape[0], plan.channels, plan.features),
                    lambda f, i, c, ids: (0, c, f),
                    pipeline_mode=pl.Buffered(plan.weight_buffers),
                ),
                *follow.specs,
                pl.BlockSpec((pl.squeezed, *plan.tile), lambda f, i, c, ids: (ids[i], 0, 0)),
                tile if follow.reads else pl.BlockSpec(memory_space=pl.ANY),
            ],
            out_specs=tile,
            scratch_shapes=[pltpu.VMEM((plan.positions, plan.features), jnp.float32)],
        ),
        # Inactive tiles keep what is there: the last operand, counted with the list of tiles.
        input_output_aliases={plan.copies + len(follow.arrays) + 3: 0},
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=plan.vmem_limit
        ),
        interpret=mode,
        name="perforated_conv",
    )
    written = run(ids, *[images] * plan.copies, weights, *follow.arrays, masks, start)
    return call.with_idle(written[:, : mask.shape[1], : mask.shape[2], :features])


pallas_tpu = derivative_of(gather)(forward)
"""The kernel with the derivative of ``gather``."""


@dataclasses.dataclass(frozen=True)
class _Following:
    """The layers that follow the convolution in a step.

    Attributes:
        groups: The steps of the arithmetic behind each convolution.
        shortcut: See `fusion.shortcut_steps`.
        reads: Whether the map is read that is written into.
        arrays: Vectors (1, features), and between the groups the weights of their 1x1 convolution.
        specs: Their blocks.
    """

    groups: tuple[tuple[str, ...], ...]
    shortcut: tuple[tuple[str, ...], bool] | None
    reads: bool
    arrays: tuple[Array, ...]
    specs: tuple[pl.BlockSpec, ...]

    @classmethod
    def of(cls, call: Call, plan: Plan) -> _Following:
        """The layers of a chain, padded as planned."""
        widths = (plan.features, *plan.chain)
        parts = groups(call)
        arrays: list[Array] = []
        for i, group in enumerate(parts):
            if i:
                kernel = group.convolution.kernel
                arrays.append(_padded(kernel.reshape(kernel.shape[2:]), (widths[i - 1], widths[i])))
            arrays += _rows(group.vectors(), plan.blocks[1] * widths[i])
        arrays += _rows(shortcut_vectors(call), plan.blocks[1] * widths[-1])
        specs = [
            pl.BlockSpec(
                (len(a), a.shape[1] // plan.blocks[1]),
                lambda f, i, c, ids: (0, f),
                pipeline_mode=pl.Buffered(1),
            )
            for a in arrays
        ]
        steps = tuple(group.steps for group in parts)
        return cls(steps, shortcut_steps(call), call.init is not None, tuple(arrays), tuple(specs))

    def apply(self, sums: Array, arrays: Iterator[Array], dtype: jnp.dtype) -> Array:
        """The result of the last layer, of the convolution's sums (positions, features)."""
        for i, steps in enumerate(self.groups):
            if i:
                sums = _product(sums.astype(dtype), next(arrays)[...])
            sums = apply(steps, sums, lambda: next(arrays)[...])
        return sums


def _rows(vectors: Sequence[Array], width: int) -> list[Array]:
    return [_padded(vector[None], (width,)) for vector in vectors]


def _padded(value: Array, last: tuple[int, ...]) -> Array:
    """The array with its last axes filled up with zeros to these sizes."""
    sizes = (*value.shape[: value.ndim - len(last)], *last)
    return jnp.pad(value, [(0, size - old) for size, old in zip(sizes, value.shape, strict=True)])


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


def _product(rows: Array, weights: Array) -> Array:
    exact = rows.dtype == jnp.float32
    return jnp.dot(
        rows,
        weights,
        precision=lax.Precision.HIGHEST if exact else lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )


def _kernel(ids: Array, *refs: Array, plan: Plan, follow: _Following) -> None:
    """One tile, one block of features, one block of channels: adds the product of every tap."""
    del ids
    windows, (weights, *others, mask, current, out, sums) = refs[: plan.copies], refs[plan.copies :]
    rows, columns = plan.tile
    block = pl.program_id(2)

    @pl.when(block == 0)
    def start() -> None:
        sums[...] = jnp.zeros_like(sums)

    total = sums[...]
    for v, (column_phase, left) in enumerate(plan.columns.taps):
        for window, row_phase, taps in _reads(plan):
            # Rows are the outer dimension, so slices are free; columns are moved once for all rows of taps.
            phase = row_phase * len(plan.columns.phases) + column_phase
            moved = windows[window][phase, :, left : left + columns, :]
            for u, top in taps:
                read = moved[top : top + rows].reshape(plan.positions, plan.channels)
                total += _product(read, weights[u * len(plan.columns.taps) + v])
    sums[...] = total

    @pl.when(block == plan.blocks[0] - 1)
    def finish() -> None:
        arrays = iter(others)
        values = follow.apply(sums[...], arrays, weights.dtype)
        active, written = mask[...][..., None] > 0, out.shape[-1]
        before = current[...] if follow.reads else jnp.zeros(out.shape, out.dtype)
        if follow.reads:
            flat = before.astype(jnp.float32).reshape(plan.positions, written)
            cut = (array[:, :written] for array in arrays)
            values = join(follow.shortcut, values[:, :written], flat, cut.__next__)
        values = values[:, :written].reshape(rows, columns, written).astype(out.dtype)
        out[...] = jnp.where(active, values, before)


def _reads(plan: Plan) -> list[tuple[int, int, list[Pair]]]:
    """[(copy, its phase of rows, [(row of taps, its first row)])]; each row of taps appears once."""
    if plan.copies > 1:
        return [(u, 0, [(u, 0)]) for u in range(len(plan.rows.taps))]
    return [
        (0, phase, [(u, top) for u, (p, top) in enumerate(plan.rows.taps) if p == phase])
        for phase in range(len(plan.rows.phases))
    ]
