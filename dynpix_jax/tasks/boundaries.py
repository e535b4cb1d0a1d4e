"""Boundary detection: one logit a pixel, balanced logistic loss (PAG eq. 7, after HED)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

from dynpix_jax.core.task import Score
from dynpix_jax.core.typing import Array
from dynpix_jax.tasks.logistic import LogisticTask, balanced_loss, check_weight

NAME = "boundaries"
ODS = Score("ods", "F (ODS)", "boundary F with one threshold for all images")
SCORES = (
    ODS,
    Score("ois", "OIS", "F with the best threshold of each image"),
    Score("ap", "AP", "the area under the precision-recall curve"),
)


def loss(logits: Array, labels: Array, valid: Array, *, positive_weight: float | None = None) -> Array:
    """Weighted logistic loss, a mean over pixels and then over valid images.

    Args:
        logits: (B, H, W, 1).
        labels: (B, H, W) in [0, 1], the share of annotators who mark the pixel; negative = ignore.
        valid: (B,) bool, False for elements that only pad the batch.
        positive_weight: Of `logistic.balanced_loss`; None balances each image (eq. 7).

    Returns:
        Scalar, nats per pixel. A soft label counts with its share on both sides. 0 where no pixel is
        labelled.
    """
    counted = (labels >= 0).astype(jnp.float32)
    positive = jnp.clip(labels, 0.0, 1.0) * counted
    return balanced_loss(logits, positive, counted - positive, valid, positive_weight=positive_weight)


@dataclass(frozen=True)
class Boundaries(LogisticTask):
    """Target float32 (B, H, W): share of annotators in [0, 1], negative = ignore.

    The scores come from matching thinned maps with each annotator's lines (evaluation.boundary), not from
    single pixels.

    Attributes:
        positive_weight: Weight of boundary pixels; the others weigh 1 less that. 0.95 in the appendix of
            ASTMT, 0.8 for NYUD in its code. None: each image's share of the others (PAG eq. 7).
    """

    positive_weight: float | None = None

    name: ClassVar[str] = NAME
    known_scores: ClassVar[tuple[Score, ...]] = SCORES
    delta_score: ClassVar[Score | None] = ODS
    scorer: ClassVar[str] = "boundaries"
    pictures: ClassVar[str] = "boundaries"
    side_outputs: ClassVar[bool] = True
    has_rare: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_weight(self.positive_weight)

    def loss(self, logits: Array, target: Array, valid: Array) -> Array:
        return loss(logits, target, valid, positive_weight=self.positive_weight)

    def labelled(self, target: Array) -> Array:
        return target >= 0

    def rare(self, target: Array) -> Array:
        """Boundaries."""
        return target >= 0.5
