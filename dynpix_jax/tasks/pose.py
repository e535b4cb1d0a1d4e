"""Human pose: one heatmap a joint, squared errors weighted by visibility, arg-max decoding, PCKh.

The conventions of HRNet's pose code (Sun, Xiao, Liu, Wang, CVPR 2019), on which the pose experiments of
"Confidence Adaptive Anytime Pixel-Level Recognition" (section 4.2) stand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.task import PixelTask, Score, State
from dynpix_jax.core.typing import Array
from dynpix_jax.tasks.skeletons import SKELETONS, Skeleton

NAME = "pose"
TARGET = "keypoints"
HEAD_SIZE = "head_size"
RADIUS = 3
"""Reach of a heatmap's patch from its middle, in sigma."""
THRESHOLDS = (0.5, 0.1, 0.11)
"""Of PCKh, in head sizes. What HRNet's code prints as "Mean@0.1", and papers report so, is PCKh@.11."""


def heatmaps(keypoints: Array, size: tuple[int, int], *, stride: int, sigma: float) -> tuple[Array, Array]:
    """The heatmaps that a network should predict for joints.

    Args:
        keypoints: (B, J, 3) x, y in pixels of the image, and above 0 where the joint is labelled.
        size: (h, w) of the heatmaps.
        stride: Pixels from cell to cell.
        sigma: Deviation of the Gaussian, in cells.

    Returns:
        (B, h, w, J) Gaussians of peak 1 around the cell that is nearest to the joint, 0 beyond 3 sigma; and
        (B, J) weights: 1, or 0 for joints that are not labelled or whose patch lies outside of the map. To
        the left and above, HRNet's code counts a cell more as inside: a patch that ends there has weight 1
        and an empty heatmap.
    """
    reach = RADIUS * sigma
    axes, touched = [], []
    for axis, cells in ((1, size[0]), (0, size[1])):
        middle = jnp.trunc(keypoints[..., axis].astype(jnp.float32) / stride + 0.5)
        away = jnp.arange(cells) - middle[..., None]
        axes.append(jnp.where(jnp.abs(away) <= reach, jnp.exp(-0.5 * (away / sigma) ** 2), 0.0))
        touched.append((middle + reach > -2) & (middle - reach < cells))
    weights = (keypoints[..., 2] > 0) & touched[0] & touched[1]
    return jnp.einsum("bjh,bjw->bhwj", *axes), weights.astype(jnp.float32)


def heatmap_loss(logits: Array, keypoints: Array, valid: Array, *, stride: int, sigma: float) -> Array:
    """Half the mean square of the weighted error, over cells and joints of valid images.

    Args:
        logits: (B, h, w, J) heatmaps.
        keypoints: (B, J, 3), see `heatmaps`.
        valid: (B,) bool.
        stride: Pixels from cell to cell.
        sigma: Deviation of the Gaussian, in cells.

    Returns:
        Scalar. Joints without weight count in the mean, with an error of 0, as in HRNet's code.
    """
    size = (logits.shape[1], logits.shape[2])
    target, weights = heatmaps(keypoints, size, stride=stride, sigma=sigma)
    weights = weights * valid[:, None]
    error = (logits.astype(jnp.float32) - target) * weights[:, None, None, :]
    return 0.5 * (error**2).sum() / (jnp.maximum(valid.sum(), 1) * error[0].size)


def find_joints(heatmaps: Array, *, stride: int) -> Array:
    """(B, h, w, J) heatmaps -> (B, J, 3): x, y in pixels of the image, and the height of the peak.

    The greatest cell, moved a quarter of a cell towards its greater neighbour in x and in y where it is not
    within two cells of the map's low border or next to its high one. A map without a positive value has no
    joint: (0, 0). Both are HRNet's rules.
    """
    batch, height, width, joints = heatmaps.shape
    flat = heatmaps.astype(jnp.float32).reshape(batch, height * width, joints)
    height_of_peak = flat.max(1)
    peak = jnp.where(height_of_peak > 0, flat.argmax(1), 0)
    row, column = peak // width, peak % width

    def at(rows: Array, columns: Array) -> Array:
        index = jnp.clip(rows, 0, height - 1) * width + jnp.clip(columns, 0, width - 1)
        return jnp.take_along_axis(flat, index[:, None], 1)[:, 0]

    inner = (column > 1) & (column < width - 1) & (row > 1) & (row < height - 1)
    right = jnp.sign(at(row, column + 1) - at(row, column - 1))
    down = jnp.sign(at(row + 1, column) - at(row - 1, column))
    x, y = (place + 0.25 * inner * step for place, step in ((column, right), (row, down)))
    return jnp.stack([stride * x, stride * y, height_of_peak], -1)


def pck_counts(prediction: Any, truth: Any, size: Any, thresholds: Sequence[float]) -> tuple[list[Any], Any]:
    """Counts the joints that are found, for PCK ("percentage of correct keypoints").

    Args:
        prediction: (N, J, 2 or more), x and y first; NumPy or jax.
        truth: (N, J, 3) x, y in the same units, and above 0 where the joint is labelled.
        size: (N,) a length of each person, in these units; people without one (0) do not count.
        thresholds: A joint is found if its distance is at most threshold * size.

    Returns:
        The (J,) number of found joints for each threshold, and the (J,) number of joints that count.
    """
    counted = (truth[..., 2] > 0) & (size[:, None] > 0)
    squared = ((prediction[..., :2] - truth[..., :2]) ** 2).sum(-1)
    found = [(squared <= (threshold * size[:, None]) ** 2) & counted for threshold in thresholds]
    return [hits.sum(0) for hits in found], counted.sum(0)


def pck_scores(hits: Any, joints: Any, skeleton: Skeleton) -> dict[str, float]:
    """Shares in [0, 1] from what `pck_counts` gives.

    Args:
        hits: (J,) joints that were found.
        joints: (J,) joints that count.
        skeleton: Gives the groups, and the joints that the overall score leaves out.

    Returns:
        ``mean``: of all joints but the excluded ones, each type weighted by its number of labels; and for
        every group the mean of its types (0 for a type that is labelled nowhere).
    """
    found, count = np.asarray(hits, np.float64), np.asarray(joints, np.float64)
    kept = [joint for joint in range(len(skeleton.joints)) if joint not in skeleton.excluded]
    rates = found / np.maximum(count, 1.0)
    scores = {"mean": float(found[kept].sum() / max(count[kept].sum(), 1.0))}
    return scores | {name: float(rates[list(members)].mean()) for name, members in skeleton.groups}


def _name(threshold: float, thresholds: Sequence[float]) -> str:
    return "pckh" if threshold == thresholds[0] else f"pckh_{100 * threshold:g}"


def _note(threshold: float) -> str:
    return ', "Mean@0.1" of HRNet\'s code' if threshold == 0.11 else ""


def pckh_scores(thresholds: Sequence[float], skeleton: Skeleton) -> tuple[Score, ...]:
    """PCKh of all joints at each threshold; at the first one, of groups of joints."""
    overall = [
        Score(_name(t, thresholds), f"PCKh@{t:g}", f"share of joints within {t:g} head sizes{_note(t)}")
        for t in thresholds
    ]
    within = f"within {thresholds[0]:g} head sizes"
    groups = [Score(name, name, f"share of these joints {within}") for name, _ in skeleton.groups]
    return (*overall, *groups)


@dataclass(frozen=True)
class Pose(PixelTask):
    """Target ``keypoints`` float32 (B, J, 3): x, y in pixels, and 0 = not labelled, 1 = hidden, 2 = visible.

    A prediction has the height of the heatmap's peak in the third place. Scores read ``head_size`` (B,) in
    pixels; 0 = unknown: the person is not scored.

    Attributes:
        skeleton: Name of the set of joints.
        sigma: Deviation of the target's Gaussians, in cells of the heatmap.
        cell: Pixels from one cell of the heatmap to the next.
        thresholds: Of PCKh, in head sizes; rows are compared by the first.
        shift_flipped: Whether heatmaps of mirror images move by a cell, which puts the joints in their
            places: cell c is about pixel c * cell, which does not mirror into a cell.
    """

    skeleton: Literal["mpii", "coco"] = "mpii"
    sigma: float = 2.0
    cell: int = 4
    thresholds: tuple[float, ...] = THRESHOLDS
    shift_flipped: bool = True

    name: ClassVar[str] = NAME
    known_scores: ClassVar[tuple[Score, ...]] = pckh_scores(THRESHOLDS, SKELETONS["mpii"])
    pictures: ClassVar[str] = "pose"

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ValueError(f"sigma: {self.sigma}; expected a number of cells above 0")
        if self.cell < 1:
            raise ValueError(f"cell: {self.cell}; expected at least 1 pixel")
        if not self.thresholds or min(self.thresholds) <= 0:
            raise ValueError(f"thresholds: {self.thresholds}; expected one or more numbers above 0")

    @property
    def body(self) -> Skeleton:
        """The joints."""
        return SKELETONS[self.skeleton]

    @property
    def channels(self) -> int:
        return len(self.body.joints)

    @property
    def class_count(self) -> int:
        """Number of joints."""
        return self.channels

    @property
    def stride(self) -> int:
        return self.cell

    @property
    def labels(self) -> tuple[str, ...]:
        return (TARGET, HEAD_SIZE)

    @property
    def scores(self) -> tuple[Score, ...]:
        return pckh_scores(self.thresholds, self.body)

    def loss(self, logits: Array, target: Array, valid: Array) -> Array:
        return heatmap_loss(logits, target, valid, stride=self.cell, sigma=self.sigma)

    def decode(self, logits: Array) -> Array:
        """(B, h, w, J) heatmaps -> (B, J, 3) x, y in pixels, height of the peak."""
        return find_joints(logits, stride=self.cell)

    def difference(self, first: Array, second: Array) -> Array:
        """The largest distance of a joint, in pixels."""
        return jnp.sqrt(((first[..., :2] - second[..., :2]) ** 2).sum(-1)).max()

    def mirror(self, logits: Array) -> Array:
        swapped = logits[..., jnp.asarray(self.body.mirrored)]
        if not self.shift_flipped:
            return swapped
        return jnp.concatenate([swapped[:, :, :1], swapped[:, :, :-1]], axis=2)

    def measure(self, prediction: Array, batch: Mapping[str, Array]) -> dict[str, Array]:
        sizes = jnp.where(batch["valid"], batch[HEAD_SIZE], 0.0)
        hits, joints = pck_counts(prediction, batch[TARGET], sizes, self.thresholds)
        return {"hits": jnp.stack(hits), "joints": joints}

    def compute(self, state: State) -> dict[str, float]:
        """Shares in [0, 1], by the names of ``scores``."""
        if not np.asarray(state["joints"]).sum():
            raise UserError(f"{NAME}: no joint of a known head size in what was evaluated: nothing to score")
        every = [pck_scores(hits, state["joints"], self.body) for hits in state["hits"]]
        means = {
            _name(threshold, self.thresholds): scores["mean"]
            for threshold, scores in zip(self.thresholds, every, strict=True)
        }
        return means | {name: every[0][name] for name, _ in self.body.groups}

    def per_class(self, state: State) -> dict[str, list[float | None]]:
        """PCKh of every joint; None where it is labelled nowhere."""
        pairs = zip(state["hits"][0], state["joints"], strict=True)
        return {"pckh": [float(found / count) if count else None for found, count in pairs]}
