"""Tasks of one probability a pixel: their balanced logistic loss, logits and probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from dynpix_jax.core.task import Task
from dynpix_jax.core.typing import Array


def balanced_loss(
    logits: Array, positive: Array, negative: Array, valid: Array, *, positive_weight: float | None = None
) -> Array:
    """Weighted logistic loss, as a mean over labelled pixels and then over valid images.

    Args:
        logits: (B, H, W, 1).
        positive: (B, H, W) share in [0, 1] by which a pixel counts as positive.
        negative: (B, H, W) share by which it counts as negative; both sum to 1 where the pixel is labelled
            and are 0 elsewhere.
        valid: (B,) bool, False for elements that only pad the batch.
        positive_weight: Weight of positives; negatives weigh 1 less that. None balances every image:
            positives weigh the share of negatives |Y-| / |Y| (PAG eq. 7, after HED), and an image without
            positives costs nothing.

    Returns:
        Scalar, nats per pixel; 0 where no pixel is labelled.
    """
    logits = logits[..., 0].astype(jnp.float32)
    pixels = jnp.maximum((positive + negative).sum((1, 2)), 1.0)
    if positive_weight is None:
        weight = (negative.sum((1, 2)) / pixels)[:, None, None]
    else:
        weight = jnp.float32(positive_weight)
    cost = weight * positive * jax.nn.softplus(-logits) + (1 - weight) * negative * jax.nn.softplus(logits)
    per_image = cost.sum((1, 2)) / pixels
    valid = valid.astype(jnp.float32)
    return (per_image * valid).sum() / jnp.maximum(valid.sum(), 1.0)


@dataclass(frozen=True)
class LogisticTask(Task):
    """A task whose logit is that of a probability."""

    @property
    def channels(self) -> int:
        return 1

    def decode(self, logits: Array) -> Array:
        """(B, H, W, 1) logits -> (B, H, W) probability in [0, 1]."""
        return jax.nn.sigmoid(logits[..., 0].astype(jnp.float32))

    def difference(self, first: Array, second: Array) -> Array:
        """The largest difference of a probability."""
        return jnp.abs(first - second).max()

    def mix(self, logits: Array) -> Array:
        return jax.nn.sigmoid(logits.astype(jnp.float32))

    def unmix(self, mean: Array) -> Array:
        # The smallest normal number, and the largest below 1: their logits are finite.
        return jax.scipy.special.logit(jnp.clip(mean, 1.2e-38, 1 - 6e-8))


def check_weight(positive_weight: float | None) -> None:
    """Refuses a ``positive_weight`` that is neither None nor in (0, 1), by a ValueError."""
    if positive_weight is not None and not 0.0 < positive_weight < 1.0:
        raise ValueError(f"positive_weight: {positive_weight}; expected a number in (0, 1), or None")
