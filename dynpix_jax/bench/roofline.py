"""From which density on the kernels should win, by bytes and operations: no device is needed, nothing is run.

For each layer: what XLA's dense program computes and moves, what the kernel does at any density (zeros,
padding, lists), and for each active tile; then the time of both on a chip, each the larger of arithmetic and
memory traffic at the vendor's figures. A TPU's tile is one of the map, with one active position or more; a
GPU's tile is 128 active positions from anywhere. "wins below" is the share of active tiles below which the
kernel should be faster, "never" where it should not. `dynpix bench device` measures the same layers on a
device and says which predictions hold.

example:
  dynpix bench roofline --chip v5e v6e h100 --dtype bfloat16
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from typing import cast as typed

import jax
import jax.numpy as jnp

from dynpix_jax.bench import arg_specs
from dynpix_jax.bench.arg_specs import ConvSpec
from dynpix_jax.bench.masks import make_mask
from dynpix_jax.bench.timed import Program, measure
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.typing import Array
from dynpix_jax.ops.sparse import Affine, Convolution, Relu, Shortcut, pallas_tpu, sparse_block
from dynpix_jax.ops.sparse.call import Call
from dynpix_jax.ops.sparse.fusion import groups
from dynpix_jax.ops.sparse.layers import everywhere
from dynpix_jax.ops.sparse.pallas_gpu_plan import DEPTH, ROWS, make_plan
from dynpix_jax.training.slices import CHIPS, H100, Chip

KNOWN = {"v5e": CHIPS["v5e"], "v6e": CHIPS["v6e"], "h100": H100}
KINDS = {"TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v6 lite": "v6e", "TPU v6e": "v6e"}

CORES = 132
L2 = 5.5e12
"""Bytes a second from an H100's second-level cache, all cores together; assumed."""
STEP = 0.35e-6
"""Seconds that a step of a TPU kernel's grid costs beside its work; assumed."""
PASSES: dict[str, dict[str, float]] = {
    "tpu": {"bfloat16": 1, "float32": 6},
    "gpu": {"bfloat16": 1, "float32": 989 / 67},
}
"""Operations in bfloat16 that take as long as one of XLA's in full precision."""

LAYERS = (*arg_specs.PAG_RESNET50_NYU, *arg_specs.HRNET_W48[:4])


@dataclass(frozen=True)
class Work:
    """Floating-point operations, and bytes between a chip and its memory."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Predicted:
    """The dense program and the kernel's on one chip.

    Attributes:
        dense: The dense program.
        fixed: Bytes that the kernel's program moves at any density.
        tile: An active tile.
        tiles: Number of tiles of the map, or of a full list of positions.
        dense_seconds: Time of the dense program.
        seconds: Share of active tiles -> time of the kernel's program.
    """

    dense: Work
    fixed: float
    tile: Work
    tiles: int
    dense_seconds: float
    seconds: Callable[[float], float]

    def ratio(self, active: float) -> float:
        """Time of the kernel's program over that of the dense one at a share of active tiles."""
        return self.seconds(active) / self.dense_seconds

    @property
    def wins_below(self) -> float | None:
        """The largest share of active tiles, in hundredths, up to which the kernel is faster; None: none."""
        wins = [share for share in range(1, 101) if self.ratio(share / 100) < 1]
        return max(wins) / 100 if wins else None


def _struct(shape: tuple[int, ...], dtype: str) -> Array:
    return typed(Array, jax.ShapeDtypeStruct(shape, dtype))


def convolution(spec: ConvSpec, dtype: str, batch: int = 1) -> Call:
    """The shapes of a 3x3 layer alone."""
    kernel = _struct((*spec.kernel_size, spec.channels, spec.features), dtype)
    x = _struct((batch, *spec.size, spec.channels), dtype)
    layer = Convolution(kernel, None, spec.strides, spec.dilation)
    return Call(x, _struct((batch, *spec.output_size), "bool"), (layer,))


def bottleneck(spec: ConvSpec, dtype: str, batch: int = 1, *, widen: int = 4) -> Call:
    """The shapes of a gated bottleneck around a 3x3 layer: norm, ReLU, 1x1, norm, sum, ReLU."""
    c, f = spec.features, widen * spec.features
    alone = convolution(spec, dtype, batch)
    norms = [Affine(_struct((n,), "float32"), _struct((n,), "float32")) for n in (c, f)]
    layers = (*alone.layers, norms[0], Relu(), Convolution(_struct((1, 1, c, f), dtype)), norms[1])
    init = _struct((*alone.mask.shape, f), dtype)
    return Call(alone.x, alone.mask, layers, Shortcut(rectified=True), init)


def branch(spec: ConvSpec, dtype: str, batch: int = 1) -> Call:
    """The shapes of a branch of pooling: 3x3, norm, ReLU, written over a map."""
    whole = bottleneck(spec, dtype, batch, widen=1)
    return Call(whole.x, whole.mask, whole.layers[:3], None, whole.init)


FORMS: dict[str, Callable[..., Call]] = {
    "convolution": convolution,
    "bottleneck": bottleneck,
    "branch": branch,
}


def drawn(call: Call) -> Call:
    """Random arrays of a call of shapes: kernels that keep the scale of maps, ``init`` as a ReLU gives it.

    All positions are active.
    """
    keys = iter(jax.random.split(jax.random.key(0), len(jax.tree.leaves(call))))

    def normal(leaf: Array) -> Array:
        scale = math.prod(leaf.shape[:3]) ** -0.5 if leaf.ndim == 4 else 1.0
        return (scale * jax.random.normal(next(keys), leaf.shape)).astype(leaf.dtype)

    return dataclasses.replace(
        call,
        x=jax.random.normal(next(keys), call.x.shape).astype(call.x.dtype),
        active=jnp.ones(call.mask.shape, bool),
        layers=jax.tree.map(normal, call.layers),
        init=None if call.init is None else jnp.abs(normal(call.init)),
    )


def dense(call: Call) -> Array:
    """The layers on whole maps, as without a mask."""
    y = everywhere(call.layers, call.x)
    return y if call.combine is None or call.init is None else call.combine.join(call.init, y)


def dense_work(call: Call) -> list[Work]:
    """XLA's dense program, a part for each convolution: what follows one is in the same pass."""
    positions, parts, read = math.prod(call.mask.shape), [], _bytes(call.x)
    for group in groups(call):
        kernel = group.convolution.kernel
        written = positions * kernel.shape[-1] * call.x.dtype.itemsize
        parts.append(Work(2 * positions * math.prod(kernel.shape), read + _bytes(kernel) + written))
        read = written
    if call.combine is not None:
        parts[-1] = Work(parts[-1].flops, parts[-1].bytes + _bytes(call.init))
    return parts


def _bytes(array: Array | None) -> int:
    return 0 if array is None else array.size * array.dtype.itemsize


def predict(call: Call, chip: str) -> Predicted:
    """Times of a call of shapes, dense and by the chip's kernel, which must be able to run it."""
    platform, work = ("gpu" if chip == "h100" else "tpu"), dense_work(call)
    limits, passes = KNOWN[chip], PASSES[platform][call.x.dtype.name]
    seconds = sum(max(passes * part.flops / limits.flops, part.bytes / limits.bandwidth) for part in work)
    total = Work(sum(part.flops for part in work), sum(part.bytes for part in work))
    return (_on_gpu if platform == "gpu" else _on_tpu)(call, limits, total, seconds)


def _on_tpu(call: Call, chip: Chip, total: Work, seconds: float) -> Predicted:
    plan = pallas_tpu.plan_of(call)
    assert plan is not None
    batch, height, width = call.mask.shape
    rows, columns = -(-height // plan.tile[0]), -(-width // plan.tile[1])
    item, tiles = plan.itemsize, batch * rows * columns
    phases, window_rows, window_columns = plan.copied
    channels, positions = plan.blocks[0] * plan.channels, plan.positions
    window = plan.copies * phases * window_rows * window_columns * channels * item
    out = groups(call)[-1].convolution.kernel.shape[-1] * positions * item
    weights = plan.taps * channels * plan.features * plan.blocks[1] * item + plan.chain_weights * item
    # Weights that do not stay in vector memory are read anew for each tile.
    again = weights if plan.blocks[0] > 1 else 0
    tile = Work(
        2 * plan.step_macs * plan.blocks[0] * plan.blocks[1],
        plan.blocks[1] * window + (2 if plan.reads_output else 1) * out + 4 * positions + again,
    )
    padded = (
        batch
        * phases
        * (rows * plan.tile[0] + plan.rows.reach)
        * (columns * plan.tile[1] + window_columns - plan.tile[1])
    )
    # The padded input and tiles of the mask; and a map of zeros if none is given.
    fixed = _bytes(call.x) + padded * channels * item + weights + 10 * call.mask.size
    fixed += 0 if plan.reads_output else tiles * out
    passes = PASSES["tpu"][call.x.dtype.name]
    step = max(passes * tile.flops / chip.flops, tile.bytes / chip.bandwidth)
    step += STEP * plan.blocks[0] * plan.blocks[1]
    return Predicted(
        total, fixed, tile, tiles, seconds, lambda share: fixed / chip.bandwidth + share * tiles * step
    )


def _on_gpu(call: Call, chip: Chip, total: Work, seconds: float) -> Predicted:
    positions, x, exact = math.prod(call.mask.shape), call.x, call.x.dtype == jnp.float32
    size, fixed, spent, flops, moved = (x.shape[0], x.shape[1], x.shape[2]), 0.0, 0.0, 0.0, 0.0
    rounds: list[tuple[int, float]] = []
    for group in groups(call):
        layer = group.convolution
        plan = make_plan(size, layer.kernel.shape, layer.strides, layer.dilation, exact=exact, cores=CORES)
        features, size = layer.kernel.shape[-1], (1, 1, positions)
        step = Work(2 * ROWS * DEPTH * plan.columns, 2 * DEPTH * (ROWS + plan.columns))
        spent = plan.steps * max(step.flops * CORES / chip.flops, step.bytes * CORES / L2)
        rounds.append((plan.column_blocks, spent))
        flops += plan.column_blocks * plan.steps * step.flops
        moved += ROWS * (layer.kernel.shape[2] + features) * x.dtype.itemsize
        fixed += _bytes(layer.kernel)
    last = groups(call)[-1].convolution.kernel.shape[-1] * x.dtype.itemsize
    moved += ROWS * last if call.combine is not None else 0
    fixed += 24 * positions + (positions * last if call.init is None else 0)
    full = -(-positions // ROWS)

    def time(share: float) -> float:
        tiles = math.ceil(share * full)
        arithmetic = sum(-(-tiles * blocks // CORES) * spent for blocks, spent in rounds)
        return fixed / chip.bandwidth + max(arithmetic, tiles * moved / chip.bandwidth)

    return Predicted(total, fixed, Work(flops, moved), full, seconds, time)


def chip_of(device_kind: str) -> str | None:
    """The chip of a device, None if there is no prediction for it."""
    return "h100" if "H100" in device_kind else KINDS.get(device_kind)


HEADS = ("form", "layer", "chip", "dense GFLOP", "dense MB", "fixed MB", "MFLOP a tile", "KB a tile")
DENSITIES = (0.1, 0.3, 0.5, 1.0)


def table(chips: Sequence[str], dtype: str, batch: int) -> list[str]:
    """The predictions as lines of a Markdown table."""
    heads = [*HEADS, "dense us", *(f"{share:g}" for share in DENSITIES), "wins below"]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for form, spec, chip in itertools.product(FORMS, LAYERS, chips):
        if form == "convolution" or spec in arg_specs.PAG_RESNET50_NYU:
            cells = _cells(FORMS[form](spec, dtype, batch), chip)
            lines.append(f"| {' | '.join([form, spec.name, chip, *cells])} |")
    return lines


def _cells(call: Call, chip: str) -> list[str]:
    found = predict(call, chip)
    wins = "never" if found.wins_below is None else f"{found.wins_below:.2f}"
    megabytes = [f"{count / 1e6:.1f}" for count in (found.dense.bytes, found.fixed)]
    tile = [f"{found.tile.flops / 1e6:.0f}", f"{found.tile.bytes / 1e3:.0f}"]
    ratios = [f"{found.ratio(share):.2f}" for share in DENSITIES]
    dense = f"{found.dense_seconds * 1e6:.0f}"
    return [f"{found.dense.flops / 1e9:.2f}", *megabytes, *tile, dense, *ratios, wins]


def measured(
    form: str, spec: ConvSpec, chip: str, *, batch: int, runs: int, dtype: str = "bfloat16"
) -> Iterator[dict[str, Any]]:
    """A record for each density: the predicted ratio, the measured one, whether both say who wins."""
    shapes = FORMS[form](spec, dtype, batch)
    prediction = predict(shapes, chip)
    implementation = "pallas_gpu" if chip == "h100" else "pallas_tpu"

    @jax.jit
    def sparse(call: Call) -> Array:
        return sparse_block(
            call.x,
            call.mask,
            call.layers,
            combine=call.combine,
            init=call.init,
            implementation=implementation,
        )

    given = drawn(shapes)
    programs, shares = [Program("dense", partial(jax.jit(dense), given))], []
    for density in DENSITIES:
        images, height, width = shapes.mask.shape
        mask = make_mask("blobs", jax.random.key(1), (images, height, width), density)
        shares.append(active_share(shapes, chip, mask))
        call = dataclasses.replace(given, active=mask)
        programs.append(Program(implementation, partial(sparse, call), density))
    rows = measure(spec.name, programs, runs)[1:]
    for row, share in zip(rows, shares, strict=True):
        expected = prediction.ratio(share)
        yield {
            "form": form,
            "layer": spec.name,
            "batch": batch,
            "density": row.density,
            "active_tiles": share,
            "predicted": expected,
            "measured": row.time_ratio,
            "holds": (expected < 1) == (row.time_ratio < 1),
        }


def active_share(call: Call, chip: str, mask: Array) -> float:
    """The share of a mask's tiles that a chip's kernel runs."""
    if chip == "h100":
        return float(mask.mean())
    plan = pallas_tpu.plan_of(call)
    assert plan is not None
    high, wide = (-mask.shape[i + 1] % plan.tile[i] for i in range(2))
    padded = jnp.pad(mask, ((0, 0), (0, high), (0, wide)))
    rows, columns = (padded.shape[i + 1] // plan.tile[i] for i in range(2))
    tiles = padded.reshape(-1, rows, plan.tile[0], columns, plan.tile[1])
    return float(tiles.any((2, 4)).mean())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the program."""
    parser.add_argument("--chip", nargs="+", choices=sorted(KNOWN), default=list(KNOWN), help="default: all")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--batch", type=int, default=1, help="images at a time")


def run(args: argparse.Namespace) -> int:
    """Prints the table; gives the exit status."""
    if args.batch < 1:
        raise UserError(f"--batch {args.batch}: expected at least 1")
    print("\n".join(table(args.chip, args.dtype, args.batch)))
    return 0
