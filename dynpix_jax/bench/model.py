"""Times a config's network under masks of given densities, dense and sparse, against the ungated one.

All gates get masks of the same density; weights are random. The first line is the dense network with every
gate open; of a MultiPool it computes all branches, and its MACs are counted so.

example:
  dynpix bench model --config=configs/pag/bsds500.py:variant=gated,gate_scope=residual --size 480x640
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dynpix_jax.bench.arguments import add_timing, read_settings
from dynpix_jax.bench.conv import AUTO
from dynpix_jax.bench.masks import Kind, make_mask
from dynpix_jax.bench.network import add_network, read_network
from dynpix_jax.bench.report import run_jobs
from dynpix_jax.bench.timed import Job, Program, Settings
from dynpix_jax.core.capabilities import TakesMasks, executed_shares
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.routing import Mode, Routing
from dynpix_jax.core.system import Inputs, Outputs, System
from dynpix_jax.core.typing import Array, Mask, PRNGKey, Variables
from dynpix_jax.flops import input_shapes, system_macs, variable_shapes
from dynpix_jax.ops.sparse import ImplementationUnavailable, implementations

UNGATED = "ungated"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the program."""
    add_network(parser)
    parser.add_argument(
        "--implementation",
        nargs="+",
        choices=[AUTO, *implementations()],
        metavar="NAME",
        help=f"of the sparse mode: {', '.join(implementations())}, or {AUTO}, what None picks "
        "(default: execution.implementation of the config)",
    )
    add_timing(parser, densities=(0.3, 0.5, 0.7, 0.9))


def run(args: argparse.Namespace) -> int:
    """Measures and prints; gives the exit status."""
    settings, network = read_settings(args), read_network(args)
    settings = dataclasses.replace(settings, dtype=network.dtype)
    if not gate_shapes(network.system, network.size):
        raise UserError(f"{network.name}: its network has no gates to measure")
    height, width = network.size
    names = args.implementation or [network.implementation or AUTO]
    # A network takes much longer than its dispatch, and its results take more memory than a layer's.
    job = Job(
        args.config,
        f"{network.name}, images of {height}x{width} pixels (height x width)",
        partial(programs, network.system, network.size, settings, names),
        calls=1,
    )
    return run_jobs([job], settings, as_json=args.json)


def gate_shapes(system: System, size: tuple[int, int], batch: int = 1) -> dict[str, tuple[int, int, int]]:
    """(B, h, w) of the mask of each gate for images of ``size`` (H, W); nothing is executed."""
    images = jax.ShapeDtypeStruct((batch, *size, 3), jnp.uint8)
    inputs = input_shapes(system, size, batch)

    def apply(variables: Variables, images: Array, inputs: Inputs) -> Outputs:
        return system.apply(variables, images, inputs)

    outputs = jax.eval_shape(apply, variable_shapes(system), images, inputs)
    return {name: mask.shape for name, mask in outputs.gates.items()}


def programs(
    system: System, size: tuple[int, int], settings: Settings, names: Sequence[str] = (AUTO,)
) -> list[Program]:
    """The ungated network, then the gated one in both modes at each density; random weights and images.

    All gates get masks of the same density, drawn one by one (nested ones: see `draw_masks`), and are
    computed although the masks replace their decisions. ``ungated`` is the dense program with every gate
    open, from which the compiler removes gates and masks. Of a MultiPool it computes all branches, and its
    MACs are counted so.

    Args:
        system: With gates.
        size: (H, W) of the images in pixels.
        settings: How it is measured, forward passes only.
        names: Implementations of the sparse mode, or AUTO.

    Raises:
        ValueError: The network has no gates.
        UserError: Its gates decide for a whole image and cannot follow the masks, or an implementation cannot
            run the network here.
    """
    images = jax.random.randint(jax.random.key(0), (settings.batch, *size, 3), 0, 256, jnp.uint8)
    shapes = gate_shapes(system, size, settings.batch)
    if not shapes:
        raise ValueError("model: the network has no gates")
    inputs = random_inputs(system, size, settings.batch)
    variables = jax.jit(system.init)(jax.random.key(1), {"image": images[:1]})

    @jax.jit
    def ungated(variables: Variables, images: Array, inputs: Inputs) -> Outputs:
        # Constant masks: the compiler removes the gates.
        masks = {name: jnp.ones(shape, jnp.bool_) for name, shape in shapes.items()}
        outputs = system.apply(variables, images, inputs, Routing(masks=masks))
        return dataclasses.replace(outputs, gates={}, probabilities={})

    @partial(jax.jit, static_argnames=("mode", "implementation"))
    def gated(
        variables: Variables,
        images: Array,
        inputs: Inputs,
        masks: Mapping[str, Mask],
        mode: Mode,
        implementation: str | None = None,
    ) -> Outputs:
        # The gates' decisions are among the outputs, so that the compiler keeps the gates.
        routing = Routing(mode=mode, masks=masks, implementation=implementation)
        return system.apply(variables, images, inputs, routing)

    listed = [Program(UNGATED, partial(ungated, variables, images, inputs))]
    macs = system_macs(system, size)
    for index, density in enumerate(settings.densities):
        key = jax.random.fold_in(jax.random.key(2), index)
        masks = draw_masks(system, settings.mask, key, shapes, density)
        arguments = (variables, images, inputs, masks)
        outputs = gated(*arguments, "sparse")
        share = common_density(masks, outputs)
        shares = {name: float(value.mean()) for name, value in executed_shares(system, outputs).items()}
        mac_ratio = macs.executed(shares) / macs.report.total
        listed.append(Program("dense", partial(gated, *arguments, "dense"), share, mac_ratio))
        for name in names:
            implementation = None if name == AUTO else name
            run = partial(gated, *arguments, "sparse", implementation)
            try:
                jax.eval_shape(run)
            except ImplementationUnavailable as reason:
                raise UserError(f"--implementation {name}: {reason}") from None
            label = "sparse" if implementation is None else f"sparse, {name}"
            listed.append(Program(label, run, share, mac_ratio))
    return listed


def draw_masks(
    system: System, kind: Kind, key: PRNGKey, shapes: Mapping[str, tuple[int, int, int]], density: float
) -> dict[str, Mask]:
    """A mask for each gate, of that density; nested ones have it in the mean.

    Nested masks are thresholds of one field, as of exits with growing confidence: of three gates the first
    skips half of the mean share, the last 1.5 times the mean (the anytime paper's table 1: 18, 37 and 62 %).
    """
    if not (isinstance(system, TakesMasks) and system.nested_gates):
        return {
            name: make_mask(kind, jax.random.fold_in(key, number), shape, density)
            for number, (name, shape) in enumerate(shapes.items())
        }
    count = len(shapes)
    skipped = [min(1.0, (1 - density) * 2 * (number + 1) / (count + 1)) for number in range(count)]
    return {
        name: make_mask(kind, key, shape, 1 - share)
        for (name, shape), share in zip(shapes.items(), skipped, strict=True)
    }


def random_inputs(system: System, size: tuple[int, int], batch: int) -> Inputs:
    """What the system takes beside images of ``size`` (H, W): metres, evenly from near to far."""
    return {
        name: jax.random.uniform(jax.random.key(4), like.shape, like.dtype, 0.5, 10.0)
        for name, like in input_shapes(system, size, batch).items()
    }


def common_density(masks: Mapping[str, Mask], outputs: Outputs) -> float:
    """Mean density of the masks, each with equal weight, which the gates of ``outputs`` must have followed.

    Raises:
        UserError: A gate has not followed its mask, because it decides for whole images.
    """
    for name, mask in masks.items():
        if not np.array_equal(mask, outputs.gates[name]):
            raise UserError(
                f"gate {name} decides for a whole image; of densities only 0 and 1 can be measured"
            )
    return float(np.mean([mask.mean() for mask in masks.values()]))
