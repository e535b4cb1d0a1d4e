"""Monocular depth.

The logit is the natural logarithm of metres, with L2 + gamma L1 of it (PAG eq. 9), or metres, with L1 of
depths and of their gradients (ASTMT).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax.numpy as jnp

from dynpix_jax.core.task import PixelTask, Score, State, pixel_count
from dynpix_jax.core.typing import Array
from dynpix_jax.ops.blur import gaussian_blur
from dynpix_jax.ops.resize import mean_scale

NAME = "depth"
NEAREST = 1e-3
"""Metres: the least depth that is predicted where the logit is in metres."""
RMSE = Score("rmse", "RMSE, m", "root mean square error in metres", higher_is_better=False)
SCORES = (
    Score("delta1", "δ<1.25", "share of pixels whose depth is wrong by a factor below 1.25"),
    Score("delta2", "δ<1.25²", "the same below 1.25²"),
    Score("delta3", "δ<1.25³", "the same below 1.25³"),
    RMSE,
    Score("rmse_log", "RMSE log", "root mean square error of the natural logarithm", higher_is_better=False),
    Score("abs_rel", "abs rel", "mean absolute error relative to the true depth", higher_is_better=False),
)


def log_depth_loss(
    logits: Array, target: Array, valid: Array, *, gamma: float = 2.0, scale_invariance: float = 0.0
) -> Array:
    """Eq. 9, the mean over the labelled pixels of valid images, or a form of it that forgives the scale.

    Args:
        logits: (B, H, W, 1), log metres.
        target: (B, H, W) metres; 0 (or less, or not finite) = invalid.
        valid: (B,) bool.
        gamma: Weight of the L1 term.
        scale_invariance: lambda in [0, 1] of Eigen, Puhrsch, Fergus (NeurIPS 2014, eq. 4): this share of an
            image's squared mean is subtracted from its mean square. 1 forgives a wrong scale; theirs is 0.5,
            with gamma 0.

    Returns:
        Scalar. The released code divides by all pixels, labelled or not, and halves the square.
    """
    counted = measured(target, valid)
    error = logits[..., 0].astype(jnp.float32) - jnp.log(jnp.where(counted, target, 1.0))
    cost = jnp.where(counted, error**2 + gamma * jnp.abs(error), 0.0)
    total = cost.sum()
    if scale_invariance:
        pixels = jnp.maximum(counted.sum((1, 2)), 1)
        # The squared mean of an image, once for each of its pixels.
        total = total - scale_invariance * (jnp.where(counted, error, 0.0).sum((1, 2)) ** 2 / pixels).sum()
    return total / jnp.maximum(counted.sum(), 1)


def metric_depth_loss(logits: Array, target: Array, valid: Array) -> Array:
    """L1 of depths plus L1 of their spatial gradients (Sobel); ASTMT's appendix, after Eigen and Fergus.

    Args:
        logits: (B, H, W, 1) metres.
        target: (B, H, W) metres; 0 (or less, or not finite) = invalid.
        valid: (B,) bool.

    Returns:
        Scalar: the mean error of labelled pixels, plus, summed over both directions, the mean error of the
        gradients whose 3 x 3 pixels are all labelled. (The released code lets missing depths count as 0.)
    """
    counted = measured(target, valid)
    error = jnp.where(counted, logits[..., 0].astype(jnp.float32) - target, 0.0)
    rows, columns = error.shape[1:]
    parts = {
        (dy, dx): (slice(None), slice(dy, rows - 2 + dy), slice(dx, columns - 2 + dx))
        for dy in range(3)
        for dx in range(3)
    }
    smooth = (1.0, 2.0, 1.0)
    # Sobel is linear: the difference of the gradients is the gradient of the difference.
    across = sum(smooth[dy] * (error[parts[dy, 0]] - error[parts[dy, 2]]) for dy in range(3))
    down = sum(smooth[dx] * (error[parts[0, dx]] - error[parts[2, dx]]) for dx in range(3))
    whole = jnp.stack([counted[part] for part in parts.values()]).all(0)
    gradients = jnp.where(whole, jnp.abs(across) + jnp.abs(down), 0.0)
    return jnp.abs(error).sum() / jnp.maximum(counted.sum(), 1) + gradients.sum() / jnp.maximum(
        whole.sum(), 1
    )


def measured(target: Array, valid: Array) -> Array:
    """(B, H, W) bool: pixels of valid images with a depth."""
    return (target > 0) & jnp.isfinite(target) & valid[:, None, None]


@dataclass(frozen=True)
class Depth(PixelTask):
    """Target float32 (B, H, W) in metres, 0 = invalid.

    A disparity serves as well: all scores but the RMSE in metres are about ratios.

    Attributes:
        gamma: Weight of the L1 term of `log_depth_loss`.
        logit: ``log``: the logarithm of metres, with eq. 9. ``metres``: the depth itself, with
            `metric_depth_loss`; values below ``NEAREST`` are decoded as that.
        per_image: Whether both RMSE are means over images of an image's RMSE, as ASTMT reports; otherwise all
            pixels are one set.
        scale_invariance: Of `log_depth_loss`.
    """

    gamma: float = 2.0
    logit: Literal["log", "metres"] = "log"
    per_image: bool = False
    scale_invariance: float = 0.0

    name: ClassVar[str] = NAME
    known_scores: ClassVar[tuple[Score, ...]] = SCORES
    delta_score: ClassVar[Score | None] = RMSE
    pictures: ClassVar[str] = "depth"

    def __post_init__(self) -> None:
        if self.gamma < 0.0:
            raise ValueError(f"gamma: {self.gamma}; expected a number >= 0")
        if not 0.0 <= self.scale_invariance <= 1.0:
            raise ValueError(f"scale_invariance: {self.scale_invariance}; expected a number in [0, 1]")

    @property
    def channels(self) -> int:
        return 1

    def loss(self, logits: Array, target: Array, valid: Array) -> Array:
        if self.logit == "metres":
            return metric_depth_loss(logits, target, valid)
        return log_depth_loss(logits, target, valid, gamma=self.gamma, scale_invariance=self.scale_invariance)

    @property
    def by_pixel(self) -> bool:
        return self.logit == "log"

    def labelled(self, target: Array) -> Array:
        return measured(target, jnp.ones(len(target), bool))

    def decode(self, logits: Array) -> Array:
        """(B, H, W, 1) logits -> (B, H, W) metres, positive."""
        logits = logits[..., 0].astype(jnp.float32)
        return jnp.exp(logits) if self.logit == "log" else jnp.maximum(logits, NEAREST)

    def difference(self, first: Array, second: Array) -> Array:
        """The largest difference, as a share of the depth."""
        return (jnp.abs(first - second) / first).max()

    def rescale(self, logits: Array, scale: float) -> Array:
        # An image enlarged by s shows what a camera s times nearer would see.
        return logits + math.log(scale) if self.logit == "log" else logits * scale

    @classmethod
    def resize_label(cls, label: Array, size: tuple[int, int]) -> Array:
        # As `data.geometry` does: an enlarged image shows a nearer scene; pixels without a depth stay so.
        return super().resize_label(label, size) / mean_scale(label.shape[1:3], size)

    def smooth(self, logits: Array, sigma: float) -> Array:
        if self.logit == "metres":
            return gaussian_blur(logits.astype(jnp.float32), sigma)
        return jnp.log(gaussian_blur(jnp.exp(logits.astype(jnp.float32)), sigma))

    def measure(self, prediction: Array, batch: Mapping[str, Array]) -> dict[str, Array]:
        target = batch[NAME]
        counted = measured(target, batch["valid"])
        truth = jnp.where(counted, target, 1.0)
        found = jnp.where(counted, prediction, 1.0)
        ratio = jnp.maximum(found / truth, truth / found)
        error = found - truth
        squares = {"squared": error**2, "squared_log": jnp.log(ratio) ** 2}
        if self.per_image:
            pixels = counted.sum((1, 2))
            roots = {
                name: jnp.sqrt(cost.sum((1, 2)) / jnp.maximum(pixels, 1)) for name, cost in squares.items()
            }
            summed = {"images": (pixels > 0).sum(), **{name: root.sum() for name, root in roots.items()}}
        else:
            summed = {name: cost.sum() for name, cost in squares.items()}
        return {
            "pixels": counted.sum(),
            **{f"delta{k}": (counted & (ratio < 1.25**k)).sum() for k in (1, 2, 3)},
            **summed,
            "relative": (jnp.abs(error) / truth).sum(),
        }

    def compute(self, state: State) -> dict[str, float]:
        """delta1 to delta3 (shares), rmse (metres), rmse_log (natural logarithm), abs_rel."""
        pixels = pixel_count(state, NAME)
        squared, squared_log = float(state["squared"]), float(state["squared_log"])
        if self.per_image:
            images = float(state["images"])
            rmse, rmse_log = squared / images, squared_log / images
        else:
            rmse, rmse_log = math.sqrt(squared / pixels), math.sqrt(squared_log / pixels)
        return {
            **{f"delta{k}": float(state[f"delta{k}"]) / pixels for k in (1, 2, 3)},
            "rmse": rmse,
            "rmse_log": rmse_log,
            "abs_rel": float(state["relative"]) / pixels,
        }
