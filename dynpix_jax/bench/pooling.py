"""Times depth-aware pooling with arg-max gates, dense and sparse, against mixing all branches.

The "time" of the last line, where each pixel runs its own branch alone, is relative to the first line, where
all five branches run everywhere and are mixed. All are chosen equally often.

example:
  dynpix bench pooling --spec pooling_425x560 --mask blobs
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from dynpix_jax.bench import arg_specs
from dynpix_jax.bench.arg_specs import ConvSpec
from dynpix_jax.bench.arguments import add_dtype, add_specs, add_timing, find_specs, read_settings
from dynpix_jax.bench.masks import make_mask
from dynpix_jax.bench.report import run_jobs
from dynpix_jax.bench.timed import Job, Program, Settings
from dynpix_jax.core.routing import MODES, Mode, Routing
from dynpix_jax.core.typing import Array, Variables
from dynpix_jax.papers.perspective.layers import GatedPooling

SPECS = arg_specs.PERSPECTIVE_POOLING
"""The module's places, by one of its branches."""

SOFT = "all branches"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the program."""
    add_specs(parser)
    add_dtype(parser)
    add_timing(parser)


def run(args: argparse.Namespace) -> int:
    """Measures and prints; gives the exit status."""
    settings = read_settings(args)
    jobs = [
        Job(spec.name, f"five branches, dilations 1 to 16, each {spec}", partial(programs, spec, settings))
        for spec in find_specs(args.spec, SPECS)
    ]
    return run_jobs(jobs, settings, as_json=args.json)


def programs(spec: ConvSpec, settings: Settings) -> list[Program]:
    """The module with soft weights, then with arg-max weights in both modes; random kernels and features.

    ``dense`` runs all branches, too, and the weights pick one; ``sparse`` runs each pixel's own. All branches
    are chosen equally often.

    Args:
        spec: One of the branches.
        settings: How it is measured, forward passes only; ``mask`` says how the choices lie.
    """
    module = GatedPooling(spec.channels, frozen_norm=True)
    count = len(module.dilations)
    shape = (settings.batch, *spec.size)
    x = jax.nn.relu(jax.random.normal(jax.random.key(0), (*shape, spec.channels), settings.dtype))
    soft = jax.nn.softmax(jax.random.normal(jax.random.key(1), (*shape, count)))
    hard = jax.nn.one_hot(choices(settings, shape, count), count)
    init = partial(module.init, weights=None, routing=Routing())
    variables = jax.jit(init)(jax.random.key(2), x[:1, :8, :8])

    @partial(jax.jit, static_argnames=("mode", "one_hot"))
    def run(variables: Variables, x: Array, weights: Array, mode: Mode, *, one_hot: bool) -> Any:
        return module.apply(variables, x, weights, Routing(mode=mode), one_hot=one_hot)

    listed = [Program(SOFT, partial(run, variables, x, soft, "dense", one_hot=False))]
    for mode in MODES:
        # The masks of the branches, not what a mode executes: `mac_ratio` is what they leave.
        ratio = 1.0 / count
        program = partial(run, variables, x, hard, mode, one_hot=True)
        listed.append(Program(f"arg-max, {mode}", program, ratio, ratio))
    return listed


def choices(settings: Settings, shape: tuple[int, int, int], count: int) -> Array:
    """(B, H, W) int32 in [0, count), each equally often; ``settings.mask`` says how they lie."""
    key = jax.random.key(3)
    # One field's masks of growing density lie within each other: how many hold a pixel is its level.
    nested = [make_mask(settings.mask, key, shape, level / count) for level in range(1, count)]
    return sum((mask.astype(jnp.int32) for mask in nested), jnp.zeros(shape, jnp.int32))
