"""Surface normals: cosine and inverse cosine (PAG eq. 10) of unit vectors, or L1 of them (ASTMT)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dynpix_jax.core.task import PixelTask, Score, State, pixel_count
from dynpix_jax.core.typing import Array
from dynpix_jax.ops.vectors import scale_to_unit

NAME = "normals"
Epsilon = Literal["pag", "astmt"]
MEAN = Score(
    "mean",
    "mean, °",
    "mean angle between prediction and truth in degrees, lower is better",
    digits=2,
    higher_is_better=False,
)
SCORES = (
    MEAN,
    Score("median", "median, °", "median of that angle", digits=2, higher_is_better=False),
    Score("rmse", "RMSE, °", "root mean square of that angle", digits=2, higher_is_better=False),
    Score("within_11", "<11.25°", "share of pixels within 11.25 degrees"),
    Score("within_22", "<22.5°", "share of pixels within 22.5 degrees"),
    Score("within_30", "<30°", "share of pixels within 30 degrees"),
)
WITHIN = {"within_11": 11.25, "within_22": 22.5, "within_30": 30.0}
"""Limits in degrees of the scores that count pixels."""

BINS_PER_DEGREE = 100
"""Resolution of the histogram that gives the median."""

SOFTENING = 0.2
"""Softens the inverse cosine's gradient, as released: -1 / (0.2 + sqrt(1 - t^2)) in place of
-1 / sqrt(1 - t^2), which is infinite where prediction and truth agree."""

STEEPEST = 1e3
"""Greatest slope without softening; within .06 degrees of the truth it is less than the exact one."""


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def soft_arccos(cosine: Array, softening: float = SOFTENING) -> Array:
    """Inverse cosine in radians of values in [-1, 1] (others count as the nearer end).

    Its gradient is finite everywhere: see `SOFTENING` and `STEEPEST`.
    """
    return jnp.arccos(jnp.clip(cosine, -1.0, 1.0))


@soft_arccos.defjvp
def _soft_arccos_jvp(softening: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (cosine,), (tangent,) = primals, tangents
    sine = jnp.sqrt(jnp.maximum(1.0 - jax.lax.stop_gradient(cosine) ** 2, 0.0))
    return soft_arccos(cosine, softening), -tangent / jnp.maximum(softening + sine, 1 / STEEPEST)


def unit(vectors: Array, epsilon: Epsilon = "pag") -> Array:
    """(..., 3) vectors scaled to length 1; float32.

    With an epsilon, so that gradients are finite: vectors near 0 come out shorter. As released by PAG it is
    under the root, x / sqrt(|x|^2 + 1e-5); as released by ASTMT beside it, x / (|x| + 1e-12).
    """
    if epsilon == "astmt":
        return scale_to_unit(vectors, 1e-12)
    vectors = vectors.astype(jnp.float32)
    return vectors * jax.lax.rsqrt((vectors**2).sum(-1, keepdims=True) + 1e-5)


def angular_loss(
    logits: Array,
    target: Array,
    valid: Array,
    *,
    cosine: float = 1.0,
    arccos: float = 4.0,
    l1: float = 0.0,
    softening: float = SOFTENING,
    epsilon: Epsilon = "pag",
) -> Array:
    """Eq. 10 plus the weight of the cosine, so that the best is 0: a mean over labelled pixels.

    Args:
        logits: (B, H, W, 3), of any length.
        target: (B, H, W, 3) unit vectors; zero = invalid.
        valid: (B,) bool; only the pixels of valid images count.
        cosine: Weight of the first term.
        arccos: Weight of the second term, the paper's lambda.
        l1: Weight of the mean absolute difference of components.
        softening: Of the inverse cosine's gradient.
        epsilon: Of `unit`.

    Returns:
        Scalar, cosine x (1 - n.n') + arccos x angle in radians + l1 x mean |n - n'|.
    """
    counted = directed(target, valid)
    found, target = unit(logits, epsilon), jnp.where(counted[..., None], target, 0.0)
    dot = (found * target).sum(-1)
    cost = cosine * (1.0 - dot) + arccos * soft_arccos(dot, softening) + l1 * jnp.abs(found - target).mean(-1)
    return jnp.where(counted, cost, 0.0).sum() / jnp.maximum(counted.sum(), 1)


def directed(target: Array, valid: Array) -> Array:
    """(B, H, W) bool: pixels of valid images with a normal (of squared length above 1/2, as released)."""
    return ((target**2).sum(-1) > 0.5) & valid[:, None, None]


def angle(first: Array, second: Array) -> Array:
    """Degrees in [0, 180] between (..., 3) vectors of any length; 0 for a zero vector.

    Small angles are accurate, too.
    """
    cross = jnp.cross(first, second)
    return jnp.rad2deg(jnp.arctan2(jnp.sqrt((cross**2).sum(-1)), (first * second).sum(-1)))


@dataclass(frozen=True)
class Normals(PixelTask):
    """Target float32 (B, H, W, 3): unit vectors, the zero vector = invalid.

    x points right, y down, z forward: a visible surface has z < 0.

    Attributes:
        cosine: Weight of the cosine in the loss; 1 in PAG, 0 in ASTMT.
        arccos: Weight of the angle; 4 in PAG, 0 in ASTMT.
        l1: Weight of the absolute difference; 0 in PAG, 1 in ASTMT.
        softening: Added to the sine that the inverse cosine's gradient is divided by: .2 as released, so that
            the pull vanishes with the angle; with 0 it is the same at every angle, as figure 4 of PAG has it.
        epsilon: Whose epsilon the loss has where it scales logits to length 1, see `unit`. It matters for
            logits below .1: of those of .01, ``pag`` lets .88 of the gradient through.
    """

    cosine: float = 1.0
    arccos: float = 4.0
    l1: float = 0.0
    softening: float = SOFTENING
    epsilon: Epsilon = "pag"

    name: ClassVar[str] = NAME
    known_scores: ClassVar[tuple[Score, ...]] = SCORES
    delta_score: ClassVar[Score | None] = MEAN
    pictures: ClassVar[str] = "normals"

    def __post_init__(self) -> None:
        for name in ("cosine", "arccos", "l1", "softening"):
            if getattr(self, name) < 0.0:
                raise ValueError(f"{name}: {getattr(self, name)}; expected a number >= 0")

    def unread(self) -> Mapping[str, str]:
        """Options that nothing reads, and why."""
        return {} if self.arccos else {"softening": "it is of the angle; set arccos"}

    @property
    def channels(self) -> int:
        return 3

    def loss(self, logits: Array, target: Array, valid: Array) -> Array:
        return angular_loss(
            logits,
            target,
            valid,
            cosine=self.cosine,
            arccos=self.arccos,
            l1=self.l1,
            softening=self.softening,
            epsilon=self.epsilon,
        )

    def decode(self, logits: Array) -> Array:
        """(B, H, W, 3) logits -> unit vectors; where the logits are 0, the one that faces the camera."""
        logits = logits.astype(jnp.float32)
        # Divided by the greatest component first: the squares of small numbers would be 0.
        largest = jnp.abs(logits).max(-1, keepdims=True)
        logits = jnp.where(
            largest > 0, logits / jnp.where(largest > 0, largest, 1.0), jnp.array([0, 0, -1.0])
        )
        return logits / jnp.sqrt((logits**2).sum(-1, keepdims=True))

    def difference(self, first: Array, second: Array) -> Array:
        """The largest angle in degrees."""
        return angle(first, second).max()

    def labelled(self, target: Array) -> Array:
        return directed(target, jnp.ones(len(target), bool))

    def mix(self, logits: Array) -> Array:
        return self.decode(logits)

    def mirror(self, logits: Array) -> Array:
        return logits * jnp.array([-1.0, 1.0, 1.0], logits.dtype)

    def measure(self, prediction: Array, batch: Mapping[str, Array]) -> dict[str, Array]:
        target = batch[NAME]
        counted = directed(target, batch["valid"])
        degrees = jnp.where(counted, angle(prediction, target), 0.0)
        bins = 180 * BINS_PER_DEGREE
        place = jnp.clip((degrees * BINS_PER_DEGREE).astype(jnp.int32), 0, bins - 1)
        return {
            "pixels": counted.sum(),
            "sum": degrees.sum(),
            "squared": (degrees**2).sum(),
            **{name: (counted & (degrees < limit)).sum() for name, limit in WITHIN.items()},
            "histogram": jnp.bincount(jnp.where(counted, place, bins).ravel(), length=bins + 1)[:-1],
        }

    def compute(self, state: State) -> dict[str, float]:
        """mean, median, rmse in degrees over all pixels, and the shares of ``WITHIN``.

        The median is right to 0.01 degrees: it lies in the bin of the middle pixel.
        """
        pixels = pixel_count(state, NAME)
        histogram = np.asarray(state["histogram"])
        reached = np.cumsum(histogram)
        middle = int(np.searchsorted(reached, pixels / 2))
        below = reached[middle] - histogram[middle]
        return {
            "mean": float(state["sum"]) / pixels,
            "median": float(middle + (pixels / 2 - below) / histogram[middle]) / BINS_PER_DEGREE,
            "rmse": math.sqrt(float(state["squared"]) / pixels),
            **{name: float(state[name]) / pixels for name in WITHIN},
        }
