"""The base of tasks: target, loss, decoding, the scores of its predictions, and how these are drawn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.typing import Array

State = Mapping[str, Any]
"""Named sums that a metric is made of; arrays on the device or in NumPy."""


@dataclass(frozen=True)
class Score:
    """A number by which predictions are judged.

    Attributes:
        name: Its key.
        label: Head of its column.
        meaning: What it is, a clause for readers.
        digits: Digits after the point.
        higher_is_better: False for errors.
    """

    name: str
    label: str
    meaning: str
    digits: int = 4
    higher_is_better: bool = True

    def text(self, value: float, fewer: int = 0) -> str:
        """The number as it is printed, with ``fewer`` digits."""
        return f"{value:.{self.digits - fewer}f}"


@dataclass(frozen=True)
class Task(ABC):
    """One thing to predict from an image. Its fields are the task's options; the functions are pure.

    Attributes:
        name: Name of the task, and of its prediction in ``Outputs``.
        known_scores: The scores that evaluation can compute; rows are compared by the first.
        delta_score: The score by which the task counts in Δm; None for a task that has no part in it.
        scorer: How predictions become scores: a name in `evaluation.scorers.SCORERS`, or
            ``package.module:Name``.
        pictures: How predictions are drawn: a name in `visualization.task_pictures.PICTURES`, or
            ``package.module:Name``.
        side_outputs: Whether the stages of a backbone predict it, too, each under the same loss (HED).
        has_rare: Whether `rare` selects any pixels.
    """

    name: ClassVar[str]
    known_scores: ClassVar[tuple[Score, ...]]
    delta_score: ClassVar[Score | None] = None
    scorer: ClassVar[str]
    pictures: ClassVar[str]
    side_outputs: ClassVar[bool] = False
    has_rare: ClassVar[bool] = False

    @property
    @abstractmethod
    def channels(self) -> int:
        """Channels of the logits."""

    @property
    def scores(self) -> tuple[Score, ...]:
        """The ``known_scores`` that the options ask for."""
        return self.known_scores

    @property
    def higher_is_better(self) -> bool:
        """Whether higher values of the first score are better."""
        return self.scores[0].higher_is_better

    @property
    def class_count(self) -> int:
        """Number of classes; 0 where there are none."""
        return 0

    @property
    def labels(self) -> tuple[str, ...]:
        """The fields of a batch that training and scoring read, the target first."""
        return (self.name,)

    @property
    def target(self) -> str:
        """The field of a batch that ``loss`` takes."""
        return self.labels[0]

    @property
    def stride(self) -> int:
        """Pixels from one logit to the next: logit (i, j) is about pixel (i * stride, j * stride).

        1: logits at the image's resolution, which systems predict for most tasks. More: heatmaps.
        """
        return 1

    def logits_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of the logits of an image of ``size``."""
        return -(-size[0] // self.stride), -(-size[1] // self.stride)

    @abstractmethod
    def loss(self, logits: Array, target: Array, valid: Array) -> Array:
        """Training loss, a scalar.

        Args:
            logits: (B, H, W, channels), at ``stride``.
            target: The batch's field ``target``.
            valid: (B,) bool, False for elements that only pad the batch.

        Returns:
            A mean over labelled pixels; 0, with a gradient of 0, where there are none.
        """

    @abstractmethod
    def decode(self, logits: Array) -> Array:
        """(B, H, W, channels) logits -> the prediction (B, ...), in the form and units of the target."""

    @abstractmethod
    def difference(self, first: Array, second: Array) -> Array:
        """Distance of two predictions (decoded, of one image or a batch): 0 where they are equal."""

    @property
    def by_class(self) -> bool:
        """Whether the softmax of a pixel's logits gives probabilities of classes."""
        return self.class_count > 0 and self.stride == 1

    # A loss at a sample of the pixels, which come as images of N x 1 (papers.pixelnet).

    @property
    def by_pixel(self) -> bool:
        """Whether the loss needs no pixel's neighbours."""
        return self.stride == 1

    @property
    def by_image(self) -> bool:
        """Whether the loss compares the pixels of an image, so that those of several cannot be mixed."""
        return False

    def labelled(self, target: Array) -> Array:
        """(B, H, W) bool: the pixels that the loss counts."""
        return jnp.ones(target.shape[:3], bool)

    def rare(self, target: Array) -> Array:
        """(B, H, W) bool: pixels that a sample may be biased to."""
        return jnp.zeros(target.shape[:3], bool)

    # Views of an image (evaluation.inference): how their predictions become one, how labels are resized.

    @classmethod
    def resize_label(cls, label: Array, size: tuple[int, int]) -> Array:
        """Resizes labels (B, h, w, ...) that a network reads beside the image, as the image is resized.

        Nearest pixels by default, since classes cannot be interpolated.
        """
        if label.shape[1:3] == size:
            return label
        resized: Array = jax.image.resize(label, (len(label), *size, *label.shape[3:]), "nearest")
        return resized

    def mix(self, logits: Array) -> Array:
        """Logits -> the values, of the same shape, that are averaged over views."""
        return logits

    def unmix(self, mean: Array) -> Array:
        """The mean of what ``mix`` gave -> logits."""
        return mean

    def mirror(self, logits: Array) -> Array:
        """Logits of a mirrored image, mirrored back -> logits of the image."""
        return logits

    def rescale(self, logits: Array, scale: float) -> Array:
        """Logits of an image enlarged by ``scale`` -> logits of the image."""
        return logits

    def smooth(self, logits: Array, sigma: float) -> Array:
        """The prediction smoothed by a Gaussian of ``sigma`` pixels, as logits; classes stay as they are."""
        return logits


@dataclass(frozen=True)
class PixelTask(Task):
    """A task whose scores are made of sums over pixels or joints.

    ``measure`` runs in jit, batch by batch; ``merge`` and ``compute`` on the host.
    """

    scorer: ClassVar[str] = "sums"

    @abstractmethod
    def measure(self, prediction: Array, batch: Mapping[str, Array]) -> dict[str, Array]:
        """The sums of a batch.

        Args:
            prediction: Decoded.
            batch: The fields ``labels``, and ``valid`` (B,) bool.
        """

    @staticmethod
    def merge(first: State, second: State) -> dict[str, np.ndarray]:
        """The sums of two sets of images, in 64 bits: exact for counts."""
        return {name: _wide(value) + _wide(second[name]) for name, value in first.items()}

    @abstractmethod
    def compute(self, state: State) -> dict[str, float]:
        """The scores, by name; a UserError if nothing was labelled."""

    def per_class(self, state: State) -> dict[str, list[float | None]]:
        """Scores of every class, by name; None where the class does not occur. Empty without classes."""
        return {}


def check_labels(tasks: Mapping[str, Task], fields: Mapping[str, Sequence[str]], where: str) -> None:
    """Checks that a source has the labels that tasks read.

    Args:
        tasks: Tasks by name.
        fields: The source's labels by name, each with its class names (empty for a label without classes).
        where: What the source is, for messages.

    Raises:
        UserError: A label is missing, or it has another number of classes than the task.
    """
    for task in tasks.values():
        for label in task.labels:
            if label not in fields:
                have = ", ".join(f"'{name}'" for name in fields) or "none"
                raise UserError(f"{where}: no '{label}' labels, task {task.name} needs them; it has {have}")
        count = len(fields[task.target])
        if task.class_count and count != task.class_count:
            raise UserError(
                f"{where}: {count} classes of {task.name}, the network has {task.class_count}; "
                "set model.task_options.classes"
            )


def all_scores(tasks: Mapping[str, Task]) -> tuple[Score, ...]:
    """The scores of several tasks side by side: those of all but the first carry their task's name.

    Of segmentation and depth: ``miou``, ..., ``depth/delta1``, ...
    """
    return tuple(
        replace(score, name=f"{prefix}{score.name}", label=f"{prefix.replace('/', ' ')}{score.label}")
        for prefix, task in zip(prefixes(tasks), tasks.values(), strict=True)
        for score in task.scores
    )


def prefixes(tasks: Mapping[str, Any]) -> list[str]:
    """Prefix of each task's scores where several tasks share a dict; "" for the first."""
    return [f"{name}/" if index else "" for index, name in enumerate(tasks)]


def pixel_count(state: State, task: str) -> float:
    """Number of labelled pixels of a state, its entry ``pixels``; a UserError if there are none."""
    pixels = float(state["pixels"])
    if not pixels:
        raise UserError(f"{task}: no labelled pixel in what was evaluated, so there is nothing to score")
    return pixels


def _wide(value: Any) -> np.ndarray:
    array = np.asarray(jax.device_get(value))
    return array.astype(np.int64 if np.issubdtype(array.dtype, np.integer) else np.float64)
