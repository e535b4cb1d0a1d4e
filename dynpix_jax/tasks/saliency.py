"""Saliency: the probability that a pixel belongs to what catches the eye; balanced logistic loss (ASTMT)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from dynpix_jax.core.task import PixelTask, Score, State, pixel_count
from dynpix_jax.core.typing import Array
from dynpix_jax.tasks.logistic import LogisticTask, balanced_loss, check_weight

NAME = "saliency"
MIOU = Score("miou", "mIoU", "intersection over union, mean over images, at the best of 15 thresholds")
SCORES = (
    MIOU,
    Score("max_f", "max F", "F of mean precision and mean recall, at the best of these thresholds"),
)
THRESHOLDS = tuple(float(value) for value in np.linspace(0.2, 0.9, 15))
"""Probabilities above which a pixel counts as salient (ASTMT's evaluation)."""


@dataclass(frozen=True)
class Saliency(LogisticTask, PixelTask):
    """Target (B, H, W), integer or float: 1 = salient (from 1/2 on), 0 = not, 255 or negative = ignore.

    Attributes:
        positive_weight: Weight of salient pixels; the others weigh 1 less that. None: each image's share of
            the others, so that an image without salient pixels costs nothing. (The released code takes the
            share of the whole batch.)
    """

    positive_weight: float | None = None

    name: ClassVar[str] = NAME
    known_scores: ClassVar[tuple[Score, ...]] = SCORES
    delta_score: ClassVar[Score | None] = MIOU
    pictures: ClassVar[str] = "saliency"

    def __post_init__(self) -> None:
        check_weight(self.positive_weight)

    def loss(self, logits: Array, target: Array, valid: Array) -> Array:
        counted, salient = _labelled(target)
        positive, negative = (counted & salient), (counted & ~salient)
        sides = positive.astype(jnp.float32), negative.astype(jnp.float32)
        return balanced_loss(logits, *sides, valid, positive_weight=self.positive_weight)

    def labelled(self, target: Array) -> Array:
        return _labelled(target)[0]

    def measure(self, prediction: Array, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Sums over images of their IoU, precision and recall at each of ``THRESHOLDS``, (15,) each."""
        counted, salient = _labelled(batch[NAME])
        used = batch["valid"] & counted.any((1, 2))
        limits = jnp.asarray(THRESHOLDS, jnp.float32)[:, None, None, None]
        found = (prediction > limits) & counted
        salient = salient & counted
        both = (found & salient).sum((2, 3)).astype(jnp.float32)
        either = (found | salient).sum((2, 3))
        # As released: IoU is 1 where nothing is salient and nothing is found; precision is 0 where nothing is
        # found, recall where nothing is salient.
        scores = {
            "iou": jnp.where(either > 0, both / jnp.maximum(either, 1), 1.0),
            "precision": both / jnp.maximum(found.sum((2, 3)), 1),
            "recall": both / jnp.maximum(salient.sum((1, 2)), 1),
        }
        return {
            "images": used.sum(),
            **{name: jnp.where(used, value, 0.0).sum(1) for name, value in scores.items()},
        }

    def compute(self, state: State) -> dict[str, float]:
        """miou and max_f, each the greatest over thresholds."""
        images = pixel_count({"pixels": state["images"]}, NAME)
        iou, precision, recall = (
            np.asarray(state[name], np.float64) / images for name in ("iou", "precision", "recall")
        )
        f = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        return {"miou": float(iou.max()), "max_f": float(f.max())}


def _labelled(target: Array) -> tuple[Array, Array]:
    """(B, H, W) bool each: pixels with a label, and salient pixels."""
    return (target >= 0) & (target <= 1), target >= 0.5
