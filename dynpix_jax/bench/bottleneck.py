"""Times PAG's gated bottleneck, dense and sparse, against the plain one.

In sparse mode its layers are fused at the active positions.

example:
  dynpix bench bottleneck --spec res4_480x640 --density .5 --backward
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import jax
import jax.numpy as jnp

from dynpix_jax.bench import arg_specs
from dynpix_jax.bench.arg_specs import ConvSpec
from dynpix_jax.bench.arguments import add_specs, add_timing, find_specs, read_settings
from dynpix_jax.bench.masks import make_mask
from dynpix_jax.bench.report import run_jobs
from dynpix_jax.bench.timed import Job, Program, Settings
from dynpix_jax.core.routing import MODES, Mode, Routing
from dynpix_jax.core.typing import Array, Variables
from dynpix_jax.nn.residual import Bottleneck, ResidualSpec
from dynpix_jax.papers.pag.layers import GatedBlock, GateScope

SPECS = arg_specs.PAG_RESNET50_BSDS + arg_specs.PAG_RESNET50_NYU
"""The bottlenecks, by their 3x3."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the program."""
    add_specs(parser)
    parser.add_argument("--scope", choices=get_args(GateScope), default="residual")
    add_timing(parser, densities=(0.3, 0.5, 0.7, 0.9), backward=True)


def run(args: argparse.Namespace) -> int:
    """Measures and prints; gives the exit status."""
    settings = read_settings(args)
    jobs = [
        Job(spec.name, f"bottleneck around {spec}", partial(programs, spec, settings, scope=args.scope))
        for spec in find_specs(args.spec, SPECS)
    ]
    return run_jobs(jobs, settings, as_json=args.json)


def programs(spec: ConvSpec, settings: Settings, *, scope: GateScope = "residual") -> list[Program]:
    """The plain bottleneck, then the gated one in both modes at each density, with its gate at work.

    Args:
        spec: Its 3x3; it has four times the channels outside.
        settings: How it is measured; ``backward`` is a training step's gradients, with frozen norms.
        scope: What the gate saves, see GatedBlock.
    """
    block = ResidualSpec(
        spec.name,
        "stage",
        4 * spec.channels,
        spec.channels,
        4 * spec.channels,
        dilation=spec.dilation[0],
        frozen_norm=True,
        rectified=True,
    )
    gated = GatedBlock(Bottleneck(block), gate_scope=scope)
    x = jax.nn.relu(
        jax.random.normal(jax.random.key(0), (settings.batch, *spec.size, 4 * spec.channels), settings.dtype)
    )
    variables = jax.jit(partial(gated.init, routing=Routing()))(jax.random.key(1), x[:1, :8, :8])
    # The plain bottleneck has no parameters of a gate.
    ungated = {name: {k: v for k, v in tree.items() if k != "gate"} for name, tree in variables.items()}

    def plain(variables: Variables, x: Array, mask: None) -> Any:
        return Bottleneck(block).apply(variables, x, train=settings.backward)

    def routed(mode: Mode, variables: Variables, x: Array, mask: Array) -> Any:
        y: Any
        beside: Any
        y, beside = gated.apply(
            variables,
            x,
            Routing(train=settings.backward, mode=mode),
            given=mask,
            rngs={"gumbel": jax.random.key(2)},
        )
        # The gate's decision is returned, so that the compiler keeps the gate although its mask is given.
        return y, beside.probability

    def passes(forward: Callable[..., Any]) -> Callable[..., Any]:
        return jax.jit(partial(_with_gradients, forward) if settings.backward else forward)

    listed = [Program("plain", partial(passes(plain), ungated, x, None))]
    compiled = {mode: passes(partial(routed, mode)) for mode in MODES}
    for index, density in enumerate(settings.densities):
        key = jax.random.fold_in(jax.random.key(3), index)
        mask = make_mask(settings.mask, key, (settings.batch, *spec.size), density)
        share = float(mask.mean())
        for mode, run in compiled.items():
            listed.append(Program(mode, partial(run, variables, x, mask), share, mac_ratio(share, scope)))
    return listed


def mac_ratio(density: float, scope: GateScope) -> float:
    """MACs of the bottleneck at a density over those of the plain one; the gate's own, few, do not count.

    With C channels within and 4 C outside, a position costs 4 C^2 in F1, 9 C^2 in F2 and 4 C^2 in F3.
    """
    gated = 13 if scope == "residual" else 9
    return 1.0 - gated / 17 * (1.0 - density)


def _with_gradients(forward: Callable[..., Any], variables: Variables, x: Array, mask: Array | None) -> Any:
    """The result, and the gradients of parameters and input for the result itself as cotangent."""

    def run(params: Any, x: Array) -> Any:
        return forward({**variables, "params": params}, x, mask)

    result, backward = jax.vjp(run, variables["params"], x)
    cotangent = result
    if isinstance(result, tuple):  # the gate's outputs give no gradient
        cotangent = (result[0], jax.tree.map(jnp.zeros_like, result[1]))
    return result, backward(cotangent)
