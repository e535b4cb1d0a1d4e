"""Confidence of predictions, and the positions with the highest scores (Liu et al., section 3.4)."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from dynpix_jax.core.typing import Array, Mask

Measure = Literal["max_probability", "entropy", "max_value"]


def confidence(logits: Array, measure: Measure) -> Array:
    """Confidence of a prediction, larger is more certain: (B, h, w, K) -> (B, h, w) float32.

    "max_probability" of the softmax, in [1 / K, 1]; "entropy": minus the entropy of the softmax, in nats;
    "max_value": minus the largest output (a heatmap: certainly no joint).
    """
    logits = logits.astype(jnp.float32)
    if measure == "max_value":
        return -logits.max(-1)
    log_p = jax.nn.log_softmax(logits)
    return jnp.exp(log_p.max(-1)) if measure == "max_probability" else (jnp.exp(log_p) * log_p).sum(-1)


def top_share(score: Array, density: float, before: Mask | None = None) -> Mask:
    """The positions of each image with the highest scores: float (B, h, w) -> bool (B, h, w).

    Args:
        score: Score of every position; of equal scores the first is selected.
        density: Share of all positions to select, in [0, 1].
        before: bool (B, h, w); only positions where it is True are selected, possibly fewer than ``density``.
    """
    allowed = jnp.ones(score.shape, jnp.bool_) if before is None else before
    flat = jnp.where(allowed, score, -jnp.inf).reshape(len(score), -1)
    taken = round(density * flat.shape[1])
    order = jnp.argsort(-jax.lax.stop_gradient(flat), axis=1, stable=True)[:, :taken]
    rows = jnp.arange(len(flat))[:, None]
    mask = jnp.zeros(flat.shape, jnp.bool_).at[rows, order].set(True)
    return mask.reshape(score.shape) & allowed
