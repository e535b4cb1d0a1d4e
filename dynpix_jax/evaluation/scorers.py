"""From predictions to scores, a few images at a time: sums over pixels, or the boundary benchmark.

Each process of a job scores its own images. What it has found are sums; the scores are made of those of all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any, cast

import jax
import numpy as np

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.registry import Registry
from dynpix_jax.core.settings import EvaluationConfig
from dynpix_jax.core.source import Source, annotators_of
from dynpix_jax.core.typing import Array
from dynpix_jax.evaluation.boundary import (
    BoundaryScores,
    GroundTruth,
    ImageCounts,
    count_boundaries,
    summarize,
    threshold_values,
)
from dynpix_jax.evaluation.dealing import Sums
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
        first: Index of the first element that it is given.
    """

    def __init__(
        self, task: Task, source: Source, count: int, settings: EvaluationConfig, first: int = 0
    ) -> None:
        self.task, self.source, self.count, self.settings = task, source, count, settings
        self.labels, self.first = task.labels, first

    @abstractmethod
    def add(self, prediction: Array, batch: Mapping[str, np.ndarray]) -> None:
        """Takes decoded predictions of a batch; elements that are not ``valid`` do not count."""

    @abstractmethod
    def sums(self, progress: ProgressFn | None = None) -> Sums:
        """What the scores of the predictions so far are made of, as arrays by name; {} if there are none."""

    @abstractmethod
    def finish(self, sums: Sequence[Sums]) -> TaskScores:
        """The scores of all that went into ``sums``, in the order of the source.

        Raises:
            UserError: Nothing was labelled, or a score is not finite.
        """

    @classmethod
    def truth(cls, task: Task, source: Source, index: int) -> np.ndarray:
        """The label of an element in the form of a prediction, for pictures."""
        return np.asarray(source[index][task.target])


class SumScorer(Scorer):
    """Keeps the sums of a `PixelTask`, no predictions."""

    def __init__(
        self, task: Task, source: Source, count: int, settings: EvaluationConfig, first: int = 0
    ) -> None:
        super().__init__(task, source, count, settings, first)
        self._task = cast(PixelTask, task)
        self._measure = jax.jit(self._task.measure)
        self._state: Mapping[str, Any] | None = None

    def add(self, prediction: Array, batch: Mapping[str, np.ndarray]) -> None:
        read = {name: batch[name] for name in (*self.labels, "valid")}
        state = jax.device_get(self._measure(prediction, read))
        self._state = state if self._state is None else self._task.merge(self._state, state)

    def sums(self, progress: ProgressFn | None = None) -> Sums:
        return self._state or {}

    def finish(self, sums: Sequence[Sums]) -> TaskScores:
        state = reduce(self._task.merge, filter(None, sums))
        numbers = self._task.compute(state)
        if not all(np.isfinite(value) for value in numbers.values()):
            raise UserError(
                f"{self._task.name}: scores that are not finite, {numbers}; the network's training diverged"
            )
        per_class = self._task.per_class(state)
        classes = self.source.spec.fields[self._task.target].classes
        return TaskScores(numbers, {"classes": list(classes)} if per_class else {}, per_class)


class BoundaryScorer(Scorer):
    """Keeps the probability maps: the benchmark goes through them in several processes.

    Images without any label (of a joint source) do not count.
    """

    def __init__(
        self, task: Task, source: Source, count: int, settings: EvaluationConfig, first: int = 0
    ) -> None:
        super().__init__(task, source, count, settings, first)
        self.labels = (task.target,)
        self._seen = first
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

    def sums(self, progress: ProgressFn | None = None) -> Sums:
        settings = self.settings
        names = [self.source.name(index) for index in range(self.count)]
        often = {name for name, times in Counter(names).items() if times > 1}  # of a joint source
        labels = [f"{name} (element {i})" if name in often else name for i, name in enumerate(names)]
        counts = count_boundaries(
            ((labels[index], probability) for index, probability in self._maps.items()),
            GroundTruth(
                {label: index for index, label in enumerate(labels)},
                partial(self.annotations, self.task, self.source),
            ),
            thresholds=settings.thresholds,
            max_dist=settings.max_dist,
            nms=settings.nms,
            smooth=settings.smooth,
            workers=settings.workers,
            progress=progress,
        )
        tables = [one.table() for one in counts]
        return {"index": np.array(list(self._maps)), "tables": np.stack(tables)} if counts else {}

    def finish(self, sums: Sequence[Sums]) -> TaskScores:
        found = [
            ImageCounts(self.source.name(int(index)), *table)
            for one in filter(None, sums)
            for index, table in zip(one["index"], one["tables"], strict=True)
        ]
        if not found:
            raise UserError(
                f"{self.task.name}: no labelled pixel in what was evaluated, so there is nothing to score"
            )
        scores = summarize(threshold_values(self.settings.thresholds), found)
        details = scores.to_dict()
        return TaskScores({name: details.pop(name) for name in ("ods", "ois", "ap")}, details, curve=scores)


SCORERS: Registry[type[Scorer]] = Registry("scorer", {"sums": SumScorer, "boundaries": BoundaryScorer})
"""The values of ``Task.scorer``."""


def make_scorer(task: Task, source: Source, count: int, settings: EvaluationConfig, first: int = 0) -> Scorer:
    """The scorer of a task on elements of the first ``count`` of a source, from ``first`` on."""
    return SCORERS.resolve(task.scorer, f"task {task.name}: scorer")(task, source, count, settings, first)


def truth(task: Task, source: Source, index: int) -> np.ndarray:
    """The label of an element in the form of a prediction, for pictures."""
    return SCORERS.resolve(task.scorer, f"task {task.name}: scorer").truth(task, source, index)
