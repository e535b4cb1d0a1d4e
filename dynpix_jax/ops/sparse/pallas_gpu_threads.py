"""Gather and scatter by the threads of the ``pallas_gpu`` kernel (Mosaic GPU, MLIR).

Pallas cannot express copies to and from listed rows, so these functions are written for one thread of a
warpgroup, in the dialects that Pallas compiles to, and inlined (``plgpu.inline_mgpu``).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax._src.lib.mlir.dialects import gpu, llvm, nvvm  # `jax.extend.mlir` does not have these.
from jax.experimental import pallas as pl
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith, memref, vector

from dynpix_jax.core.typing import Array
from dynpix_jax.ops.sparse.pallas_gpu_plan import DEPTH, PIECE, ROWS, Plan

THREADS = 128
"""Threads of a warpgroup."""

TILED = (plgpu.TilingTransform((8, DEPTH)), plgpu.SwizzleTransform(2 * DEPTH))
"""As wgmma reads shared memory: 128-byte rows in groups of eight, their 16-byte pieces permuted."""

_ROW_BYTES = 2 * DEPTH
_PIECE_BYTES = 2 * PIECE

# Each thread copies a piece of every 16th row; eight neighbouring threads copy one row.
_PIECES = DEPTH // PIECE
_COPIES = ROWS * _PIECES
_EACH_COPY = plgpu.Layout.WG_STRIDED((_COPIES,), 1)
_EACH_THREAD = plgpu.Layout.WG_STRIDED((THREADS,), 1)
_SCALAR = plgpu.Layout.WG_SPLAT(())
# Sums, output, list of targets; then a row of the list, the number of active rows, a column.
_PLACES = (plgpu.Layout.WGMMA, plgpu.RefType(), plgpu.RefType(), _SCALAR, _SCALAR, _SCALAR)


def listed(plan: Plan, indices: Any, row: Array, active: Array) -> Array:
    """The active position of each copy: int32 (1024,), eight for every row from ``row`` on."""

    @plgpu.inline_mgpu(
        arg_types=(plgpu.RefType(), _SCALAR, _SCALAR),
        return_type=plgpu.ShapeDtypeStruct((_COPIES,), jnp.int32, _EACH_COPY),
    )
    def read(_: Any, indices: ir.Value, row: Any, active: Any) -> Any:
        def one(copy: ir.Value) -> ir.Value:
            within = arith.divui(arith.index_cast(_i32(), copy), _int(_PIECES))
            return _active_position(plan, indices, arith.addi(_scalar(row), within), _scalar(active))

        return mgpu.FragmentedArray.build((_COPIES,), _EACH_COPY.to_mgpu(), one, is_signed=True)

    return read(indices, row, active)


def reads(offsets: Any, taps: Any, step: Array) -> tuple[Array, Array]:
    """Offset and tap of the piece that each thread copies from its rows: int32 (128,) each."""
    each = plgpu.ShapeDtypeStruct((THREADS,), jnp.int32, _EACH_THREAD)

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), plgpu.RefType(), _SCALAR), return_type=(each, each))
    def read(_: Any, offsets: ir.Value, taps: ir.Value, step: Any) -> Any:
        def one(table: ir.Value, thread: ir.Value) -> ir.Value:
            piece = arith.remui(arith.index_cast(_i32(), thread), _int(_PIECES))
            return _read(table, arith.addi(arith.muli(_scalar(step), _int(_PIECES)), piece))

        layout = _EACH_THREAD.to_mgpu()
        build = mgpu.FragmentedArray.build
        return tuple(
            build((THREADS,), layout, partial(one, table), is_signed=True) for table in (offsets, taps)
        )

    return read(offsets, taps, step)


def copy_rows(rows: Any, stage: Any, corners: Array, inside: Array, offset: Array, tap: Array) -> None:
    """Begins the copies of one step into its stage of shared memory, as one group."""

    @plgpu.inline_mgpu(
        arg_types=(
            plgpu.RefType(),
            plgpu.RefType(TILED),
            _EACH_COPY,
            _EACH_COPY,
            _EACH_THREAD,
            _EACH_THREAD,
        )
    )
    def copy(
        _: Any, rows: ir.Value, stage: ir.Value, corners: Any, inside: Any, offset: Any, tap: Any
    ) -> None:
        byte = ir.IntegerType.get_signless(8)
        source_base = llvm.addrspacecast(llvm.PointerType.get(1), mgpu.utils.memref_ptr(rows))
        target, target_base = _place(), mgpu.utils.memref_ptr(stage)
        [offset_], [tap_] = _elements(offset), _elements(tap)
        for j, (corner, bits) in enumerate(zip(_elements(corners), _elements(inside), strict=True)):
            live = arith.trunci(ir.IntegerType.get_signless(1), arith.shrui(bits, tap_))
            # A copy of no bytes writes 16 zeros; it needs a valid address nevertheless.
            size = arith.select(live, _int(_PIECE_BYTES), _int(0))
            at = arith.extsi(_i64(), arith.select(live, arith.addi(corner, offset_), _int(0)))
            source = _address(source_base, arith.muli(at, mgpu.c(_PIECE_BYTES, _i64())), byte)
            below = j * (THREADS // _PIECES) * _ROW_BYTES
            to = _address(target_base, arith.addi(target, _int(below)), byte)
            # Through the first-level cache (CA): the next taps read most of the same rows.
            nvvm.cp_async_shared_global(to, source, _PIECE_BYTES, nvvm.LoadCacheModifierKind.CA, cp_size=size)
        nvvm.cp_async_commit_group()

    copy(rows, stage, corners, inside, offset, tap)


def _place() -> ir.Value:
    """The byte of a stage that a thread's first piece is copied to.

    Swizzled: piece p of row r lies at index p ^ (r % 8). Stages begin at multiples of 1024 bytes, and a
    thread's rows are 16 apart.
    """
    row, piece = arith.divui(_thread(), _int(_PIECES)), arith.remui(_thread(), _int(_PIECES))
    place = arith.xori(piece, arith.remui(row, _int(8)))
    return arith.addi(arith.muli(row, _int(_ROW_BYTES)), arith.muli(place, _int(_PIECE_BYTES)))


def wait_for_copies(pending: int) -> None:
    """Waits until at most ``pending`` groups of the calling threads are under way."""

    @plgpu.inline_mgpu()
    def wait(_: Any) -> None:
        nvvm.cp_async_wait_group(pending)

    wait()


def read_by_products(*stages: Any) -> None:
    """Nothing: the products read them."""
    del stages


def spread(vectors: Any, index: int, column: Array, shape: tuple[int, int]) -> Array:
    """A vector's columns from ``column`` on, in every row of ``shape``, as wgmma's results lie."""
    part = (index, pl.ds(column, shape[1]))
    vector = plgpu.load(vectors, part, layout=plgpu.Layout.WGMMA.reduce(0), optimized=False)
    wide: Array = plgpu.layout_cast(lax.broadcast_in_dim(vector, shape, (1,)), plgpu.Layout.WGMMA)
    return wide


def load(plan: Plan, like: Array, out: Any, targets: Any, row: Array, active: Array, column: Array) -> Array:
    """What :func:`store` would write over, where it would write; other values are arbitrary."""

    @plgpu.inline_mgpu(
        arg_types=_PLACES, return_type=plgpu.ShapeDtypeStruct(like.shape, like.dtype, plgpu.Layout.WGMMA)
    )
    def read(_: Any, like: Any, out: ir.Value, targets: ir.Value, row: Any, active: Any, column: Any) -> Any:
        registers = np.empty(like.registers.size, object).reshape(plan.columns // 8, 2)
        base = mgpu.utils.memref_ptr(out)
        for lower, position, left in _own_rows(plan, targets, row, active, column):
            # Some address within: a row that is not written, or a column that is no feature.
            begin = _row_begin(plan, arith.minsi(position, _int(plan.positions - 1)))
            for j in range(plan.columns // 8):
                at = arith.addi(left, _int(8 * j))
                registers[j, lower] = _load_pair(plan, like.registers.flat[0].type, base, begin, at)
        return mgpu.FragmentedArray(
            _registers=registers.reshape(like.registers.shape), _layout=like.layout, _is_signed=None
        )

    values: Array = read(like, out, targets, row, active, column)
    return values


def store(plan: Plan, total: Array, out: Any, targets: Any, row: Array, active: Array, column: Array) -> None:
    """Writes 64 rows to the positions from row ``row`` of the list on, from ``column`` on."""

    @plgpu.inline_mgpu(arg_types=_PLACES)
    def write(
        _: Any, total: Any, out: ir.Value, targets: ir.Value, row: Any, active: Any, column: Any
    ) -> None:
        registers = total.registers.reshape(plan.columns // 8, 2)
        base = mgpu.utils.memref_ptr(out)
        for lower, position, left in _own_rows(plan, targets, row, active, column):
            begin = _row_begin(plan, position)
            with mgpu.when(_less(position, plan.positions)):
                for j, pair in enumerate(registers[:, lower]):
                    _store_pair(plan, pair, base, begin, arith.addi(left, _int(8 * j)))
        # The next tile's products need whole warps.
        mgpu.utils.warp_barrier()

    write(total, out, targets, row, active, column)


def _own_rows(
    plan: Plan, targets: ir.Value, row: Any, active: Any, column: Any
) -> Iterator[tuple[int, ir.Value, ir.Value]]:
    """Of both rows of a thread: its number, its position, and the thread's first column.

    wgmma's results (PTX ISA, "Register Fragments for wgmma.mma_async.m64nNk16"): warp w holds rows 16 w to
    16 w + 15; its lane l holds, of rows l / 4 and l / 4 + 8, every 8 columns the two from 2 (l % 4) on.
    """
    warp, lane = arith.divui(_thread(), _int(32)), arith.remui(_thread(), _int(32))
    top = arith.addi(arith.muli(warp, _int(16)), arith.divui(lane, _int(4)))
    left = arith.addi(_scalar(column), arith.muli(arith.remui(lane, _int(4)), _int(2)))
    for lower in range(2):
        listed = arith.addi(_scalar(row), arith.addi(top, _int(8 * lower)))
        yield lower, _active_position(plan, targets, listed, _scalar(active)), left


def _row_begin(plan: Plan, position: ir.Value) -> ir.Value:
    return arith.muli(arith.extsi(_i64(), position), mgpu.c(plan.features, _i64()))


def _load_pair(plan: Plan, pair: ir.Type, base: ir.Value, begin: ir.Value, column: ir.Value) -> ir.Value:
    """Two neighbouring columns; some others where they are no features."""
    element = ir.VectorType(pair).element_type

    def value(column: ir.Value, kind: ir.Type, last: int) -> ir.Value:
        at = arith.extsi(_i64(), arith.minsi(column, _int(last)))
        return llvm.load(kind, _address(base, arith.addi(begin, at), element))

    if plan.features % 2 == 0:
        return value(column, pair, plan.features - 2)
    parts = [value(arith.addi(column, _int(i)), element, plan.features - 1) for i in range(2)]
    return vector.from_elements(pair, parts)


def _store_pair(plan: Plan, pair: ir.Value, base: ir.Value, begin: ir.Value, column: ir.Value) -> None:
    """Writes two neighbouring columns, if they are features."""
    element = ir.VectorType(pair.type).element_type
    if plan.features % 2 == 0:
        parts = [(pair, column)]
    else:  # Every other row begins at an odd number: its pairs cannot be written at once.
        parts = [(_element(pair, i), arith.addi(column, _int(i))) for i in range(2)]
    for value, at in parts:
        address = _address(base, arith.addi(begin, arith.extsi(_i64(), at)), element)
        if plan.features % plan.columns == 0:
            llvm.store(value, address)
        else:
            with mgpu.when(_less(at, plan.features)):
                llvm.store(value, address)


def _i32() -> ir.Type:
    return ir.IntegerType.get_signless(32)


def _i64() -> ir.Type:
    return ir.IntegerType.get_signless(64)


def _int(value: int) -> ir.Value:
    return mgpu.c(value, _i32())


def _less(x: ir.Value, y: int | ir.Value) -> ir.Value:
    return arith.cmpi(arith.CmpIPredicate.slt, x, _int(y) if isinstance(y, int) else y)


def _thread() -> ir.Value:
    """Index of the thread in its warpgroup."""
    thread = arith.index_cast(_i32(), gpu.thread_id(gpu.Dimension.x))
    return arith.remui(thread, _int(THREADS))


def _scalar(value: Any) -> ir.Value:
    """The value of an argument in the layout ``_SCALAR``."""
    return value.registers.item()


def _elements(value: Any) -> list[ir.Value]:
    """A thread's numbers of an argument with one number per register."""
    return [_element(register, 0) for register in value.registers.flat]


def _element(register: ir.Value, i: int) -> ir.Value:
    return vector.extract(register, dynamic_position=[], static_position=[i])


def _read(table: ir.Value, index: ir.Value) -> ir.Value:
    return memref.load(table, [arith.index_cast(ir.IndexType.get(), index)])


def _address(base: ir.Value, index: ir.Value, element: ir.Type) -> ir.Value:
    return mgpu.utils.getelementptr(base, [index], element)


def _active_position(plan: Plan, indices: ir.Value, row: ir.Value, active: ir.Value) -> ir.Value:
    """The active position in a row of the list; ``plan.positions`` past the last."""
    listed = _read(indices, arith.minsi(row, _int(plan.positions - 1)))
    return arith.select(_less(row, active), listed, _int(plan.positions))
