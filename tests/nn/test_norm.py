"""Batch norm against Flax's own, trained and frozen."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax.core.statistics import norms_over
from dynpix_jax.nn.norm import BatchNorm
from dynpix_jax.ops.affine import moments

ROOT = Path(__file__).resolve().parents[2]


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
    chex.assert_trees_all_equal(updates["batch_stats"], variables["batch_stats"])


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


def gradients(norm, variables, x):
    """Of a loss that reads every output differently, for the parameters and the input."""
    weights = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)

    def loss(params, x):
        y = norm.apply({**variables, "params": params}, x, mutable=["batch_stats"])[0]
        return (weights * y.astype(jnp.float32) ** 2).sum()

    return jax.grad(loss, (0, 1))(variables["params"], x)


def test_gradients_are_those_of_flax(case):
    x, variables = case
    flax_norm = nn.BatchNorm(use_running_average=False, momentum=0.9, epsilon=1e-5)
    expected = gradients(flax_norm, variables, x)
    found = gradients(Trained(), variables, x)
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_shift_has_no_gradient(case):
    """A norm that is called twice: its stored mean has moved by what the parameters below gave."""
    x, _ = case
    mean = jnp.full(4, 1.5)

    def total(factor, *, follows):
        shift = mean * factor if follows else mean
        return sum(jnp.sum(jnp.sin(values)) for values in moments(x * factor, shift))

    found, expected = (jax.grad(partial(total, follows=follows))(1.0) for follows in (True, False))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


class Trained(BatchNorm):
    """BatchNorm in training."""

    features: int = 4

    def __call__(self, x):
        return super().__call__(x, train=True)


def test_a_mean_far_from_zero_does_not_cancel(case):
    """Once the stored mean is near to it: a thousand standard deviations."""
    x, variables = case
    far = x + 2000.0
    stats = {**variables["batch_stats"], "mean": jnp.full(4, 2001.0)}
    found, _ = BatchNorm(4).apply(
        {**variables, "batch_stats": stats}, far, train=True, mutable=["batch_stats"]
    )
    exact = np.asarray(far, np.float64)
    normed = (exact - exact.mean((0, 1, 2))) / np.sqrt(exact.var((0, 1, 2)) + 1e-5)
    scale, bias = (np.asarray(variables["params"][name], np.float64) for name in ("scale", "bias"))
    np.testing.assert_allclose(found, normed * scale + bias, atol=2e-3)


def test_a_constant_map_has_no_variance_below_zero(case):
    _, variables = case
    x = jnp.full((2, 3, 3, 4), 1e4)
    found, updates = BatchNorm(4).apply(variables, x, train=True, mutable=["batch_stats"])
    assert np.isfinite(found).all()
    assert (updates["batch_stats"]["var"] >= 0).all()


def test_bfloat16_is_computed_in_float32(case):
    """Also where all of a channel's values are added: 512 ones and more would stop at 256 in bfloat16."""
    x, variables = case
    x = jnp.tile(x, (1, 4, 4, 1)).astype(jnp.bfloat16)
    found, updates = BatchNorm(4).apply(variables, x, train=True, mutable=["batch_stats"])
    wide_x = x.astype(jnp.float32)
    expected, exact = BatchNorm(4).apply(variables, wide_x, train=True, mutable=["batch_stats"])
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=2**-8, atol=1e-6)
    chex.assert_trees_all_equal(updates, exact)
    of_params, of_x = gradients(Trained(), variables, x)
    assert of_x.dtype == jnp.bfloat16
    wide = gradients(Trained(), variables, wide_x)[0]
    chex.assert_trees_all_close(of_params, wide, rtol=2e-2, atol=0.5)


@dataclass(frozen=True)
class FlaxInParts:
    """Flax's norm on so many images at a time, with the same parameters."""

    images: int

    def apply(self, variables, x, mutable):
        norm = nn.BatchNorm(use_running_average=False, momentum=0.9, epsilon=1e-5)
        parts = jnp.split(x, len(x) // self.images)
        return jnp.concatenate([norm.apply(variables, part, mutable=mutable)[0] for part in parts]), {}


@pytest.mark.parametrize("images", [1, 2])
def test_groups_are_normed_by_themselves(case, images):
    x, variables = case
    x = jnp.concatenate([x, 3.0 * x[:1] + 1.0])
    alone = [
        BatchNorm(4).apply(variables, part, train=True, mutable=["batch_stats"])
        for part in jnp.split(x, len(x) // images)
    ]
    with norms_over(images):
        found, updates = BatchNorm(4).apply(variables, x, train=True, mutable=["batch_stats"])
        found_gradients = gradients(Trained(), variables, x)
    np.testing.assert_allclose(found, jnp.concatenate([y for y, _ in alone]), atol=1e-5)
    for name, value in updates["batch_stats"].items():
        mean = np.mean([moved["batch_stats"][name] for _, moved in alone], 0)
        np.testing.assert_allclose(value, mean, rtol=1e-5, err_msg=name)
    expected = gradients(FlaxInParts(images), variables, x)
    chex.assert_trees_all_close(found_gradients, expected, rtol=1e-4, atol=1e-4)


COUNT = """
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from dynpix_jax.core.statistics import norms_over
from dynpix_jax.nn.norm import BatchNorm
from dynpix_jax.ops.affine import moments

mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
norms = [BatchNorm(3), BatchNorm(3)]
x = jax.ShapeDtypeStruct((4, 5, 5, 3), jnp.float32)
variables = [jax.eval_shape(norm.init, jax.random.key(0), x) for norm in norms]

def step(variables, x):
    def loss(params, x):
        moved = []
        for norm, own, given in zip(norms, params, variables):
            x, stats = norm.apply({**given, "params": own}, x, train=True, mutable=["batch_stats"])
            x, moved = jax.nn.relu(x), [*moved, stats]
        return (x**3).sum((1, 2, 3)), moved
    values, pull, moved = jax.vjp(loss, [v["params"] for v in variables], x, has_aux=True)
    return moved, pull(values)

at = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
for group in ("global", 2):

    def grouped(*arguments):
        with norms_over(group):
            return step(*arguments)

    print(jax.jit(grouped, in_shardings=at).lower(variables, x).compile().as_text(), "PROGRAM")
"""


def test_all_reduces_of_a_layer():
    """One forward and one backward; norms over each device's images wait for none."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-c", COUNT], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    over_all, local, _ = done.stdout.split("PROGRAM")
    assert len(re.findall(r" all-reduce\(", over_all)) == 4
    # Stored moments and the parameters' gradients, which nothing waits for, go together.
    assert len(re.findall(r" all-reduce\(", local)) <= 2
    for program in (over_all, local):
        assert not re.search(r" (all-gather|all-to-all|collective-permute)\(", program)
