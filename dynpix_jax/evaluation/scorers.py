"""From predictions to scores, a few images at a time: sums over pixels, or the boundary benchmark."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import jax
import numpy as np

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.registry import Registry
from dynpix_jax.core.settings import EvaluationConfig
from dynpix_jax.core.source import Source, annotators_of
from dynpix_jax.core.typing import Array
from dynpix_jax.evaluation.boundary import BoundaryScores, GroundTruth, evaluate_boundaries
from dynpix_jax.tasks import PixelTask, Task, prefixes

ProgressFn = Callable[[int, str], None]
"""Called with the number of images done and the name of the last."""


@dataclass(frozen=True)
class TaskScores:
    """The scores of a task's predictions.

    Attributes:
        numbers: Scores by name.
        details: More numbers, ready for JSON.
        per_class: Score -> one number a class, None where the class does not occur; empty without classes.
        curve: Precision against recall; of boundaries only.
    """

    numbers: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)
    per_class: dict[str, list[float | None]] = field(default_factory=dict)
    curve: BoundaryScores | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return self.numbers | self.details | ({"per_class": self.per_class} if self.per_class else {})


def flatten_scores(by_task: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Values of several tasks in one dict, under the names of `tasks.all_scores`."""
    return {
        f"{prefix}{name}": value
        for prefix, values in zip(prefixes(by_task), by_task.values(), strict=True)
        for name, value in values.items()
    }


class Scorer(ABC):
    """Takes the predictions of a task batch by batch, and scores them at the end.

    A task names its scorer in ``Task.scorer``.

    Attributes:
        labels: The fields of a batch that it reads beside ``valid``.
    """

    def __init__(self, task: Task, source: Source, count: int, settings: EvaluationConfig):
        self.task, self.source, self.count, self.settings = task, source, count, settings
        self.labels = task.labels

    @abstractmethod
    def add(self, prediction: Array, batch: Mapping[str, np.ndarray]) -> None:
        """Takes decoded predictions of a batch; elements that are not ``valid`` do not count."""

    @abstractmethod
    def finish(self, progress: ProgressFn | None = None) -> TaskScores:
        """The scores of all predictions; a UserError if nothing was labelled or one is not finite."""

    @classmethod
    def truth(cls, task: Task, source: Source, index: int) -> np.ndarray:
        """The label of an element in the form of a prediction, for pictures."""
        return np.asarray(source[index][task.target])


class SumScorer(Scorer):
    """Keeps the sums of a `PixelTask`, no predictions."""

    def __init__(self, task: Task, source: Source, count: int, settings: EvaluationConfig):
        super().__init__(task, source, count, settings)
        self._task = cast(PixelTask, task)
        self._measure = jax.jit(self._task.measure)
        self._state: Mapping[str, Any] | None = None

    def add(self, prediction: Array, batch: Mapping[str, np.ndarray]) -> None:
        read = {name: batch[name] for name in (*self.labels, "valid")}
        state = jax.device_get(self._measure(prediction, read))
        self._state = state if self._state is None else self._task.merge(self._state, state)

    def finish(self, progress: ProgressFn | None = None) -> TaskScores:
        assert self._state is not None
        numbers = self._task.compute(self._state)
        if not all(np.isfinite(value) for value in numbers.values()):
            raise UserError(
                f"{self._task.name}: scores that are not finite, {numbers}; the network's training diverged"
            )
        per_class = self._task.per_class(self._state)
        classes = self.source.spec.fields[self._task.target].classes
        return TaskScores(numbers, {"classes": list(classes)} if per_class else {}, per_class)


class BoundaryScorer(Scorer):
    """Keeps the probability maps: the benchmark goes through them in several processes.

    Images without any label (of a joint source) do not count.
    """

    def __init__(self, task: Task, source: Source, count: int, settings: EvaluationConfig):
        super().__init__(task, source, count, settings)
        self.labels = (task.target,)
        self._seen = 0
        self._maps: dict[int, np.ndarray] = {}

    @classmethod
    def annotations(cls, task: Task, source: Source, index: int) -> list[np.ndarray]:
        """Each annotator's boundaries of an element, bool (H, W). A task whose label is none overrides it."""
        found = annotators_of(source, index)
        return [source[index][task.target] > 0.5] if found is None else found

    @classmethod
    def truth(cls, task: Task, source: Source, index: int) -> np.ndarray:
        """The share of the annotators."""
        masks = cls.annotations(task, source, index)
        if not masks:
            return super().truth(task, source, index)
        return np.asarray(np.mean(masks, axis=0, dtype=np.float32))

    def add(self, prediction: Array, batch: Mapping[str, np.ndarray]) -> None:
        maps = np.asarray(prediction, np.float32)
        for place in np.flatnonzero(batch["valid"]):
            if (batch[self.task.target][place] >= 0).any():
                self._maps[self._seen] = maps[place]
            self._seen += 1

    def finish(self, progress: ProgressFn | None = None) -> TaskScores:
        if not self._maps:
            raise UserError(
                f"{self.task.name}: no labelled pixel in what was evaluated, so there is nothing to score"
            )
        settings = self.settings
        scores = evaluate_boundaries(
            ((self.source.name(index), probability) for index, probability in self._maps.items()),
            GroundTruth(
                {self.source.name(index): index for index in range(self.count)},
                partial(self.annotations, self.task, self.source),
            ),
            thresholds=settings.thresholds,
            max_dist=settings.max_dist,
            nms=settings.nms,
            smooth=settings.smooth,
            workers=settings.workers,
            progress=progress,
        )
        details = scores.to_dict()
        return TaskScores({name: details.pop(name) for name in ("ods", "ois", "ap")}, details, curve=scores)


SCORERS: Registry[type[Scorer]] = Registry("scorer", {"sums": SumScorer, "boundaries": BoundaryScorer})
"""The values of ``Task.scorer``."""


def make_scorer(task: Task, source: Source, count: int, settings: EvaluationConfig) -> Scorer:
    """The scorer of a task on the first ``count`` elements of a source."""
    return SCORERS.resolve(task.scorer, f"task {task.name}: scorer")(task, source, count, settings)


def truth(task: Task, source: Source, index: int) -> np.ndarray:
    """The label of an element in the form of a prediction, for pictures."""
    return SCORERS.resolve(task.scorer, f"task {task.name}: scorer").truth(task, source, index)
