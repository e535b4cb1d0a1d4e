"""Vectors in the last axis of an array."""

from __future__ import annotations

import jax.numpy as jnp

from dynpix_jax.core.typing import Array


def scale_to_unit(vectors: Array, epsilon: float) -> Array:
    """x / (|x| + epsilon) in float32; a zero vector stays zero, and so does its gradient."""
    vectors = vectors.astype(jnp.float32)
    squared = (vectors**2).sum(-1, keepdims=True)
    # The square root has no gradient at 0, and the quotient one of 1 / epsilon.
    zero = squared == 0
    norm = jnp.sqrt(jnp.where(zero, 1.0, squared))
    return jnp.where(zero, 0.0, vectors / (norm + epsilon))
