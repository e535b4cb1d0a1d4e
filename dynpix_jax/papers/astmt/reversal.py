"""Gradient reversal (Ganin and Lempitsky, ICML 2015), for adversarial training in a single pass."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dynpix_jax.core.typing import Array


@jax.custom_vjp
def reverse_gradient(x: Array, strength: Array) -> Array:
    """``x`` itself; its cotangent comes back multiplied by ``-strength`` (a scalar >= 0)."""
    return x


def _forward(x: Array, strength: Array) -> tuple[Array, Array]:
    return x, strength


def _backward(strength: Array, cotangent: Array) -> tuple[Array, Array]:
    strength = jnp.asarray(strength)
    return -strength.astype(cotangent.dtype) * cotangent, jnp.zeros_like(strength)


reverse_gradient.defvjp(_forward, _backward)


def reversal_strength(epoch: Array, epochs: int) -> Array:
    """2 / (1 + exp(-10 (epoch + 1) / epochs)) - 1: from nearly 0 in the first epoch, 0, to 1 in the last."""
    return 2.0 / (1.0 + jnp.exp(-10.0 * (epoch + 1.0) / epochs)) - 1.0
