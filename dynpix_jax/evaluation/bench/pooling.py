"""Depth-aware gated pooling: each pixel in its own branch alone, against all branches everywhere."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from dynpix_jax.core.routing import MODES, Mode, Routing
from dynpix_jax.core.typing import Array, Variables
from dynpix_jax.evaluation.bench.rows import Program, Settings
from dynpix_jax.ops.sparse import arg_specs
from dynpix_jax.ops.sparse.arg_specs import ConvSpec
from dynpix_jax.ops.sparse.masks import make_mask
from dynpix_jax.papers.perspective.gated_pooling import GatedPooling

SPECS = arg_specs.PERSPECTIVE_POOLING
"""The module's places, by one of its branches."""

SOFT = "all branches"


def programs(spec: ConvSpec, settings: Settings) -> list[Program]:
    """The module with soft weights, then with arg-max weights in both modes; random kernels and features.

    Of ``dense`` all branches run, too, and the weights pick one; of ``sparse`` each pixel's own. All branches
    are chosen equally often.

    Args:
      spec: one of the branches.
      settings: how it is measured, forward passes only; ``mask`` says how the choices lie.
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
    def run(variables: Variables, x: Array, weights: Array, mode: Mode, one_hot: bool) -> Any:
        return module.apply(variables, x, weights, Routing(mode=mode), one_hot=one_hot)

    listed = [Program(SOFT, partial(run, variables, x, soft, "dense", False))]
    for mode in MODES:
        # The masks of the branches, not what a mode executes: `mac_ratio` is what they leave.
        ratio = 1.0 / count
        listed.append(Program(f"arg-max, {mode}", partial(run, variables, x, hard, mode, True), ratio, ratio))
    return listed


def choices(settings: Settings, shape: tuple[int, int, int], count: int) -> Array:
    """(B, H, W) int32 in [0, count), each equally often; ``settings.mask`` says how they lie."""
    key = jax.random.key(3)
    # One field's masks of growing density lie within each other: how many hold a pixel is its level.
    nested = [make_mask(settings.mask, key, shape, level / count) for level in range(1, count)]
    return sum((mask.astype(jnp.int32) for mask in nested), jnp.zeros(shape, jnp.int32))
