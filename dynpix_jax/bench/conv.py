"""Times implementations of ops.perforated_conv against XLA's dense convolution, on the papers' layers.

example:
  dynpix bench perforated-conv --spec res4_480x640 res5_480x640 --density .1 .3 .5 .7 --mask blobs
  dynpix bench perforated-conv --implementation auto --dtype bfloat16 --batch 16 --torch --json > conv.json
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp

from dynpix_jax.bench import arg_specs, torch_conv
from dynpix_jax.bench.arg_specs import ConvSpec
from dynpix_jax.bench.arguments import add_dtype, add_specs, add_timing, find_specs, read_settings
from dynpix_jax.bench.masks import make_mask
from dynpix_jax.bench.report import run_jobs
from dynpix_jax.bench.timed import Job, LeftOut, Program, Settings
from dynpix_jax.core.errors import UserError, suggest
from dynpix_jax.core.typing import Array, Mask
from dynpix_jax.ops.conv import conv
from dynpix_jax.ops.sparse import (
    ActiveSet,
    ImplementationUnavailable,
    active_set,
    implementations,
    perforated_conv,
)

AUTO = "auto"
"""Name of ``implementation=None`` among the implementations."""

Forward = Callable[[Array, Array], Array]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the program."""
    add_specs(parser)
    parser.add_argument(
        "--implementation",
        nargs="+",
        metavar="NAME",
        help=f"{', '.join([AUTO, *implementations()])} (default: {AUTO}, which is what None picks, "
        "and all that can run here)",
    )
    add_dtype(parser)
    parser.add_argument(
        "--shared-active",
        action="store_true",
        help="make the masks' active sets beforehand, as where layers share a mask (default: in each call)",
    )
    parser.add_argument("--torch", action="store_true", help="also time PyTorch's dense convolution")
    add_timing(parser, densities=(0.1, 0.3, 0.5, 0.7, 1.0), backward=True)


def run(args: argparse.Namespace) -> int:
    """Measures and prints; gives the exit status."""
    settings = read_settings(args)
    specs = find_specs(args.spec, arg_specs.ALL)
    asked, known = args.implementation or (), [AUTO, *implementations()]
    for name in asked:
        if name not in known:
            raise UserError(f"--implementation {name}: there is none; {suggest(name, known)}")
    if args.torch:
        torch_conv.check()
    names = list(dict.fromkeys(asked or known))
    reasons = {spec: {name: unavailable(spec, name, settings) for name in names} for spec in specs}
    for name in asked:
        if all(reasons[spec][name] for spec in specs):
            raise UserError(f"{specs[0].name}: {reasons[specs[0]][name]}")

    def build(spec: ConvSpec) -> list[Program]:
        able = [name for name in names if not reasons[spec][name]]
        dense, *others = programs(spec, able, settings, shared_active=args.shared_active)
        return [dense, *([torch_conv.program(spec, settings)] if args.torch else []), *others]

    jobs = [Job(spec.name, str(spec), partial(build, spec)) for spec in specs]
    left_out = [
        LeftOut(spec.name, name, reason, asked_for=bool(asked))
        for spec in specs
        for name, reason in reasons[spec].items()
        if reason
    ]
    return run_jobs(jobs, settings, as_json=args.json, left_out=left_out)


def unavailable(spec: ConvSpec, implementation: str, settings: Settings) -> str:
    """Why an implementation (or AUTO) cannot run the layer here, "" if it can; nothing is executed."""
    x, kernel = jax.eval_shape(partial(arrays, spec, settings))
    mask = jax.ShapeDtypeStruct((settings.batch, *spec.output_size), jnp.bool_)
    try:
        jax.eval_shape(partial(_perforated, spec, implementation), x, kernel, mask)
    except ImplementationUnavailable as reason:
        return str(reason)
    return ""


def programs(
    spec: ConvSpec, implementations: Sequence[str], settings: Settings, *, shared_active: bool = False
) -> list[Program]:
    """The dense convolution, then each implementation at each density."""
    x, kernel = arrays(spec, settings)
    strides, dilation = spec.strides, spec.dilation

    def dense(x: Array, kernel: Array) -> Array:
        return conv(x, kernel, strides=strides, dilation=dilation)

    def perforated(name: str) -> Callable[[Array, Array, Mask | ActiveSet], object]:
        def run(x: Array, kernel: Array, active: Mask | ActiveSet) -> object:
            return passes(lambda a, b: _perforated(spec, name, a, b, active), settings)(x, kernel)

        return jax.jit(run)

    listed = [Program("dense", partial(jax.jit(passes(dense, settings)), x, kernel))]
    compiled = {name: perforated(name) for name in implementations}
    for index, density in enumerate(settings.densities):
        key = jax.random.fold_in(jax.random.key(1), index)
        mask = make_mask(settings.mask, key, (settings.batch, *spec.output_size), density)
        active = jax.jit(active_set)(mask) if shared_active else mask
        share = float(mask.mean())
        for name, run in compiled.items():
            listed.append(Program(name, partial(run, x, kernel, active), share, share))
    return listed


def arrays(spec: ConvSpec, settings: Settings) -> tuple[Array, Array]:
    """Random features (B, H, W, Cin) and kernel of the layer."""
    keys = jax.random.split(jax.random.key(0))
    shape = (*spec.kernel_size, spec.channels, spec.features)
    x = jax.random.normal(keys[0], (settings.batch, *spec.size, spec.channels), settings.dtype)
    # Scaled so that the layer keeps the magnitude of x.
    return x, jax.random.normal(keys[1], shape, settings.dtype) * math.prod(shape[:3]) ** -0.5


def _perforated(spec: ConvSpec, name: str, x: Array, kernel: Array, active: Mask | ActiveSet) -> Array:
    return perforated_conv(
        x,
        kernel,
        active,
        strides=spec.strides,
        dilation=spec.dilation,
        implementation=None if name == AUTO else name,
    )


def passes(forward: Forward, settings: Settings) -> Callable[[Array, Array], object]:
    """The forward pass and, if it is measured, the backward pass with the result as cotangent."""
    if not settings.backward:
        return forward

    def both(x: Array, kernel: Array) -> object:
        y, backward = jax.vjp(forward, x, kernel)
        return y, backward(y)

    return both
