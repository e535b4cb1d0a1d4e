"""Albedo: the colours of surfaces before they are lit; L1 (ASTMT)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

from dynpix_jax.core.task import PixelTask, Score, State, pixel_count
from dynpix_jax.core.typing import Array

NAME = "albedo"
RMSE = Score(
    "rmse",
    "RMSE",
    "root mean square error of an image, mean over images, lower is better",
    higher_is_better=False,
)
MAE = Score("mae", "MAE", "mean absolute error of an image, mean over images", higher_is_better=False)


@dataclass(frozen=True)
class Albedo(PixelTask):
    """Target float32 (B, H, W, 3), RGB in [0, 1]; negative = ignore."""

    name: ClassVar[str] = NAME
    known_scores: ClassVar[tuple[Score, ...]] = (RMSE, MAE)
    delta_score: ClassVar[Score | None] = RMSE
    pictures: ClassVar[str] = "colours"

    @property
    def channels(self) -> int:
        return 3

    def loss(self, logits: Array, target: Array, valid: Array) -> Array:
        """Mean absolute error over colours and labelled pixels of valid images."""
        counted = _labelled(target) & valid[:, None, None]
        error = jnp.where(counted[..., None], jnp.abs(logits.astype(jnp.float32) - target), 0.0)
        return error.sum() / jnp.maximum(3 * counted.sum(), 1)

    def labelled(self, target: Array) -> Array:
        return _labelled(target)

    def decode(self, logits: Array) -> Array:
        """(B, H, W, 3) logits -> (B, H, W, 3) in [0, 1]: the logit is the colour itself."""
        return jnp.clip(logits.astype(jnp.float32), 0.0, 1.0)

    def difference(self, first: Array, second: Array) -> Array:
        """The largest difference of a colour."""
        return jnp.abs(first - second).max()

    def measure(self, prediction: Array, batch: Mapping[str, Array]) -> dict[str, Array]:
        target = batch[NAME]
        counted = _labelled(target)
        values = 3 * counted.sum((1, 2))
        error = jnp.where(counted[..., None], jnp.abs(prediction - target), 0.0)
        used = batch["valid"] & (values > 0)
        per_image = {
            "rmse": jnp.sqrt((error**2).sum((1, 2, 3)) / jnp.maximum(values, 1)),
            "mae": error.sum((1, 2, 3)) / jnp.maximum(values, 1),
        }
        return {
            "images": used.sum(),
            **{name: jnp.where(used, value, 0.0).sum() for name, value in per_image.items()},
        }

    def compute(self, state: State) -> dict[str, float]:
        """rmse and mae, means over images."""
        images = pixel_count({"pixels": state["images"]}, NAME)
        return {name: float(state[name]) / images for name in ("rmse", "mae")}


def _labelled(target: Array) -> Array:
    """(B, H, W) bool: pixels with a colour."""
    return (target >= 0).all(-1)
