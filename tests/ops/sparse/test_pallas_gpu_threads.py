"""The index arithmetic of the GPU kernel's single threads, folded to numbers by MLIR, for all 128 of them."""

from __future__ import annotations

import numpy as np
from jax._src.interpreters import mlir
from jax._src.lib.mlir import passmanager
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import func

from dynpix_jax.ops.sparse import pallas_gpu_threads as threads

THREADS = range(threads.THREADS)


def numbers(monkeypatch, build):
    """What ``build()``, which gives integers of MLIR, gives for each thread."""
    with mlir.make_ir_context(), ir.Location.unknown():
        module = ir.Module.create()
        with ir.InsertionPoint(module.body):
            function = func.FuncOp("threads", ([], []))
        with ir.InsertionPoint(function.add_entry_block()):
            found = []
            for thread in THREADS:
                monkeypatch.setattr(threads, "_thread", lambda thread=thread: threads._int(thread))
                found.append(build())
            flat = [value for values in found for value in values]
            func.ReturnOp(flat)
        i32 = threads._i32()
        function.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get([], [i32] * len(flat)))
        passmanager.PassManager.parse("builtin.module(canonicalize)").run(module.operation)
        [returned] = [op for op in function.entry_block if isinstance(op.opview, func.ReturnOp)]
        folded = [ir.IntegerAttr(value.owner.attributes["value"]).value for value in returned.operands]
    return np.array(folded).reshape(len(THREADS), -1)


def test_copies_lie_as_wgmma_reads_them(monkeypatch):
    """128-byte swizzle: bits 4 to 6 of an address are flipped by its bits 7 to 9."""
    found = numbers(monkeypatch, lambda: [threads._place()])[:, 0]
    for thread in THREADS:
        row, piece = divmod(thread, 8)
        plain = 128 * row + 16 * piece
        assert found[thread] == plain ^ (plain >> 7 & 7) << 4


def test_results_lie_where_the_library_says(monkeypatch):
    """The rows and columns of a thread, by the tiles of Mosaic GPU's own description of wgmma's layout."""
    columns, layout = 32, plgpu.Layout.WGMMA.to_mgpu()
    tiled = np.arange(64 * columns).reshape(64, columns)
    for tile in layout.tiling.tiles:
        outer = tiled.ndim - len(tile)
        split = [size for n, t in zip(tiled.shape[outer:], tile, strict=True) for size in (n // t, t)]
        order = [*range(outer), *range(outer, outer + 2 * len(tile), 2)]
        order += range(outer + 1, outer + 2 * len(tile), 2)
        tiled = tiled.reshape(*tiled.shape[:outer], *split).transpose(order)
    monkeypatch.setattr(threads, "_scalar", lambda value: value)
    monkeypatch.setattr(threads, "_active_position", lambda plan, targets, row, active: row)

    def rows():
        zero = threads._int(0)
        return [part for _, *place in threads._own_rows(None, None, zero, zero, zero) for part in place]

    [warp], lanes, vector = layout.warp_dims, layout.lane_dims, layout.vector_dim
    found = numbers(monkeypatch, rows)
    for thread in THREADS:
        at = [slice(None)] * tiled.ndim
        at[warp] = thread // 32
        sizes = [tiled.shape[dim] for dim in lanes]
        for dim, index in zip(lanes, np.unravel_index(thread % 32, sizes), strict=True):
            at[dim] = index
        expected = tiled[tuple(at)].reshape(columns // 8, 2, 2)
        assert vector in (-1, tiled.ndim - 1)
        for register, lower, pair in np.ndindex(expected.shape):
            row, left = found[thread].reshape(2, 2)[lower]
            assert expected[register, lower, pair] == row * columns + left + 8 * register + pair


def test_stages_are_rows_of_128_bytes():
    tiling, swizzle = threads.TILED
    assert tiling == plgpu.TilingTransform((8, 64))
    assert swizzle == plgpu.SwizzleTransform(128)
