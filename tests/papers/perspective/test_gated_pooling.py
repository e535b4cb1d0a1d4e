"""Gated pooling against SciPy, and sparse against dense for one-hot weights."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import correlate

from dynpix_jax.core.routing import Routing
from dynpix_jax.papers.perspective.layers import GatedPooling, MultiScalePooling

DILATIONS = (1, 2, 4)
SHAPE = (2, 6, 7, 4)


def image(seed: int = 1):
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


@cache
def variables(tied: bool):
    names = ["shared"] if tied else [f"dilation_{d}" for d in DILATIONS]
    rng = np.random.default_rng(0)
    tree: dict = {"params": {}, "batch_stats": {}}
    for name in names:
        norm = {key: rng.uniform(0.5, 1.0, 4).astype(np.float32) for key in ("scale", "bias", "mean", "var")}
        kernel = rng.normal(0, 0.2, (3, 3, 4, 4)).astype(np.float32)
        moments = {key: norm.pop(key) for key in ("mean", "var")}
        tree["params"][name] = {"conv": {"kernel": kernel}, "bn": norm}
        tree["batch_stats"][name] = {"bn": moments}
    return tree


def branch(x, name, dilation, tree):
    """Norm and ReLU of a dilated 3x3, by SciPy."""
    kernel, norm = tree["params"][name]["conv"]["kernel"], tree["params"][name]["bn"]
    moments = tree["batch_stats"][name]["bn"]
    wide = np.zeros((2 * dilation + 1, 2 * dilation + 1, 4, 4))
    wide[::dilation, ::dilation] = kernel
    y = np.stack(
        [
            sum(
                correlate(x[b, ..., i].astype(np.float64), wide[..., i, o], mode="constant") for i in range(4)
            )
            for b in range(2)
            for o in range(4)
        ]
    )
    y = np.moveaxis(y.reshape(2, 4, *x.shape[1:3]), 1, -1)
    return np.maximum(
        (y - moments["mean"]) / np.sqrt(moments["var"] + 1e-5) * norm["scale"] + norm["bias"], 0
    )


@cache
def program(tied: bool, mode: str, one_hot: bool, weighted: bool):
    module = GatedPooling(4, DILATIONS, tied)
    return jax.jit(
        lambda v, x, w: module.apply(v, x, w if weighted else None, Routing(mode=mode), one_hot=one_hot)
    )


@pytest.mark.parametrize("tied", [False, True])
def test_weighted_sum_and_mean_of_branches(tied):
    x, tree = image(), variables(tied)
    names = ["shared"] * 3 if tied else [f"dilation_{d}" for d in DILATIONS]
    maps = [branch(x, name, d, tree) for name, d in zip(names, DILATIONS, strict=True)]
    weights = np.random.default_rng(2).dirichlet(np.ones(3), SHAPE[:3]).astype(np.float32)
    expected = sum(weights[..., i, None] * m for i, m in enumerate(maps))
    np.testing.assert_allclose(program(tied, "dense", False, True)(tree, x, weights), expected, atol=1e-5)
    mean = program(tied, "dense", False, False)(tree, x, weights)
    np.testing.assert_allclose(mean, np.mean(maps, axis=0), atol=1e-5)
    # Soft weights run every branch everywhere, in sparse mode too.
    soft = program(tied, "sparse", False, True)(tree, x, weights)
    np.testing.assert_allclose(soft, expected, atol=1e-5)


@given(st.integers(0, 10**6), st.sampled_from(["mixed", "one", "two"]))
def test_sparse_equals_dense(seed, kind):
    rng = np.random.default_rng(seed)
    count = {"mixed": 3, "two": 2, "one": 1}[kind]
    chosen = rng.permutation(3)[:count][rng.integers(0, count, SHAPE[:3])]
    weights = np.eye(3, dtype=np.float32)[chosen]
    for tied in (False, True):
        x, tree = image(seed), variables(tied)
        dense = program(tied, "dense", True, True)(tree, x, weights)
        sparse = program(tied, "sparse", True, True)(tree, x, weights)
        np.testing.assert_allclose(sparse, dense, atol=1e-5)


def test_sparse_training_needs_frozen_norms():
    module = GatedPooling(4, DILATIONS)
    with pytest.raises(ValueError, match="frozen norms"):
        jax.eval_shape(
            lambda v: module.apply(
                v, image(), jnp.ones((*SHAPE[:3], 3)), Routing(True, "sparse"), one_hot=True
            ),
            variables(False),
        )


@pytest.mark.parametrize("tied", [False, True])
def test_maps_of_several_scales_meet_at_the_first(tied):
    """Constant maps: away from the border, resizing changes nothing."""
    module = MultiScalePooling(4, 2, tied)
    maps = tuple(jnp.full((1, size, size, 4), value) for size, value in ((8, 1.0), (6, 2.0)))
    weights = jnp.asarray([0.25, 0.75]) * jnp.ones((1, 8, 8, 1))
    tree = module.init(jax.random.key(0), maps, weights, Routing())
    assert set(tree["params"]) == ({"shared"} if tied else {"scale_0", "scale_1"})
    out = module.apply(tree, maps, weights, Routing())
    expected = 0.0
    for i, share in enumerate((0.25, 0.75)):
        kernel = tree["params"]["shared" if tied else f"scale_{i}"]["conv"]["kernel"]
        expected = expected + share * np.maximum(kernel.sum((0, 1, 2)) * (i + 1) / np.sqrt(1 + 1e-5), 0)
    np.testing.assert_allclose(out[0, 4, 4], expected, rtol=1e-4, atol=1e-5)
