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
import numpy as np

from dynpix_jax.core.task import PixelTask, Score, State, pixel_count
from dynpix_jax.core.typing import Array
from dynpix_jax.ops.blur import gaussian_blur
from dynpix_jax.ops.resize import mean_scale

NAME = "depth"
NEAREST = 1e-3
"""Metres: the least depth that is predicted where the logit is in metres."""
ASTMT_MISSING = 1e-9
"""Metres: what the evaluation that ASTMT released takes a missing depth for."""
LOG_BINS = np.geomspace(1e-5, 32.0, 30_000, dtype=np.float32)
"""Limits of the histogram that gives the median of images' logarithmic errors, right to .0005 of it."""
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


def metric_depth_loss(
    logits: Array, target: Array, valid: Array, *, holes: Literal["left_out", "astmt"] = "left_out"
) -> Array:
    """L1 of depths plus L1 of their spatial gradients (Sobel); ASTMT's appendix, after Eigen and Fergus.

    Args:
        logits: (B, H, W, 1) metres.
        target: (B, H, W) metres; 0 (or less, or not finite) = invalid.
        valid: (B,) bool.
        holes: ``left_out``: a gradient counts where the pixels of its 3 x 3 window are all labelled.
            ``astmt``: everywhere, as released, and a missing depth is 0 metres.

    Returns:
        Scalar: the absolute errors of labelled pixels, and those of the gradients in both directions, divided
        by the number of labelled pixels. Outside of the image both maps are 0.
    """
    counted = measured(target, valid)
    known = jnp.where(counted, target, 0.0)
    found = jnp.where(valid[:, None, None], logits[..., 0].astype(jnp.float32), 0.0)
    distance = jnp.where(counted, found - known, 0.0)
    # Pixels outside of the image are no holes.
    padding = ((0, 0), (1, 1), (1, 1))
    error = jnp.pad(distance if holes == "left_out" else found - known, padding)
    labelled = jnp.pad(counted, padding, constant_values=True)
    rows, columns = known.shape[1:]
    parts = {
        (dy, dx): (slice(None), slice(dy, rows + dy), slice(dx, columns + dx))
        for dy in range(3)
        for dx in range(3)
    }
    smooth = (1.0, 2.0, 1.0)
    # Sobel is linear: the difference of the gradients is the gradient of the difference.
    across = sum(smooth[dy] * (error[parts[dy, 0]] - error[parts[dy, 2]]) for dy in range(3))
    down = sum(smooth[dx] * (error[parts[0, dx]] - error[parts[2, dx]]) for dx in range(3))
    gradients = jnp.abs(across) + jnp.abs(down)
    if holes == "left_out":
        whole = jnp.stack([labelled[part] for part in parts.values()]).all(0)
        gradients = jnp.where(whole, gradients, 0.0)
    return (jnp.abs(distance).sum() + gradients.sum()) / jnp.maximum(counted.sum(), 1)


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
        scoring: Of both RMSE. ``pooled``: all labelled pixels are one set. ``per_image``: means over images.
            ``astmt``, as released: the mean over images of the RMSE and the *median* of the logarithm's, of
            all pixels, where a missing depth is `ASTMT_MISSING`.
        scale_invariance: Of `log_depth_loss`.
        holes: Of `metric_depth_loss`.
    """

    gamma: float = 2.0
    logit: Literal["log", "metres"] = "log"
    scoring: Literal["pooled", "per_image", "astmt"] = "pooled"
    scale_invariance: float = 0.0
    holes: Literal["left_out", "astmt"] = "left_out"

    name: ClassVar[str] = NAME
    known_scores: ClassVar[tuple[Score, ...]] = SCORES
    delta_score: ClassVar[Score | None] = RMSE
    pictures: ClassVar[str] = "depth"

    def __post_init__(self) -> None:
        if self.gamma < 0.0:
            raise ValueError(f"gamma: {self.gamma}; expected a number >= 0")
        if not 0.0 <= self.scale_invariance <= 1.0:
            raise ValueError(f"scale_invariance: {self.scale_invariance}; expected a number in [0, 1]")

    def unread(self) -> Mapping[str, str]:
        """Options of the other logit's loss."""
        names = ("gamma", "scale_invariance") if self.logit == "metres" else ("holes",)
        return dict.fromkeys(names, f"the loss of logit '{self.logit}' does not have it")

    @property
    def channels(self) -> int:
        return 1

    def loss(self, logits: Array, target: Array, valid: Array) -> Array:
        if self.logit == "metres":
            return metric_depth_loss(logits, target, valid, holes=self.holes)
        return log_depth_loss(logits, target, valid, gamma=self.gamma, scale_invariance=self.scale_invariance)

    @property
    def by_pixel(self) -> bool:
        return self.logit == "log"

    @property
    def by_image(self) -> bool:
        return self.scale_invariance > 0

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
        return {
            "pixels": counted.sum(),
            **{f"delta{k}": (counted & (ratio < 1.25**k)).sum() for k in (1, 2, 3)},
            **self._errors(prediction, target, batch["valid"]),
            "relative": (jnp.abs(found - truth) / truth).sum(),
        }

    def _errors(self, prediction: Array, target: Array, valid: Array) -> dict[str, Array]:
        """Sums for both RMSE."""
        counted = measured(target, valid)
        if self.scoring == "astmt":
            target = jnp.where(counted, target, ASTMT_MISSING)
            counted = jnp.broadcast_to(valid[:, None, None], counted.shape)
        truth, found = jnp.where(counted, target, 1.0), jnp.where(counted, prediction, 1.0)
        squares = {"squared": (found - truth) ** 2, "squared_log": (jnp.log(found) - jnp.log(truth)) ** 2}
        if self.scoring == "pooled":
            return {name: cost.sum() for name, cost in squares.items()}
        pixels = counted.sum((1, 2))
        roots = {name: jnp.sqrt(cost.sum((1, 2)) / jnp.maximum(pixels, 1)) for name, cost in squares.items()}
        sums = {"images": (pixels > 0).sum(), **{name: root.sum() for name, root in roots.items()}}
        if self.scoring == "astmt":
            place = jnp.searchsorted(jnp.asarray(LOG_BINS), roots["squared_log"], side="right")
            bins = len(LOG_BINS) + 1
            place = jnp.where(pixels > 0, place, bins)
            sums["log_histogram"] = jnp.bincount(place, length=bins + 1)[:-1]
        return sums

    def compute(self, state: State) -> dict[str, float]:
        """delta1 to delta3 (shares), rmse (metres), rmse_log (natural logarithm), abs_rel."""
        pixels = pixel_count(state, NAME)
        squared, squared_log = float(state["squared"]), float(state["squared_log"])
        if self.scoring == "pooled":
            rmse, rmse_log = math.sqrt(squared / pixels), math.sqrt(squared_log / pixels)
        else:
            images = float(state["images"])
            rmse, rmse_log = squared / images, squared_log / images
        if self.scoring == "astmt":
            rmse_log = _median(np.asarray(state["log_histogram"]))
        return {
            **{f"delta{k}": float(state[f"delta{k}"]) / pixels for k in (1, 2, 3)},
            "rmse": rmse,
            "rmse_log": rmse_log,
            "abs_rel": float(state["relative"]) / pixels,
        }


def _median(histogram: np.ndarray) -> float:
    """The median of what a histogram by `LOG_BINS` counts, each value in the middle of its bin."""
    limits = np.concatenate([[0.0], LOG_BINS, [LOG_BINS[-1]]])
    reached, count = np.cumsum(histogram), int(histogram.sum())
    middle = [int(np.searchsorted(reached, place, side="right")) for place in ((count - 1) // 2, count // 2)]
    return float(np.mean([(limits[place] + limits[place + 1]) / 2 for place in middle]))
