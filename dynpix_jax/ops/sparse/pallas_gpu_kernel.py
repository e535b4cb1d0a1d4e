"""The kernel of ``pallas_gpu``: the work of a block of threads (Mosaic GPU).

Three warpgroups of 128 threads share the work. One copies: it gathers the rows of the input that the windows
of 128 active positions read, in pieces of 16 bytes (``cp.async``, zeros outside the image), and the weights
of 64 terms of the sum (TMA). Two multiply, 64 positions each (``wgmma``), and write the results to their
positions. Shared memory holds :data:`~.pallas_gpu_plan.STAGES` steps; each has a barrier "full" (copies have
arrived) and a barrier "empty" (both products have read them).

Threads gather the rows, not TMA, which on Hopper copies boxes only: one instruction for 128 bytes. wgmma
reads what threads wrote into shared memory only after a fence: the copying warpgroup lets :data:`_LAG` steps
pass, waits for the copies of that step, fences, and then signals "full".
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from dynpix_jax.core.typing import Array
from dynpix_jax.ops.sparse import pallas_gpu_threads as threads
from dynpix_jax.ops.sparse.active import ActiveSet
from dynpix_jax.ops.sparse.pallas_gpu_plan import DEPTH, ROWS, STAGES, Plan

_CONSUMERS = 2
_HALF = ROWS // _CONSUMERS

# Steps between starting a copy and signalling that it has arrived. A consumer frees a stage one step late, so
# the copying warpgroup must be able to run two stages behind itself.
_LAG = STAGES - 2


def run(plan: Plan, rows: Array, weights: Array, bias: Array, active: ActiveSet, dtype: jnp.dtype) -> Array:
    """Runs the kernel.

    Args:
        rows: 16-bit (B*H*W, parts*channels); the input.
        weights: 16-bit (parts*weight_rows, column_blocks*columns).
        bias: (column_blocks*columns,).
        active: Active positions of the output.
        dtype: Dtype of the result.

    Returns:
        (positions, features), zero where not active.
    """
    offsets, taps, first = (jnp.asarray(table.reshape(-1)) for table in plan.tables())
    mesh = plgpu.Mesh(
        grid=(plan.blocks,), grid_names=("block",), num_threads=_CONSUMERS + 1, thread_name="warpgroup"
    )
    # "Lane": the inlined parts are written thread by thread; later versions of JAX have another default.
    semantics = plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane)
    kernel = pl.kernel(partial(_kernel, plan), mesh=mesh, compiler_params=semantics, name="perforated_conv")
    arrays = (rows, weights, bias, active.indices, active.count.reshape(1), offsets, taps, first)

    # A reference is written in place: the kernel writes active positions, zeros stay elsewhere.
    # `plgpu.kernel`, which is `pl.kernel` with a batching rule, takes no references.
    @pl.run_state
    def fill_in(out: Any) -> None:
        kernel(*arrays, out)

    out: Array = fill_in(jnp.zeros((plan.positions, plan.features), dtype))
    return out


class _Refs(NamedTuple):
    """References of a block: arrays in device memory, then in shared memory, then barriers."""

    rows: Any
    weights: Any
    bias: Any
    indices: Any
    count: Any
    offsets: Any
    taps: Any
    first: Any
    out: Any
    row_stages: Any
    weight_stages: Any
    full: Any
    empty: Any


class _Tiles(NamedTuple):
    """The tiles of a block, each 128 active positions by ``plan.columns`` features.

    Attributes:
        active: Number of active positions.
        number: Number of this block's tiles.
        corner: i -> first row in the list of active positions, and first column, of this block's tile ``i``.
    """

    active: Array
    number: Array
    corner: Callable[[Array], tuple[Array, Array]]


def _kernel(plan: Plan, rows: Any, weights: Any, *others: Any) -> None:
    pl.run_scoped(
        lambda *scratch: _block(plan, _Refs(rows, weights, *others, *scratch)),
        plgpu.SMEM((STAGES, _CONSUMERS, _HALF, DEPTH), rows.dtype, transforms=threads.TILED),
        plgpu.SMEM((STAGES, DEPTH, plan.columns), weights.dtype, transforms=threads.TILED),
        # Full: once for the weights (TMA), once for the rows. All 128 threads of a warpgroup arrive as one.
        plgpu.Barrier(num_arrivals=2, num_barriers=STAGES),
        plgpu.Barrier(num_arrivals=_CONSUMERS, num_barriers=STAGES),
        collective_axes="warpgroup",
    )


def _block(plan: Plan, refs: _Refs) -> None:
    """One block: takes every ``plan.blocks``-th tile until none is left."""
    warpgroup, block = lax.axis_index("warpgroup"), lax.axis_index("block")
    active, blocks, wide = refs.count[0], jnp.int32(plan.blocks), jnp.int32(plan.column_blocks)
    tiles = lax.div(active + (ROWS - 1), jnp.int32(ROWS)) * wide

    def corner(i: Array) -> tuple[Array, Array]:
        tile = block + i * blocks
        return lax.div(tile, wide) * ROWS, lax.rem(tile, wide) * plan.columns

    mine = _Tiles(active, lax.div(tiles - block + (blocks - 1), blocks), corner)
    pl.when(warpgroup == _CONSUMERS)(lambda: _copy_tiles(plan, refs, mine))
    pl.when(warpgroup < _CONSUMERS)(lambda: _multiply_tiles(plan, refs, mine, warpgroup))


def _stage(step: Array) -> Array:
    # Steps are counted over all tiles of a block, so that the copies run ahead into the next tile.
    return lax.rem(step, jnp.int32(STAGES))


def _copy_tiles(plan: Plan, refs: _Refs, tiles: _Tiles) -> None:
    """The work of the copying warpgroup."""

    def announce(step: Array, pending: int) -> None:
        threads.wait_for_copies(pending)
        plgpu.commit_smem()
        plgpu.barrier_arrive(refs.full.at[_stage(step)])

    @pl.loop(0, tiles.number)
    def _(i: Array) -> None:
        row, column = tiles.corner(i)
        corners, inside = plan.corners(threads.listed(plan, refs.indices, row, tiles.active))

        def copy(k: Array, reads: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            offset, tap, weight_row = reads
            step = i * plan.steps + k
            at = _stage(step)
            pl.when(step >= STAGES)(lambda: plgpu.barrier_wait(refs.empty.at[at]))
            part = refs.weights.at[pl.ds(weight_row, DEPTH), pl.ds(column, plan.columns)]
            plgpu.copy_gmem_to_smem(part, refs.weight_stages.at[at], refs.full.at[at])
            threads.copy_rows(refs.rows, refs.row_stages.at[at], corners, inside, offset, tap)
            pl.when(step >= _LAG)(lambda: announce(step - _LAG, _LAG))
            # Read ahead: the next step's indices are known before its stage is free.
            following = jnp.minimum(k + 1, plan.steps - 1)
            return *threads.reads(refs.offsets, refs.taps, following), refs.first[following]

        start = jnp.int32(0)
        lax.fori_loop(
            0, plan.steps, copy, (*threads.reads(refs.offsets, refs.taps, start), refs.first[start])
        )

    steps = tiles.number * plan.steps
    for behind in range(_LAG, 0, -1):
        pl.when(steps >= behind)(partial(announce, steps - behind, behind - 1))


def _multiply_tiles(plan: Plan, refs: _Refs, tiles: _Tiles, warpgroup: Array) -> None:
    """The work of a multiplying warpgroup: its 64 rows of each tile."""

    def begin(step: Array, accumulator: Any) -> None:
        at = _stage(step)
        plgpu.barrier_wait(refs.full.at[at])
        plgpu.wgmma(accumulator, refs.row_stages.at[at, warpgroup], refs.weight_stages.at[at])

    def release(step: Array) -> None:
        plgpu.barrier_arrive(refs.empty.at[_stage(step)])

    def product(start: Array, first: Array) -> Array:
        def accumulate(accumulator: Any) -> None:
            def multiply(k: Array, _: None) -> None:
                begin(first + k, accumulator)
                # All products but the last are done, so the previous stage has been read.
                plgpu.wgmma_wait(1)
                pl.when(k > 0)(lambda: release(first + k - 1))

            lax.fori_loop(0, plan.steps, multiply, None)

        total: Array = pl.run_state(accumulate)(plgpu.ACC.init(start))
        release(first + plan.steps - 1)
        return total

    def exact_product(start: Array, first: Array) -> Array:
        def multiply(k: Array, total: Array) -> Array:
            def one(accumulator: Any) -> Array:
                begin(first + k, accumulator)
                return accumulator[...]

            # The tensor cores truncate sums instead of rounding, and the error grows with the length: they
            # sum 64 terms, and these sums are added here.
            total = total + pl.run_scoped(one, plgpu.ACC((_HALF, plan.columns), jnp.float32))
            release(first + k)
            return total

        return lax.fori_loop(0, plan.steps, multiply, start)

    @pl.loop(0, tiles.number)
    def _(i: Array) -> None:
        row, column = tiles.corner(i)
        bias = plgpu.load(
            refs.bias, (pl.ds(column, plan.columns),), layout=plgpu.Layout.WGMMA.reduce(0), optimized=False
        )
        start = lax.broadcast_in_dim(bias.astype(jnp.float32), (_HALF, plan.columns), (1,))
        start = plgpu.layout_cast(start, plgpu.Layout.WGMMA)
        total = (exact_product if plan.exact else product)(start, i * plan.steps)
        row = row + warpgroup * _HALF
        threads.store(plan, total.astype(refs.out.dtype), refs.out, refs.indices, row, tiles.active, column)
