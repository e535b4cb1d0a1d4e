"""From predictions to scores, a few images at a time: sums over pixels, or the boundary benchmark."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.source import Source, annotators_of
from dynpix_jax.core.typing import Array
from dynpix_jax.evaluation.boundary import BoundaryScores, evaluate_boundaries
from dynpix_jax.evaluation.settings import EvaluationConfig
from dynpix_jax.tasks import PixelTask, Task, prefixes

Progress = Callable[[int, str], None]
"""Called with the number of images done and the name of the last."""


@dataclass(frozen=True)
class TaskScores:
    """What a task's predictions reach.

    numbers: by the names of the task's scores. details: more of them, ready for JSON.
    per_class: score -> one number a class, None where the class does not occur; empty without classes.
    curve: precision against recall; of boundaries only.
    """

    numbers: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)
    per_class: dict[str, list[float | None]] = field(default_factory=dict)
    curve: BoundaryScores | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return self.numbers | self.details | ({"per_class": self.per_class} if self.per_class else {})


def together(by_task: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What several tasks have by name in one dict, under the names of `tasks.all_scores`."""
    return {
        f"{prefix}{name}": value
        for prefix, values in zip(prefixes(by_task), by_task.values(), strict=True)
        for name, value in values.items()
    }


class Scorer(ABC):
    """Takes predictions batch by batch and scores them at the end.

    labels: the fields of a batch that it reads beside ``valid``.
    """

    labels: tuple[str, ...]

    @abstractmethod
    def add(self, prediction: Array, batch: Mapping[str, np.ndarray]) -> None:
        """Decoded predictions of a batch; elements that are not ``valid`` do not count."""

    @abstractmethod
    def finish(self, progress: Progress | None = None) -> TaskScores:
        """The scores of all that was added.

        Raises:
            UserError: nothing labelled, or predictions that are not finite.
        """


class PixelScorer(Scorer):
    """Keeps a task's sums, no predictions."""

    def __init__(self, task: PixelTask, source: Source, count: int, settings: EvaluationConfig):
        self.labels = task.labels
        self._task, self._measure = task, jax.jit(task.measure)
        self._classes = source.spec.fields[task.target].classes
        self._state: Mapping[str, Any] | None = None

    def add(self, prediction: Array, batch: Mapping[str, np.ndarray]) -> None:
        read = {name: batch[name] for name in (*self.labels, "valid")}
        state = jax.device_get(self._measure(prediction, read))
        self._state = state if self._state is None else self._task.merge(self._state, state)

    def finish(self, progress: Progress | None = None) -> TaskScores:
        assert self._state is not None
        numbers = self._task.compute(self._state)
        if not all(np.isfinite(value) for value in numbers.values()):
            raise UserError(
                f"{self._task.name}: scores that are not finite, {numbers}; the network's training diverged"
            )
        per_class = self._task.per_class(self._state)
        return TaskScores(numbers, {"classes": list(self._classes)} if per_class else {}, per_class)


class BoundaryScorer(Scorer):
    """Keeps the probability maps: the benchmark goes through them in several processes. Images without any
    label (of a joint source) do not count.
    """

    def __init__(self, task: Task, source: Source, count: int, settings: EvaluationConfig):
        self.labels = (task.target,)
        self._source, self._count, self._settings = source, count, settings
        self._seen = 0
        self._maps: dict[int, np.ndarray] = {}

    def add(self, prediction: Array, batch: Mapping[str, np.ndarray]) -> None:
        maps = np.asarray(prediction, np.float32)
        for place in np.flatnonzero(batch["valid"]):
            if (batch[self.labels[0]][place] >= 0).any():
                self._maps[self._seen] = maps[place]
            self._seen += 1

    def finish(self, progress: Progress | None = None) -> TaskScores:
        if not self._maps:
            raise UserError(
                "boundaries: no labelled pixel in what was evaluated, so there is nothing to score"
            )
        settings = self._settings
        scores = evaluate_boundaries(
            ((self._source.name(index), probability) for index, probability in self._maps.items()),
            Annotators(self._source, self._count),
            thresholds=settings.thresholds,
            max_dist=settings.max_dist,
            nms=settings.nms,
            smooth=settings.smooth,
            workers=settings.workers,
            progress=progress,
        )
        details = scores.to_dict()
        return TaskScores({name: details.pop(name) for name in ("ods", "ois", "ap")}, details, curve=scores)


SCORERS: dict[str, type[Scorer]] = {"boundaries": BoundaryScorer}
"""Of the tasks whose scores are more than sums over pixels."""


def make_scorer(task: Task, source: Source, count: int, settings: EvaluationConfig) -> Scorer:
    """The scorer of a task on the first ``count`` elements of a source."""
    scorer: Callable[..., Scorer] = SCORERS.get(task.name, PixelScorer)
    return scorer(task, source, count, settings)


def truth(task: Task, source: Source, index: int) -> np.ndarray:
    """The label of an element, as pictures show it: of boundaries the share of the annotators."""
    if task.name != "boundaries":
        return np.asarray(source[index][task.target])
    masks = Annotators(source, index + 1)[source.name(index)]
    if not masks:
        return np.asarray(source[index][task.target])
    return np.mean([np.asarray(mask, np.float32) for mask in masks], axis=0)


class Annotators(Mapping[str, Any]):
    """The annotators' masks of a source's first ``count`` images by name, read when asked for."""

    def __init__(self, source: Source, count: int):
        self._source = source
        self._index = {source.name(index): index for index in range(count)}

    def __getitem__(self, name: str) -> list[np.ndarray]:
        index = self._index[name]
        found = annotators_of(self._source, index)
        return [self._source[index]["boundaries"] > 0.5] if found is None else found

    def __contains__(self, name: object) -> bool:
        return name in self._index  # the one of Mapping would read the image's annotations to find out

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)
