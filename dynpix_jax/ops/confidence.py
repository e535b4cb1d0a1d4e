"""Where a prediction is certain, and where to compute on (Liu et al., section 3.4, eq. 1; section 5)."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from dynpix_jax.core.typing import Array, Mask, PRNGKey

Measure = Literal["max_probability", "entropy", "max_value"]
Criterion = Literal["max_probability", "entropy", "top_k", "random", "max_value"]


def confidence(logits: Array, measure: Measure) -> Array:
    """How sure a prediction is, larger is surer: (B, h, w, K) -> (B, h, w) float32.

    "max_probability" of the softmax, in [1 / K, 1]; "entropy": minus that of the softmax, in nats;
    "max_value": minus the largest output (a heatmap: surely no joint).
    """
    logits = logits.astype(jnp.float32)
    if measure == "max_value":
        return -logits.max(-1)
    log_p = jax.nn.log_softmax(logits)
    return jnp.exp(log_p.max(-1)) if measure == "max_probability" else (jnp.exp(log_p) * log_p).sum(-1)


def uncertain(
    logits: Array,
    criterion: Criterion,
    threshold: float,
    *,
    before: Mask | None = None,
    key: PRNGKey | None = None,
) -> Mask:
    """Where to compute on: bool (B, h, w) of logits (B, h, w, K); no gradient.

    Args:
      criterion: "max_probability" (at most the threshold), "entropy" (at least), "max_value" (at least);
        "top_k": all but the share ``threshold`` of positions that have the largest probabilities, ties to
        the first; "random": all but such a share drawn from ``key``.
      before: the mask before, None for everywhere: what it skips stays skipped. Of the shares of "top_k" and
        "random" it is a part.
      key: of "random"; None draws the same for every batch. The same key skips the same positions.

    Raises:
      ValueError: unknown criterion.
    """
    logits = jax.lax.stop_gradient(logits)
    if criterion in ("top_k", "random"):
        if criterion == "top_k":
            rank = confidence(logits, "max_probability")
        else:
            rank = jax.random.uniform(jax.random.key(0) if key is None else key, logits.shape[:3])
        rank = rank if before is None else jnp.where(before, rank, jnp.inf)
        flat = rank.reshape(len(rank), -1)
        skipped = round(threshold * flat.shape[1])
        order = jnp.argsort(-flat, axis=1, stable=True)
        mask = jnp.ones(flat.shape, jnp.bool_)
        mask = jax.vmap(lambda row, first: row.at[first].set(False))(mask, order[:, :skipped])
        mask = mask.reshape(rank.shape)
    elif criterion == "max_probability":
        mask = confidence(logits, "max_probability") <= threshold
    elif criterion == "entropy":
        mask = -confidence(logits, "entropy") >= threshold
    elif criterion == "max_value":
        mask = -confidence(logits, "max_value") >= threshold
    else:
        raise ValueError(f"uncertain: unknown criterion {criterion!r}")
    return mask if before is None else mask & before
