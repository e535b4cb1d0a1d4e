"""What a task is: target, loss, decoding, and the scores of its predictions."""

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
"""Sums that a metric is made of, named; arrays on the device or in NumPy."""


@dataclass(frozen=True)
class Score:
    """A number by which predictions are judged.

    name: its key. label: the head of its column. meaning: for readers, a clause. digits: after the point.
    """

    name: str
    label: str
    meaning: str
    digits: int = 4

    def text(self, value: float, fewer: int = 0) -> str:
        """The number as it is printed, with ``fewer`` digits."""
        return f"{value:.{self.digits - fewer}f}"


@dataclass(frozen=True)
class Task(ABC):
    """One thing to predict from an image. Its fields are the task's options; the functions are pure.

    name: of the task, and of its prediction in ``Outputs``.
    higher_is_better: of the first of ``scores``.
    has_rare: whether `rare` names any pixels.
    """

    name: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    has_rare: ClassVar[bool] = False

    @property
    @abstractmethod
    def channels(self) -> int:
        """Channels of the logits."""

    @property
    @abstractmethod
    def scores(self) -> tuple[Score, ...]:
        """What its evaluation computes; the one that rows are compared by first."""

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

        1: logits at the image's resolution, which is what systems predict for most tasks.
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
            target: the batch's field ``target``.
            valid: (B,) bool, False for elements that only pad the batch.

        Returns:
            A mean over labelled pixels; 0, with a gradient of 0, where there are none.
        """

    @abstractmethod
    def decode(self, logits: Array) -> Array:
        """(B, H, W, channels) logits -> the prediction (B, ...), in the form and units of the target."""

    @abstractmethod
    def difference(self, first: Array, second: Array) -> Array:
        """How far two predictions (decoded, of one image or a batch) are apart: 0 where they are equal."""

    # How a loss is computed at a sample of the pixels, as images of N x 1 (models.systems.pixelnet).

    @property
    def by_pixel(self) -> bool:
        """Whether the loss needs no pixel's neighbours."""
        return self.stride == 1

    def labelled(self, target: Array) -> Array:
        """(B, H, W) bool: the pixels that the loss counts."""
        return jnp.ones(target.shape[:3], bool)

    def rare(self, target: Array) -> Array:
        """(B, H, W) bool: pixels that a sample may be biased to."""
        return jnp.zeros(target.shape[:3], bool)

    # How predictions of several views of an image become one (evaluation.inference).

    def mix(self, logits: Array) -> Array:
        """Logits -> the values, of the same shape, that are averaged over views."""
        return logits

    def unmix(self, mean: Array) -> Array:
        """The mean of what ``mix`` gave -> logits."""
        return mean

    def mirror(self, logits: Array) -> Array:
        """What a mirrored image's logits, mirrored back, say of the image itself."""
        return logits

    def rescale(self, logits: Array, scale: float) -> Array:
        """What the logits of an image enlarged by ``scale`` say of the image itself."""
        return logits

    def smooth(self, logits: Array, sigma: float) -> Array:
        """The prediction smoothed by a Gaussian of ``sigma`` pixels, as logits; of classes it is not."""
        return logits


@dataclass(frozen=True)
class PixelTask(Task):
    """A task whose scores are made of sums, over pixels or joints.

    ``measure`` runs in jit, batch by batch; ``merge`` and ``compute`` on the host.
    """

    @abstractmethod
    def measure(self, prediction: Array, batch: Mapping[str, Array]) -> dict[str, Array]:
        """The sums of a batch: of decoded predictions and the fields ``labels`` and ``valid`` (B,) bool."""

    @staticmethod
    def merge(first: State, second: State) -> dict[str, np.ndarray]:
        """The sums of two sets of images, in 64 bits: exact for counts."""
        return {name: _wide(value) + _wide(second[name]) for name, value in first.items()}

    @abstractmethod
    def compute(self, state: State) -> dict[str, float]:
        """The scores, by name.

        Raises:
            UserError: nothing was labelled.
        """

    def per_class(self, state: State) -> dict[str, list[float | None]]:
        """Scores of every class, by name; None where the class does not occur. Empty without classes."""
        return {}


def check_labels(tasks: Mapping[str, Task], fields: Mapping[str, Sequence[str]], where: str) -> None:
    """Checks that a source has what tasks read.

    Args:
        tasks: by name.
        fields: the source's labels by name, each with its class names (empty for a label without classes).
        where: what the source is, for messages.

    Raises:
        UserError: a label is missing, or it has another number of classes than the task.
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
    """What each task's numbers are prefixed with where those of all stand together; "" for the first."""
    return [f"{name}/" if index else "" for index, name in enumerate(tasks)]


def pixel_count(state: State, task: str) -> float:
    """How many labelled pixels a state has seen, its entry ``pixels``. Raises UserError for none."""
    pixels = float(state["pixels"])
    if not pixels:
        raise UserError(f"{task}: no labelled pixel in what was evaluated, so there is nothing to score")
    return pixels


def _wide(value: Any) -> np.ndarray:
    array = np.asarray(jax.device_get(value))
    return array.astype(np.int64 if np.issubdtype(array.dtype, np.integer) else np.float64)
