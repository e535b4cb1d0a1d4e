"""Boundary detection: one logit a pixel, class-balanced logistic loss (PAG eq. 7, after HED)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from dynpix_jax.tasks.task import Score, Task
from dynpix_jax.typing import Array

NAME = "boundaries"
SCORES = (
    Score("ods", "F (ODS)", "boundary F with one threshold for all images"),
    Score("ois", "OIS", "F with the best threshold of each image"),
    Score("ap", "AP", "the area under the precision-recall curve"),
)


def loss(logits: Array, labels: Array, valid: Array) -> Array:
    """Class-balanced logistic loss, eq. 7, as a mean over pixels and then over valid images.

    Args:
        logits: (B, H, W, 1).
        labels: (B, H, W) in [0, 1], the share of annotators who mark the pixel; negative = ignore.
        valid: (B,) bool, False for elements that only pad the batch.

    Returns:
        Scalar, nats per pixel. Per image, positives weigh beta = |Y-| / |Y| and negatives 1 - beta; a soft
        label counts with its share on both sides. 0 where no pixel is labelled.
    """
    logits = logits[..., 0].astype(jnp.float32)
    counted = (labels >= 0).astype(jnp.float32)
    positive = jnp.clip(labels, 0.0, 1.0) * counted
    negative = counted - positive
    pixels = counted.sum((1, 2))
    beta = (negative.sum((1, 2)) / jnp.maximum(pixels, 1.0))[:, None, None]
    cost = beta * positive * jax.nn.softplus(-logits) + (1 - beta) * negative * jax.nn.softplus(logits)
    per_image = cost.sum((1, 2)) / jnp.maximum(pixels, 1.0)
    valid = valid.astype(jnp.float32)
    return (per_image * valid).sum() / jnp.maximum(valid.sum(), 1.0)


def decode(logits: Array) -> Array:
    """(B, H, W, 1) logits -> (B, H, W) boundary probability in [0, 1]."""
    return jax.nn.sigmoid(logits[..., 0].astype(jnp.float32))


@dataclass(frozen=True)
class Boundaries(Task):
    """Target float32 (B, H, W): share of annotators in [0, 1], negative = ignore. Scored by matching thinned
    maps with each annotator's lines (evaluation.boundary), not pixel by pixel.
    """

    name: ClassVar[str] = NAME

    @property
    def channels(self) -> int:
        return 1

    @property
    def scores(self) -> tuple[Score, ...]:
        return SCORES

    def loss(self, logits: Array, target: Array, valid: Array) -> Array:
        return loss(logits, target, valid)

    def decode(self, logits: Array) -> Array:
        return decode(logits)

    def difference(self, first: Array, second: Array) -> Array:
        """The largest difference of a probability."""
        return jnp.abs(first - second).max()

    def mix(self, logits: Array) -> Array:
        return jax.nn.sigmoid(logits.astype(jnp.float32))

    def unmix(self, mean: Array) -> Array:
        # The smallest normal number, and the largest below 1: their logits are finite.
        return jax.scipy.special.logit(jnp.clip(mean, 1.2e-38, 1 - 6e-8))
