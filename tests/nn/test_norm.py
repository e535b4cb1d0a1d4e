"""Batch norm against Flax's own, trained and frozen."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax.nn.norm import BatchNorm


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(1.5, 2.0, (3, 5, 7, 4)), jnp.float32)
    stats = {"mean": rng.normal(size=4), "var": rng.uniform(0.5, 2.0, 4)}
    variables = {"params": {"scale": rng.normal(size=4), "bias": rng.normal(size=4)}, "batch_stats": stats}
    return x, jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), variables)


@pytest.mark.parametrize("train", [False, True])
def test_equals_flax(case, train):
    x, variables = case
    flax_norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)
    expected, expected_updates = flax_norm.apply(variables, x, mutable=["batch_stats"])
    got, updates = BatchNorm(4).apply(variables, x, train=train, mutable=["batch_stats"])
    np.testing.assert_allclose(got, expected, atol=1e-5)
    for name, value in expected_updates["batch_stats"].items():
        np.testing.assert_allclose(updates["batch_stats"][name], value, rtol=1e-5, err_msg=name)
        assert train == bool(np.any(value != variables["batch_stats"][name]))


def test_frozen_norm_is_the_same_in_training(case):
    x, variables = case
    norm = BatchNorm(4, frozen=True)
    trained, updates = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_array_equal(trained, norm.apply(variables, x, train=False))
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])


def test_initialisation_does_not_move_the_moments(case):
    x, _ = case
    stats = BatchNorm(4).init(jax.random.key(0), x, train=True)["batch_stats"]
    np.testing.assert_array_equal(stats["mean"], np.zeros(4))
    np.testing.assert_array_equal(stats["var"], np.ones(4))


def test_the_stored_variance_may_be_the_unbiased_one(case):
    """As PyTorch's: n / (n - 1) times the batch's, which normalises the batch in both."""
    x, variables = case
    plain, biased = BatchNorm(4).apply(variables, x, train=True, mutable=["batch_stats"])
    found, updates = BatchNorm(4, unbiased=True).apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_array_equal(found, plain)
    np.testing.assert_array_equal(updates["batch_stats"]["mean"], biased["batch_stats"]["mean"])
    expected = 0.9 * variables["batch_stats"]["var"] + 0.1 * np.var(x, axis=(0, 1, 2), ddof=1)
    np.testing.assert_allclose(updates["batch_stats"]["var"], expected, rtol=1e-5)
