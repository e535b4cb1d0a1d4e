"""Monocular depth: the logit is the natural logarithm of metres; L2 + gamma L1 of it (PAG eq. 9)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

from dynpix_jax.tasks.task import PixelTask, Score, State, pixel_count
from dynpix_jax.typing import Array

NAME = "depth"
SCORES = (
    Score("delta1", "δ<1.25", "share of pixels whose depth is wrong by a factor below 1.25"),
    Score("delta2", "δ<1.25²", "the same below 1.25²"),
    Score("delta3", "δ<1.25³", "the same below 1.25³"),
    Score("rmse", "RMSE, m", "root mean square error in metres"),
    Score("rmse_log", "RMSE log", "root mean square error of the natural logarithm"),
    Score("abs_rel", "abs rel", "mean absolute error relative to the true depth"),
)


def log_depth_loss(logits: Array, target: Array, valid: Array, *, gamma: float = 2.0) -> Array:
    """Eq. 9, the mean over the labelled pixels of valid images.

    Args:
        logits: (B, H, W, 1), log metres.
        target: (B, H, W) metres; 0 (or less, or not finite) = invalid.
        valid: (B,) bool.
        gamma: weight of the L1 term.

    Returns:
        Scalar. The released code divides by all pixels, labelled or not, and halves the square.
    """
    counted = measured(target, valid)
    error = logits[..., 0].astype(jnp.float32) - jnp.log(jnp.where(counted, target, 1.0))
    cost = jnp.where(counted, error**2 + gamma * jnp.abs(error), 0.0)
    return cost.sum() / jnp.maximum(counted.sum(), 1)


def measured(target: Array, valid: Array) -> Array:
    """(B, H, W) bool: pixels of valid images with a depth."""
    return (target > 0) & jnp.isfinite(target) & valid[:, None, None]


@dataclass(frozen=True)
class Depth(PixelTask):
    """Target float32 (B, H, W) in metres, 0 = invalid. A disparity serves as well: all but the RMSE in metres
    is about ratios.

    gamma: weight of the L1 term of eq. 9.
    """

    gamma: float = 2.0

    name: ClassVar[str] = NAME

    def __post_init__(self) -> None:
        if self.gamma < 0.0:
            raise ValueError(f"gamma: {self.gamma}; expected a number >= 0")

    @property
    def channels(self) -> int:
        return 1

    @property
    def scores(self) -> tuple[Score, ...]:
        return SCORES

    def loss(self, logits: Array, target: Array, valid: Array) -> Array:
        return log_depth_loss(logits, target, valid, gamma=self.gamma)

    def decode(self, logits: Array) -> Array:
        """(B, H, W, 1) logits -> (B, H, W) metres, positive."""
        return jnp.exp(logits[..., 0].astype(jnp.float32))

    def difference(self, first: Array, second: Array) -> Array:
        """The largest difference, as a share of the depth."""
        return (jnp.abs(first - second) / first).max()

    def rescale(self, logits: Array, scale: float) -> Array:
        # An image enlarged by s shows what a camera s times nearer would see.
        return logits + math.log(scale)

    def measure(self, prediction: Array, batch: Mapping[str, Array]) -> dict[str, Array]:
        target = batch[NAME]
        counted = measured(target, batch["valid"])
        truth = jnp.where(counted, target, 1.0)
        found = jnp.where(counted, prediction, 1.0)
        ratio = jnp.maximum(found / truth, truth / found)
        error = found - truth
        return {
            "pixels": counted.sum(),
            **{f"delta{k}": (counted & (ratio < 1.25**k)).sum() for k in (1, 2, 3)},
            "squared": (error**2).sum(),
            "squared_log": (jnp.log(ratio) ** 2).sum(),
            "relative": (jnp.abs(error) / truth).sum(),
        }

    def compute(self, state: State) -> dict[str, float]:
        """delta1 to delta3 (shares), rmse (metres), rmse_log (natural logarithm), abs_rel."""
        pixels = pixel_count(state, NAME)
        return {
            **{f"delta{k}": float(state[f"delta{k}"]) / pixels for k in (1, 2, 3)},
            "rmse": math.sqrt(float(state["squared"]) / pixels),
            "rmse_log": math.sqrt(float(state["squared_log"]) / pixels),
            "abs_rel": float(state["relative"]) / pixels,
        }
