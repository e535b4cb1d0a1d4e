"""The papers' convolutions computed everywhere on a CPU: as `ops.conv` runs them, and by XLA's convolution.

A layer that XLA runs either way is timed twice all the same: what its two times differ by is the noise.

example:
  dynpix bench dense-conv --spec all
  dynpix bench dense-conv --spec res4_480x640 --backward
"""

from __future__ import annotations

import argparse
from functools import partial

import jax

from dynpix_jax.bench import arg_specs
from dynpix_jax.bench.arg_specs import ConvSpec
from dynpix_jax.bench.arguments import find_specs
from dynpix_jax.bench.conv import arrays, passes
from dynpix_jax.bench.timed import Program, Settings, measure
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.typing import Array
from dynpix_jax.ops.conv import conv
from dynpix_jax.ops.sparse import Convolution


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the program."""
    parser.add_argument("--spec", nargs="+", default=["all"], metavar="NAME", help="layers (default: all)")
    parser.add_argument("--backward", action="store_true", help="forward and backward pass")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images at a time (default: 1)")
    parser.add_argument("--runs", type=int, default=7, metavar="N", help="rounds that count (default: 7)")


def run(args: argparse.Namespace) -> int:
    """Prints a line for each layer; gives the exit status."""
    if jax.default_backend() != "cpu" or min(args.runs, args.batch) < 1:
        raise UserError(f"--runs {args.runs} --batch {args.batch}: expected at least 1, on a CPU")
    settings = Settings(densities=(), batch=args.batch, runs=args.runs, backward=args.backward)
    print("| layer | Winograd | XLA ms | ms | median / XLA | least / XLA |\n" + "| --- " * 6 + "|")
    for spec in find_specs(args.spec, arg_specs.ALL):
        xla, ours = measure(spec.name, programs(spec, settings), args.runs)
        x, kernel = jax.eval_shape(partial(arrays, spec, settings))
        winograd = Convolution(kernel, None, spec.strides, spec.dilation).by_winograd(x)
        print(
            f"| {spec.name} | {'yes' if winograd else 'no'} | {xla.timing.median:.1f} | "
            f"{ours.timing.median:.1f} | {ours.time_ratio:.2f} | "
            f"{ours.timing.least / xla.timing.least:.2f} |",
            flush=True,
        )
    return 0


def programs(spec: ConvSpec, settings: Settings) -> list[Program]:
    """The layer by XLA's convolution, then as `ops.conv` chooses."""

    def dense(x: Array, kernel: Array) -> Array:
        return conv(x, kernel, strides=spec.strides, dilation=spec.dilation)

    chosen = partial(jax.jit(passes(dense, settings)), *arrays(spec, settings))

    def precise() -> object:
        with jax.default_matmul_precision("highest"):  # asks for the last digits: XLA's convolution
            return chosen()

    return [Program("XLA", precise), Program("conv", chosen)]
