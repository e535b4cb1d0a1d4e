"""The depth branch and the passes of recurrent scene parsing: shapes, parameters, MACs, loops."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax.core.routing import Routing
from dynpix_jax.core.trees import map_named, named_leaves
from dynpix_jax.flops import count_macs
from dynpix_jax.papers.perspective.layers import DepthBranch, GatedPooling, Pass

CELLS = 5 * 6
MAP = jax.ShapeDtypeStruct((1, 5, 6, 512), jnp.float32)


def parameters(tree) -> int:
    return sum(int(np.prod(leaf.shape)) for _, leaf in named_leaves(tree))


def passing(signal: str, recurrent: bool, width: int = 512, frozen: bool = False) -> Pass:
    sizes = (1, 2, 4, 8, 16) if width == 512 else (1, 2)
    branch = partial(
        DepthBranch, width, len(sizes), (width // 4, width // 16), dropout=0.1, frozen_norm=frozen
    )
    single = signal == "none"
    pooling = partial(GatedPooling, width, (1,) if single else sizes, tied=single, frozen_norm=frozen)
    has_branch = signal in ("attention", "pred_depth")
    return Pass(width, 40, signal, pooling, branch if has_branch else None, recurrent, 0.1, frozen)


def test_depth_branch_has_the_published_layers():
    """1x1 512-128, 3x3 128-32, 1x1 32-5 with bias, 3x3 32-1 with bias; two norms."""
    branch = DepthBranch(512)
    run = partial(branch.apply, train=False)
    shapes = jax.eval_shape(partial(branch.init, train=False), jax.random.key(0), MAP)
    weights = 512 * 128 + 9 * 128 * 32 + 32 * 5 + 9 * 32
    assert parameters(shapes["params"]) == weights + 5 + 1 + 2 * (128 + 32)
    bins, log_depth = jax.eval_shape(run, shapes, MAP)
    assert (bins.shape, log_depth.shape) == ((1, 5, 6, 5), (1, 5, 6, 1))
    assert count_macs(run, shapes, MAP).total == CELLS * weights
    wide = DepthBranch(512, kernel_size=3, regression=False)
    shapes = jax.eval_shape(partial(wide.init, train=False), jax.random.key(0), MAP)
    assert parameters(shapes["params"]) == 9 * 512 * 128 + 9 * 128 * 32 + 32 * 5 + 5 + 2 * (128 + 32)
    assert jax.eval_shape(partial(wide.apply, train=False), shapes, MAP)[1] is None


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("signal", ["none", "average", "gt_depth", "attention", "pred_depth"])
def test_passes(signal, recurrent):
    """Five 3x3 512-512 (none: one), classes 512-40; a loop adds 3x3 1024-512 and 1x1 512-512."""
    module = passing(signal, recurrent)
    given = dict(
        previous=MAP if recurrent else None,
        truth=jax.ShapeDtypeStruct((1, 5, 6, 5), jnp.float32) if signal == "gt_depth" else None,
    )

    def init(key, x, given):
        return module.init(key, (x,), Routing(), **given)

    def apply(variables, x, given):
        return module.apply(variables, (x,), Routing(), **given)

    shapes = jax.eval_shape(init, jax.random.key(0), MAP, given)
    branches = 1 if signal == "none" else 5
    weights, small = branches * 9 * 512 * 512 + 512 * 40, branches * 2 * 512 + 40
    if recurrent:
        weights, small = weights + 9 * 1024 * 512 + 512 * 512, small + 2 * 2 * 512
    if signal in ("attention", "pred_depth"):
        weights, small = weights + 512 * 128 + 9 * 128 * 32 + 32 * 5 + 9 * 32, small + 6 + 2 * 160
    assert parameters(shapes["params"]) == weights + small
    step = jax.eval_shape(apply, shapes, MAP, given)
    assert step.feature.shape == (1, 5, 6, 512)
    assert step.classes.shape == (1, 5, 6, 40)
    assert (step.weights is None) == (signal in ("none", "average"))
    assert (step.bins is None) == (step.log_depth is None) == (signal not in ("attention", "pred_depth"))
    assert count_macs(apply, shapes, MAP, given).total == CELLS * weights


@pytest.fixture(scope="module")
def small():
    """A small pair of passes, random variables of both, and a loss of two loops with variables a loop."""
    passes = passing("pred_depth", False, 16, True), passing("pred_depth", True, 16, True)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(1, 5, 6, 16)), jnp.float32)

    def draw(path, leaf):
        if path.endswith(("var", "scale")):
            return jnp.asarray(rng.uniform(0.5, 1.0, leaf.shape), leaf.dtype)
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 100
        return jnp.asarray(rng.normal(0, fan_in**-0.5, leaf.shape), leaf.dtype)

    shapes = [
        jax.eval_shape(
            lambda key, module=module, given=given: module.init(key, (x,), Routing(), **given),
            jax.random.key(0),
        )
        for module, given in zip(passes, ({}, {"previous": x}), strict=True)
    ]
    variables = [map_named(draw, tree) for tree in shapes]
    target = jnp.asarray(rng.normal(size=(1, 5, 6, 40)), jnp.float32)

    def loss(first, second):
        """Of the two loops' classes, whose parameters are given apart."""
        step = passes[0].apply(variables[0], (x,), Routing())
        total = jnp.zeros(())
        for params in (first, second):
            both = {**variables[1], "params": params}
            step = passes[1].apply(both, (x,), Routing(), previous=step.feature)
            total = total + jnp.mean((step.classes - target) ** 2)
        return total

    return variables[1]["params"], jax.jit(loss)


def test_gradient_of_two_loops_is_the_sum_over_loops(small):
    """By finite differences: each loop's parameters moved alone, against those of both, which are one."""
    params, loss = small
    gradient = jax.tree.map(np.asarray, jax.jit(jax.grad(lambda p: loss(p, p)))(params))
    params = jax.tree.map(np.asarray, params)
    rng = np.random.default_rng(1)
    # Mostly along the gradient: a random direction's slope would be a small part of it.
    direction = jax.tree.map(
        lambda g: (g / max(np.abs(g).max(), 1e-8) + 0.05 * rng.normal(size=g.shape)).astype(np.float32),
        gradient,
    )
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: float(np.vdot(g, d)), gradient, direction)))
    step = 2e-3
    up, down = (jax.tree.map(lambda p, d, s=s: p + s * step * d, params, direction) for s in (1, -1))
    first = float(loss(up, params) - loss(down, params)) / (2 * step)
    second = float(loss(params, up) - loss(params, down)) / (2 * step)
    assert abs(first) > 0.05 * abs(slope)  # both loops have a part in it
    assert abs(second) > 0.05 * abs(slope)
    np.testing.assert_allclose(first + second, slope, rtol=2e-2)
