"""Discrete choices with gradients: the Gumbel-softmax of gates and of MultiPool.

A position chooses one of P alternatives from P logits. Training draws the choice by the Gumbel-max trick
and lets the gradient of the relaxed sample through (Pixel-wise Attentional Gating, eq. 3 and 4); evaluation
takes the arg-max and draws no noise.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from dynpix_jax.core.typing import Array


def argmax_one_hot(logits: Array, axis: int = -1) -> Array:
    """The deterministic choice for evaluation: one-hot of the largest logit along ``axis``.

    The lowest index wins a tie. No gradient flows to ``logits``.
    """
    return jax.nn.one_hot(jnp.argmax(logits, axis=axis), logits.shape[axis], axis=axis, dtype=logits.dtype)


def gumbel_softmax(
    key: Array, logits: Array, temperature: Array | float, *, axis: int = -1, noise: Array | float = 1.0
) -> Array:
    """The relaxed sample, softmax((logits + noise) / temperature) (eq. 4 as a forward pass).

    The paper's released code trains with this soft sample (the option ``soft``), the paper itself with
    :func:`gumbel_softmax_st`.

    Args:
        key: PRNG key.
        logits: Any shape; floating; unnormalised log-probabilities along ``axis``.
        temperature: Above 0; scalar (may be traced) or broadcastable to ``logits``.
        axis: The axis of the alternatives.
        noise: Scale of the noise; 0 relaxes the arg-max.

    Returns:
        Non-negative array of the shape and dtype of ``logits``, summing to 1 along ``axis``.
    """
    noisy = _add_noise(key, logits, noise)
    return _relaxed(noisy, jnp.asarray(temperature, noisy.dtype), axis).astype(logits.dtype)


def gumbel_softmax_st(
    key: Array, logits: Array, temperature: Array | float, *, axis: int = -1, noise: Array | float = 1.0
) -> Array:
    """A one-hot sample with the gradient of the relaxed sample (straight-through).

    Forward (eq. 3): one-hot of argmax(logits + noise), an exact sample of softmax(logits) at every
    temperature. Backward (eq. 4): the vector-Jacobian product of softmax((logits + noise) / temperature) with
    the same noise, with respect to the logits and the temperature. The key has no gradient (float0).
    Forward-mode differentiation is not defined.

    Args:
        key: PRNG key.
        logits: Any shape; floating; unnormalised log-probabilities along ``axis``.
        temperature: Above 0; scalar (may be traced) or broadcastable to ``logits``.
        axis: The axis of the alternatives.
        noise: Scale of the noise, which is no longer a sample's below 1; 0 takes the arg-max.

    Returns:
        One-hot array of the shape and dtype of ``logits``.
    """
    noisy = _add_noise(key, logits, noise)
    return _straight_through(noisy, jnp.asarray(temperature, noisy.dtype), axis).astype(logits.dtype)


def _add_noise(key: Array, logits: Array, scale: Array | float) -> Array:
    # In float32 at least: the upper tail of bfloat16 noise has few values and would bias the samples.
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    return logits.astype(dtype) + jnp.asarray(scale, dtype) * jax.random.gumbel(key, logits.shape, dtype)


def _relaxed(noisy: Array, temperature: Array, axis: int) -> Array:
    return jax.nn.softmax(noisy / temperature, axis=axis)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _straight_through(noisy: Array, temperature: Array, axis: int) -> Array:
    del temperature  # the arg-max does not depend on it
    return argmax_one_hot(noisy, axis)


def _straight_through_fwd(noisy: Array, temperature: Array, axis: int) -> tuple[Array, tuple[Array, Array]]:
    return argmax_one_hot(noisy, axis), (noisy, temperature)


def _straight_through_bwd(axis: int, residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    _, vjp = jax.vjp(partial(_relaxed, axis=axis), *residuals)
    gradients: tuple[Array, Array] = vjp(cotangent)
    return gradients


_straight_through.defvjp(_straight_through_fwd, _straight_through_bwd)
