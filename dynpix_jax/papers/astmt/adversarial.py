"""Input of the discriminator: a task's normalised loss gradient, whose sign is reversed in the backward pass.

Section 4 of ASTMT: the discriminator should not be able to tell the task from the gradient with respect to
the shared features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dynpix_jax.core.typing import Array
from dynpix_jax.ops.resize import resize_nearest
from dynpix_jax.ops.vectors import scale_to_unit

EPSILON = 1e-10
"""Added to the norm, as released: positions that are nearly solved fade for the discriminator."""


@jax.custom_vjp
def reverse_gradient(x: Array, strength: Array) -> Array:
    """``x`` itself; its cotangent is multiplied by ``-strength``, a scalar >= 0.

    Gradient reversal (Ganin and Lempitsky, ICML 2015), for adversarial training in a single pass.
    """
    return x


def _forward(x: Array, strength: Array) -> tuple[Array, Array]:
    return x, strength


def _backward(strength: Array, cotangent: Array) -> tuple[Array, Array]:
    strength = jnp.asarray(strength)
    return -strength.astype(cotangent.dtype) * cotangent, jnp.zeros_like(strength)


reverse_gradient.defvjp(_forward, _backward)


def reversal_strength(epoch: Array, epochs: int) -> Array:
    """2 / (1 + exp(-10 (epoch + 1) / epochs)) - 1: from almost 0 in the first epoch (0) to 1 in the last."""
    return 2.0 / (1.0 + jnp.exp(-10.0 * (epoch + 1.0) / epochs)) - 1.0


def loss_and_gradient(
    loss: Callable[[Array], tuple[Array, Any]], features: Array
) -> tuple[Array, Any, Array]:
    """A loss of ``features`` with its auxiliary outputs, and its gradient with respect to them.

    The gradient is itself differentiable: training differentiates it a second time.
    """
    (value, rest), gradient = jax.value_and_grad(loss, has_aux=True)(features)
    return value, rest, gradient


def unit_gradient(gradient: Array) -> Array:
    """(B, h, w, C) g / (|g| + EPSILON), |g| over the channels of every position; float32.

    The losses' gradients shrink during training, these do not.
    """
    return scale_to_unit(gradient, EPSILON)


def discriminator_loss(
    discriminate: Callable[[Array], Array], gradient: Array, labelled: Array, task: int, strength: Array
) -> Array:
    """Cross-entropy of the discriminator with the index of the ``task``.

    Args:
        discriminate: (B, h, w, C) -> logits (B, h, w, tasks).
        gradient: Gradient of the task's loss, (B, h, w, C).
        labelled: (B, H, W) bool, the pixels that the task's loss counts; only their positions count here.
        strength: Strength of the reversal, >= 0.

    Returns:
        Scalar, nats; 0 if no pixel is labelled.
    """
    logits = discriminate(reverse_gradient(unit_gradient(gradient), strength))
    counted = resize_nearest(labelled, (gradient.shape[1], gradient.shape[2])).astype(jnp.float32)
    cost = -jax.nn.log_softmax(logits.astype(jnp.float32))[..., task]
    return (cost * counted).sum() / jnp.maximum(counted.sum(), 1.0)
