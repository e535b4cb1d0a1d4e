from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dynpix_jax import ops

LOGITS = jnp.array([1.2, -0.3, 0.4, 0.0])


def test_sample_frequencies_follow_softmax():
    draws = 20000
    logits = jnp.broadcast_to(LOGITS, (draws, 4))
    counts = ops.gumbel_softmax_st(jax.random.key(0), logits, 0.1).sum(0)
    expected = draws * np.exp(LOGITS) / np.exp(LOGITS).sum()
    assert stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 0.01
    # ... and the test has the power to notice a wrong distribution.
    assert stats.chisquare(counts, np.full(4, draws / 4)).pvalue < 1e-10


def test_forward_is_one_hot_and_independent_of_temperature():
    logits = jax.random.normal(jax.random.key(1), (5, 6, 3))
    sharp, flat = (ops.gumbel_softmax_st(jax.random.key(2), logits, t) for t in (1e-3, 10.0))
    assert set(np.unique(sharp)) == {0.0, 1.0}
    np.testing.assert_array_equal(sharp.sum(-1), 1)
    np.testing.assert_array_equal(sharp, flat)


def relaxed(key, logits, temperature, axis):
    """Written out, from eq. 4."""
    noisy = (logits + jax.random.gumbel(key, logits.shape)) / temperature
    weights = jnp.exp(noisy - noisy.max(axis, keepdims=True))
    return weights / weights.sum(axis, keepdims=True)


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_gradients_are_those_of_the_relaxed_sample(axis, temperature):
    key = jax.random.key(3)
    logits = jax.random.normal(jax.random.key(4), (2, 5, 3))
    upstream = jax.random.normal(jax.random.key(5), logits.shape)

    def through(sample):
        return lambda z, t: (upstream * sample(z, t)).sum()

    hard = through(lambda z, t: ops.gumbel_softmax_st(key, z, t, axis=axis))
    soft = through(lambda z, t: relaxed(key, z, t, axis))
    arguments = (logits, jnp.float32(temperature))
    got = jax.jit(jax.grad(hard, (0, 1)))(*arguments)
    expected = jax.grad(soft, (0, 1))(*arguments)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-3, atol=1e-4)


def test_relaxed_sample():
    key = jax.random.key(6)
    logits = jax.random.normal(key, (4, 3))
    np.testing.assert_allclose(
        ops.gumbel_softmax(key, logits, 0.5), relaxed(key, logits, 0.5, -1), rtol=1e-5, atol=1e-6
    )


def test_without_noise_it_is_the_arg_max_with_the_gradient_of_the_relaxation():
    logits, upstream = (jax.random.normal(jax.random.key(k), (4, 3)) for k in (7, 8))
    value, vjp = jax.vjp(lambda z: ops.gumbel_softmax_st(jax.random.key(0), z, 0.5, noise=0.0), logits)
    np.testing.assert_array_equal(value, ops.argmax_one_hot(logits))
    soft = jax.nn.softmax(logits / 0.5)
    expected = soft * (upstream - (soft * upstream).sum(-1, keepdims=True)) / 0.5
    np.testing.assert_allclose(vjp(upstream)[0], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        ops.gumbel_softmax(jax.random.key(0), logits, 0.5, noise=0.0), soft, rtol=1e-5, atol=1e-6
    )


def test_traced_temperature_and_key_compile_once():
    traces = []

    @jax.jit
    def gradient(key, logits, temperature):
        traces.append(None)
        return jax.grad(lambda z: (ops.gumbel_softmax_st(key, z, temperature) * jnp.arange(4.0)).sum())(
            logits
        )

    warm, cold = (gradient(jax.random.key(0), LOGITS, t) for t in (1.0, 0.1))
    assert len(traces) == 1
    assert np.isfinite(warm).all()
    assert not np.allclose(warm, cold)


def test_key_has_no_gradient():
    key = jax.random.key(0)
    _, vjp = jax.vjp(lambda k, z: ops.gumbel_softmax_st(k, z, 0.5), key, LOGITS)
    key_cotangent, _ = vjp(jnp.ones(4))
    assert key_cotangent.dtype == jax.dtypes.float0


def test_same_key_same_sample_other_key_other_sample():
    logits = jnp.zeros((50, 2))
    first, again, other = (ops.gumbel_softmax_st(jax.random.key(k), logits, 1.0) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_bfloat16_keeps_its_type():
    logits = LOGITS.astype(jnp.bfloat16)
    sample, vjp = jax.vjp(lambda z: ops.gumbel_softmax_st(jax.random.key(0), z, 0.5), logits)
    assert sample.dtype == vjp(sample)[0].dtype == jnp.bfloat16
    assert ops.argmax_one_hot(logits).dtype == jnp.bfloat16


def test_argmax_one_hot():
    logits = jnp.array([[1.0, 3.0, 3.0], [0.0, -1.0, -2.0]])
    np.testing.assert_array_equal(ops.argmax_one_hot(logits), [[0, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(ops.argmax_one_hot(logits, axis=0), [[1, 1, 1], [0, 0, 0]])
