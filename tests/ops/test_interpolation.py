"""Interpolation of skipped positions, against a loop over windows and the golden values of the kernel."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynpix_jax.ops.interpolation import interpolate_masked, rbf_weights


def loop(x, mask, lam, radius, normalize):
    """Eq. 3, position by position."""
    result = x.astype(np.float64)
    full = sum(
        np.exp(-(lam**2) * (i * i + j * j))
        for i in range(-radius, radius + 1)
        for j in range(-radius, radius + 1)
        if (i, j) != (0, 0)
    )
    for b, r, c in np.argwhere(~mask):
        values, weights = np.zeros(x.shape[-1]), 0.0
        for i in range(max(r - radius, 0), min(r + radius + 1, x.shape[1])):
            for j in range(max(c - radius, 0), min(c + radius + 1, x.shape[2])):
                if mask[b, i, j]:
                    w = np.exp(-(lam**2) * ((i - r) ** 2 + (j - c) ** 2))
                    values, weights = values + w * x[b, i, j], weights + w
        result[b, r, c] = values / ((full if normalize == "full" else weights) + 1e-5)
    return result


jitted = jax.jit(interpolate_masked, static_argnames=("radius", "normalize"))


@pytest.mark.parametrize(("normalize", "radius"), [("full", 3), ("present", 3), ("full", 1)])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 99), lam=st.floats(0.2, 3.5))
def test_equals_a_loop_over_windows(normalize, radius, seed, lam):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, 6, 7, 3)).astype(np.float32)
    mask = rng.random((2, 6, 7)) < rng.random()
    found = jitted(x, mask, lam, radius=radius, normalize=normalize)
    np.testing.assert_allclose(found, loop(x, mask, lam, radius, normalize), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("normalize", ["full", "present"])
def test_bfloat16_is_rounded_once(normalize):
    """Weights and sums are float32: an error of half a step of the result, however many neighbours."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(1, 2, (2, 12, 13, 3)), jnp.bfloat16)
    mask = rng.random((2, 12, 13)) < 0.4
    found = jitted(x, mask, 0.3, normalize=normalize)
    assert found.dtype == jnp.bfloat16
    expected = loop(np.asarray(x, np.float64), mask, 0.3, 3, normalize)
    half_a_step = 2.0 ** (np.floor(np.log2(expected)) - 8)
    error = np.abs(np.asarray(found, np.float64) - expected)
    assert np.all(error <= 1.01 * half_a_step)


def test_golden_values_of_the_kernel():
    """lam = 3: worked out by hand from eq. 3."""
    direct, diagonal = rbf_weights(jnp.float32(3.0), 3, np.array([1, 2]))
    assert direct == pytest.approx(0.245006, abs=1e-6)
    assert diagonal == pytest.approx(3.02e-5, abs=1e-7)
    total = np.exp(-9) / float(direct) - 1e-5
    assert total == pytest.approx(4.9370e-4, rel=1e-4)


@pytest.mark.parametrize(("computed", "expected"), [("all", 0.980147), ("direct", 0.980026), ("one", 0.245)])
def test_golden_share_of_a_constant(computed, expected):
    mask = np.zeros((1, 7, 7), bool)
    if computed == "all":
        mask[:] = True
    elif computed == "direct":
        mask[0, [2, 4, 3, 3], [3, 3, 2, 4]] = True
    else:
        mask[0, 3, 4] = True
    mask[0, 3, 3] = False
    found = jitted(jnp.full((1, 7, 7, 2), 5.0), mask, 3.0)
    assert float(found[0, 3, 3, 1]) / 5 == pytest.approx(expected, abs=1e-5 if computed != "one" else 1e-4)


def test_what_is_computed_stays_and_interiors_are_empty():
    x = jnp.arange(2 * 9 * 9 * 1, dtype=jnp.float32).reshape(2, 9, 9, 1) + 1
    mask = jnp.zeros((2, 9, 9), bool).at[:, 0].set(True)
    found = jitted(x, mask, 3.0)
    np.testing.assert_array_equal(found[:, 0], x[:, 0])
    assert not np.any(found[:, 4:])
    np.testing.assert_array_equal(jitted(x, jnp.ones((2, 9, 9), bool), 3.0), x)
    assert not np.any(jitted(x, jnp.zeros((2, 9, 9), bool), 3.0, normalize="present"))


@pytest.mark.parametrize("normalize", ["full", "present"])
def test_gradients_by_finite_differences(normalize):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(1, 5, 6, 2)), jnp.float32)
    mask = jnp.asarray(rng.random((1, 5, 6)) < 0.5)
    weigh = jnp.asarray(rng.normal(size=x.shape), jnp.float32)

    @jax.jit
    def value(x, lam):
        return jnp.vdot(weigh, interpolate_masked(x, mask, lam, normalize=normalize))

    by_x, by_lam = jax.jit(jax.grad(value, (0, 1)))(x, 0.7)
    step = 1e-2
    numeric = (value(x, 0.7 + step) - value(x, 0.7 - step)) / (2 * step)
    assert float(by_lam) == pytest.approx(float(numeric), rel=2e-2, abs=1e-3)
    direction = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    numeric = (value(x + direction, 0.7) - value(x - direction, 0.7)) / 2
    assert float(jnp.vdot(by_x, direction)) == pytest.approx(float(numeric), rel=1e-3)
    assert not np.any(np.asarray(by_x)[~np.asarray(mask)])


def test_wrong_arguments():
    x, mask = jnp.zeros((1, 4, 4, 1)), jnp.ones((1, 4, 4), bool)
    with pytest.raises(ValueError, match="bool mask"):
        interpolate_masked(x, mask[:, :3], 3.0)
    with pytest.raises(ValueError, match="radius"):
        interpolate_masked(x, mask, 3.0, radius=0)
    with pytest.raises(ValueError, match="'none'"):
        interpolate_masked(x, mask, 3.0, normalize="none")  # type: ignore[arg-type]
