"""Boundary detection: one logit a pixel, class-balanced logistic loss (PAG eq. 7, after HED)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dynpix_jax.typing import Array

NAME = "boundaries"


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
