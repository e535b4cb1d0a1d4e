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

import dataclasses
import itertools
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from dynpix_jax.core.typing import Array
from dynpix_jax.ops.sparse import pallas_gpu_simulated as simulated
from dynpix_jax.ops.sparse import pallas_gpu_threads as threads
from dynpix_jax.ops.sparse.fusion import apply, join
from dynpix_jax.ops.sparse.pallas_gpu_plan import DEPTH, ROWS, STAGES, Finish, Lists, Plan

_CONSUMERS = 2
_HALF = ROWS // _CONSUMERS

# Steps between starting a copy and signalling that it has arrived. A consumer frees a stage one step late, so
# the copying warpgroup must be able to run two stages behind itself.
_LAG = STAGES - 2


def run(
    plan: Plan,
    finish: Finish,
    arrays: tuple[Array, Array, Array],
    lists: Lists,
    out: Array | jax.ShapeDtypeStruct,
    *,
    interpret: InterpretGPUParams | None,
) -> Array:
    """Runs the kernel.

    Args:
        finish: What happens to the sums.
        arrays: What `pallas_gpu.prepare` gives: rows, weights, vectors.
        lists: The rows of the product.
        out: (rows, features) that is written into; or its type, if other rows are never read.
        interpret: Runs it in Mosaic GPU's interpreter.

    Returns:
        The result, as ``out``.
    """
    tables = [jnp.asarray(table.reshape(-1)) for table in plan.tables()]
    given = (*arrays, lists.sources, lists.targets, lists.number.reshape(1), *tables)
    # "Lane": the inlined parts are written thread by thread; later versions of JAX have another default.
    make = partial(
        pl.kernel,
        partial(_kernel, plan, finish, simulated if interpret else threads),
        mesh=plgpu.Mesh(
            grid=(plan.blocks,), grid_names=("block",), num_threads=_CONSUMERS + 1, thread_name="warpgroup"
        ),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane),
        interpret=interpret or False,
        name="perforated_conv",
    )
    result: Array
    if isinstance(out, jax.ShapeDtypeStruct):
        result = make(out)(*given)
        return result

    if interpret:
        # References without a memory space are unknown to the interpreter: the map is read apart.
        result = make(jax.typeof(out))(*given, out)
        target = jnp.where(jnp.arange(plan.positions) < lists.number, lists.targets, plan.positions)
        written = jnp.zeros((plan.positions, 1), jnp.bool_).at[target].set(True, mode="drop")
        return jnp.where(written, result, out)

    # A reference is written in place: the kernel writes active positions, the others keep their values.
    # `plgpu.kernel`, which is `pl.kernel` with a batching rule, takes no references.
    @pl.run_state
    def fill_in(out: Any) -> None:
        make()(*given, out)

    result = fill_in(out)
    return result


class _Refs(NamedTuple):
    """References of a block: arrays in device memory, then in shared memory, then barriers."""

    rows: Any
    weights: Any
    vectors: Any
    sources: Any
    targets: Any
    count: Any
    offsets: Any
    taps: Any
    first: Any
    current: Any
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


def _kernel(plan: Plan, finish: Finish, parts: ModuleType, *refs: Any) -> None:
    rows, weights, *_ = refs
    # Written in place, unless the map that is read lies apart.
    refs = refs if len(refs) == _Refs._fields.index("row_stages") else (*refs, refs[-1])

    def block(*scratch: Any) -> None:
        _Block(plan, finish, parts, _Refs(*refs, *scratch)).run()

    pl.run_scoped(
        block,
        plgpu.SMEM((STAGES, _CONSUMERS, _HALF, DEPTH), rows.dtype, transforms=threads.TILED),
        plgpu.SMEM((STAGES, DEPTH, plan.columns), weights.dtype, transforms=threads.TILED),
        # Full: once for the weights (TMA), once for the rows. All 128 threads of a warpgroup arrive as one.
        plgpu.Barrier(num_arrivals=2, num_barriers=STAGES),
        plgpu.Barrier(num_arrivals=_CONSUMERS, num_barriers=STAGES),
        collective_axes="warpgroup",
    )


def _stage(step: Array) -> Array:
    # Steps are counted over all tiles of a block, so that the copies run ahead into the next tile.
    return lax.rem(step, jnp.int32(STAGES))


@dataclasses.dataclass(frozen=True)
class _Block:
    """A block: takes every ``plan.blocks``-th tile until none is left.

    Attributes:
        plan: The sizes.
        finish: What happens to the sums.
        parts: What threads do: `pallas_gpu_threads`, or `pallas_gpu_simulated` in the interpreter.
        refs: The references.
    """

    plan: Plan
    finish: Finish
    parts: ModuleType
    refs: _Refs

    def run(self) -> None:
        """The work of the calling warpgroup."""
        plan, warpgroup, block = self.plan, lax.axis_index("warpgroup"), lax.axis_index("block")
        active, blocks, wide = self.refs.count[0], jnp.int32(plan.blocks), jnp.int32(plan.column_blocks)
        tiles = lax.div(active + (ROWS - 1), jnp.int32(ROWS)) * wide

        def corner(i: Array) -> tuple[Array, Array]:
            tile = block + i * blocks
            return lax.div(tile, wide) * ROWS, lax.rem(tile, wide) * plan.columns

        mine = _Tiles(active, lax.div(tiles - block + (blocks - 1), blocks), corner)
        pl.when(warpgroup == _CONSUMERS)(lambda: self._copy_tiles(mine))
        pl.when(warpgroup < _CONSUMERS)(lambda: self._multiply_tiles(mine, warpgroup))

    def _copy_tiles(self, tiles: _Tiles) -> None:
        """The work of the copying warpgroup."""
        plan, refs, parts = self.plan, self.refs, self.parts

        def announce(step: Array, pending: int) -> None:
            parts.wait_for_copies(pending)
            plgpu.commit_smem()
            plgpu.barrier_arrive(refs.full.at[_stage(step)])

        @pl.loop(0, tiles.number)
        def _(i: Array) -> None:
            row, column = tiles.corner(i)
            corners, inside = plan.corners(parts.listed(plan, refs.sources, row, tiles.active))

            def copy(k: Array, reads: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
                offset, tap, weight_row = reads
                step = i * plan.steps + k
                at = _stage(step)
                pl.when(step >= STAGES)(lambda: plgpu.barrier_wait(refs.empty.at[at]))
                part = refs.weights.at[pl.ds(weight_row, DEPTH), pl.ds(column, plan.columns)]
                plgpu.copy_gmem_to_smem(part, refs.weight_stages.at[at], refs.full.at[at])
                parts.copy_rows(refs.rows, refs.row_stages.at[at], corners, inside, offset, tap)
                pl.when(step >= _LAG)(lambda: announce(step - _LAG, _LAG))
                # Read ahead: the next step's indices are known before its stage is free.
                following = jnp.minimum(k + 1, plan.steps - 1)
                return *parts.reads(refs.offsets, refs.taps, following), refs.first[following]

            start = jnp.int32(0)
            lax.fori_loop(
                0, plan.steps, copy, (*parts.reads(refs.offsets, refs.taps, start), refs.first[start])
            )

        steps = tiles.number * plan.steps
        for behind in range(_LAG, 0, -1):
            pl.when(steps >= behind)(partial(announce, steps - behind, behind - 1))
        # What is signalled is also awaited, so that no barrier ends in between.
        for behind in range(STAGES, 0, -1):
            at = _stage(jnp.maximum(steps - behind, 0))
            pl.when(steps >= behind)(partial(plgpu.barrier_wait, refs.empty.at[at]))

    def _multiply_tiles(self, tiles: _Tiles, warpgroup: Array) -> None:
        """The work of a multiplying warpgroup: its 64 rows of each tile."""
        plan, refs, parts = self.plan, self.refs, self.parts

        @pl.loop(0, tiles.number)
        def _(i: Array) -> None:
            row, column = tiles.corner(i)
            row = row + warpgroup * _HALF
            product = self._exact_product if plan.exact else self._product
            total = self._finished(product(i * plan.steps, warpgroup), row, tiles.active, column)
            parts.store(plan, total, refs.out, refs.targets, row, tiles.active, column)

    def _begin(self, step: Array, warpgroup: Array, accumulator: Any) -> None:
        refs, at = self.refs, _stage(step)
        plgpu.barrier_wait(refs.full.at[at])
        self.parts.read_by_products(refs.row_stages.at[at, warpgroup], refs.weight_stages.at[at])
        plgpu.wgmma(accumulator, refs.row_stages.at[at, warpgroup], refs.weight_stages.at[at])

    def _release(self, step: Array) -> None:
        plgpu.barrier_arrive(self.refs.empty.at[_stage(step)])

    def _product(self, first: Array, warpgroup: Array) -> Array:
        plan = self.plan

        def accumulate(accumulator: Any) -> Array:
            def multiply(k: Array, _: None) -> None:
                self._begin(first + k, warpgroup, accumulator)
                # All products but the last are done, so the previous stage has been read.
                plgpu.wgmma_wait(1)
                pl.when(k > 0)(lambda: self._release(first + k - 1))

            lax.fori_loop(0, plan.steps, multiply, None)
            total: Array = accumulator[...]
            return total

        total: Array = pl.run_scoped(accumulate, plgpu.ACC((_HALF, plan.columns), jnp.float32))
        self._release(first + plan.steps - 1)
        return total

    def _exact_product(self, first: Array, warpgroup: Array) -> Array:
        plan = self.plan

        def part(k: Array) -> Array:
            def one(accumulator: Any) -> Array:
                self._begin(first + k, warpgroup, accumulator)
                total: Array = accumulator[...]
                return total

            sums: Array = pl.run_scoped(one, plgpu.ACC((_HALF, plan.columns), jnp.float32))
            self._release(first + k)
            return sums

        # The tensor cores truncate sums instead of rounding, and the error grows with the length: they sum 64
        # terms, and these sums are added here.
        return lax.fori_loop(1, plan.steps, lambda k, total: total + part(k), part(jnp.int32(0)))

    def _finished(self, sums: Array, row: Array, active: Array, column: Array) -> Array:
        """The layers that follow, and the shortcut."""
        plan, refs, parts = self.plan, self.refs, self.parts
        index = itertools.count()

        def vector() -> Array:
            spread: Array = parts.spread(refs.vectors, next(index), column, (_HALF, plan.columns))
            return spread

        values = apply(self.finish.steps, sums, vector)
        if self.finish.shortcut is not None:
            like = values.astype(refs.out.dtype)
            current = parts.load(plan, like, refs.current, refs.targets, row, active, column)
            values = join(self.finish.shortcut, values, current.astype(jnp.float32), vector)
        return values.astype(refs.out.dtype)
