"""A task of one's own: the edges between the instances of things.

    model.task = "my_tasks:InstanceEdges"
    model.task_options = dict(positive_weight=0.9)

The label is a map of ids, the field `instances` of a batch. A pixel is an edge if the pixel to its right, or
the one below, belongs to another instance. Predictions are scored by the boundary benchmark, and drawn on
the photo.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from dynpix_jax.core.source import Source
from dynpix_jax.core.task import Score, Task
from dynpix_jax.core.typing import Array
from dynpix_jax.evaluation.scorers import BoundaryScorer
from dynpix_jax.tasks.boundaries import ODS, SCORES
from dynpix_jax.tasks.logistic import LogisticTask, balanced_loss
from dynpix_jax.visualization.task_pictures import TaskPictures

UNKNOWN = 255


def edges(ids: Array) -> Array:
    """Edges bool (..., H, W) of a map of ids."""
    right = jnp.pad(ids[..., 1:] != ids[..., :-1], [(0, 0)] * (ids.ndim - 1) + [(0, 1)])
    below = jnp.pad(ids[..., 1:, :] != ids[..., :-1, :], [(0, 0)] * (ids.ndim - 2) + [(0, 1), (0, 0)])
    return (right | below) & (ids != UNKNOWN)


@dataclass(frozen=True)
class InstanceEdges(LogisticTask):
    """Target int32 (B, H, W): ids of instances, 255 = unknown. The prediction is the probability of an edge.

    Attributes:
        positive_weight: Weight of edges in the loss; None balances each image.
    """

    positive_weight: float | None = None

    name: ClassVar[str] = "instance_edges"
    known_scores: ClassVar[tuple[Score, ...]] = SCORES
    delta_score: ClassVar[Score | None] = ODS
    scorer: ClassVar[str] = f"{__name__}:EdgeScorer"
    pictures: ClassVar[str] = f"{__name__}:EdgePictures"
    side_outputs: ClassVar[bool] = True

    @property
    def labels(self) -> tuple[str, ...]:
        return ("instances",)

    def labelled(self, target: Array) -> Array:
        return target != UNKNOWN

    def loss(self, logits: Array, target: Array, valid: Array) -> Array:
        positive, known = edges(target), self.labelled(target)
        sides = positive.astype(jnp.float32), (known & ~positive).astype(jnp.float32)
        return balanced_loss(logits, *sides, valid, positive_weight=self.positive_weight)


class EdgeScorer(BoundaryScorer):
    """The boundary benchmark, with the edges of the label as its one annotator."""

    @classmethod
    def annotations(cls, task: Task, source: Source, index: int) -> list[np.ndarray]:
        return [np.asarray(edges(jnp.asarray(source[index][task.target])))]


class EdgePictures(TaskPictures):
    """Edges in orange on the darkened photo."""

    caption = "Edges between things are orange."

    def picture(
        self, values: np.ndarray, reference: np.ndarray, photo: np.ndarray | None = None
    ) -> np.ndarray:
        weight = np.clip(values, 0, 1)[..., None]
        background = np.zeros((*values.shape, 3)) if photo is None else 0.5 * photo
        return np.rint(weight * np.array([255, 140, 0]) + (1 - weight) * background).astype(np.uint8)

    def files(self, photo: np.ndarray, prediction: np.ndarray) -> dict[str, np.ndarray]:
        """map: 8-bit grey, 255 = certainly an edge."""
        grey = np.rint(255 * prediction).astype(np.uint8)
        return {"map": grey, "overlay": self.picture(prediction, prediction, photo)}
