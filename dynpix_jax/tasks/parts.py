"""Parts of people: a segmentation in which only images with a person count (ASTMT)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from dynpix_jax.core.typing import Array
from dynpix_jax.tasks.segmentation import Segmentation

NAME = "parts"


@dataclass(frozen=True)
class Parts(Segmentation):
    """Target int32 (B, H, W): 0 = background, 1 .. classes - 1 = parts, ``ignore`` = not labelled.

    An image or crop without any part counts neither for the loss nor for the scores, as in ASTMT: its
    background would teach nothing about people. Options and scores are those of `Segmentation`; with
    ``scoring="astmt"`` an image of background and unlabelled pixels is scored, too, as in ASTMT's evaluation.

    Attributes:
        classes: By default 7: background, head, torso, upper arms, lower arms, upper legs, lower legs.
    """

    classes: int = 7

    name: ClassVar[str] = NAME

    def loss(self, logits: Array, target: Array, valid: Array) -> Array:
        return super().loss(logits, target, valid & self._has_parts(target))

    def labelled(self, target: Array) -> Array:
        return super().labelled(target) & self._has_parts(target)[:, None, None]

    def measure(self, prediction: Array, batch: Mapping[str, Array]) -> dict[str, Array]:
        target = batch[NAME]
        scored = self._has_parts(target)
        if self.scoring == "astmt":
            scored |= (target == 0).any((1, 2)) & (target == self.ignore).any((1, 2))
        counted = batch["valid"] & scored
        return super().measure(prediction, {**batch, "valid": counted})

    def _has_parts(self, target: Array) -> Array:
        """(B,) bool: the image shows a part of a person."""
        return ((target > 0) & (target < self.classes) & (target != self.ignore)).any((1, 2))
