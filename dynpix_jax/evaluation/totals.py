"""Sums over the batches of an evaluation: scores of each mode and exit, differences, numbers of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

import jax
import numpy as np

from dynpix_jax.core.routing import Mode
from dynpix_jax.core.typing import Array
from dynpix_jax.evaluation.inference import resize_logits
from dynpix_jax.evaluation.runner import BatchResult, ImageResult
from dynpix_jax.evaluation.scorers import ProgressFn, Scorer, TaskScores, flatten_scores
from dynpix_jax.tasks import Task

Batch = Mapping[str, np.ndarray]
Scorers = dict[str, Scorer]
"""By task."""


@dataclass(frozen=True)
class ModeScores:
    """One mode on all images."""

    scores: dict[str, TaskScores]
    milliseconds: float
    milliseconds_spread: tuple[float, float]


@dataclass(frozen=True)
class ExitScores:
    """One of the predictions of a network that predicts in steps."""

    scores: dict[str, TaskScores]
    macs: float

    @property
    def numbers(self) -> dict[str, float]:
        """The scores under the names of `tasks.all_scores`."""
        return flatten_scores({name: scores.numbers for name, scores in self.scores.items()})


class Decoder:
    """Compiled functions of the logits of several tasks."""

    def __init__(self, tasks: Mapping[str, Task]):
        def decode(logits: Mapping[str, Array]) -> dict[str, Array]:
            return {name: task.decode(logits[name]) for name, task in tasks.items()}

        def decode_at(logits: Mapping[str, Array], size: tuple[int, int]) -> dict[str, Array]:
            return decode(resize_logits(logits, tasks, size))

        def difference(first: Mapping[str, Array], second: Mapping[str, Array]) -> dict[str, Array]:
            return {name: task.difference(first[name], second[name]) for name, task in tasks.items()}

        self.decode, self.difference = jax.jit(decode), jax.jit(difference)
        self.decode_at = jax.jit(decode_at, static_argnums=1)


@dataclass
class ModeTotals:
    """One mode."""

    scorers: Scorers
    milliseconds: list[float] = field(default_factory=list)

    def add(self, predictions: Mapping[str, Array], batch: Batch, milliseconds: float) -> None:
        """Adds a batch; milliseconds are those of an image."""
        _score(self.scorers, predictions, batch)
        self.milliseconds += [milliseconds] * int(batch["valid"].sum())

    def finish(self, progress: ProgressFn | None) -> ModeScores:
        """The scores."""
        low, high = np.percentile(self.milliseconds, (10, 90))
        scores = _finish(self.scorers, progress)
        return ModeScores(scores, median(self.milliseconds), (float(low), float(high)))


@dataclass
class ExitTotals:
    """Scores of the exits."""

    make: Callable[[], Scorers]
    scorers: list[Scorers] = field(default_factory=list)

    def add(self, exits: Sequence[Mapping[str, Array]], batch: Batch) -> None:
        """Adds the predictions of a batch, exit by exit."""
        self.scorers = self.scorers or [self.make() for _ in exits]
        for scorers, predictions in zip(self.scorers, exits, strict=True):
            _score(scorers, predictions, batch)

    def finish(
        self, macs: Sequence[float], last: Mapping[str, TaskScores], progress: ProgressFn | None
    ) -> list[ExitScores]:
        """The scores of each exit and of the last prediction, with MACs up to them; [] without exits."""
        if not self.scorers:
            return []
        found = [*(_finish(scorers, progress) for scorers in self.scorers), dict(last)]
        return [ExitScores(scores, up_to) for scores, up_to in zip(found, macs, strict=True)]


@dataclass
class Differences:
    """Distances between the predictions of two modes."""

    greatest: dict[str, float | None]

    def add(self, gaps: Mapping[str, Array]) -> None:
        """Adds those of a batch."""
        for name, gap in gaps.items():
            before = self.greatest[name]
            self.greatest[name] = float(gap) if before is None else max(before, float(gap))


class ImageNumbers(NamedTuple):
    """Numbers of an image, or their means over images; see BatchResult."""

    macs: float
    macs_open: float
    exit_macs: tuple[float, ...]
    shares: dict[str, float]
    measures: dict[str, float]

    @classmethod
    def of(cls, result: BatchResult, place: int) -> ImageNumbers:
        """The numbers of one image of a batch."""
        return cls(
            float(result.macs[place]),
            float(result.macs_open[place]),
            tuple(float(up_to[place]) for up_to in result.exit_macs),
            {name: float(share[place]) for name, share in result.shares.items()},
            {name: float(value[place]) for name, value in result.outputs.measures.items()},
        )

    @classmethod
    def mean(cls, images: Sequence[ImageNumbers]) -> ImageNumbers:
        """The mean of each number."""
        means: ImageNumbers = jax.tree.map(lambda *numbers: float(np.mean(numbers)), *images)
        return means


class Totals:
    """Sums over the batches of an evaluation."""

    def __init__(
        self,
        tasks: Mapping[str, Task],
        modes: Sequence[Mode],
        make: Callable[[], Scorers],
        name: Callable[[int], str],
        pictures: int,
        progress: ProgressFn | None,
    ):
        self.modes = {mode: ModeTotals(make()) for mode in modes}
        self.exits, self.differences = ExitTotals(make), Differences(dict.fromkeys(tasks))
        self.images: list[ImageNumbers] = []
        self.seen: list[tuple[str, dict[Mode, ImageResult]]] = []
        self._decoder, self._name = Decoder(tasks), name
        self._pictures, self._progress = pictures, progress

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that scorers read."""
        scorers = next(iter(self.modes.values())).scorers.values()
        return tuple(dict.fromkeys(label for scorer in scorers for label in scorer.labels))

    def add(self, results: Mapping[Mode, BatchResult], batch: Batch) -> None:
        """Adds a batch that was run in all modes."""
        logits = {mode: result.outputs.predictions for mode, result in results.items()}
        predictions = {mode: self._decoder.decode(one) for mode, one in logits.items()}
        for mode, total in self.modes.items():
            total.add(predictions[mode], batch, results[mode].milliseconds)
        if len(predictions) == 2:
            self.differences.add(self._decoder.difference(*predictions.values()))
        first, size = next(iter(results.values())), (batch["image"].shape[1], batch["image"].shape[2])
        on_the_way = first.outputs.exits if first.exit_macs else ()
        self.exits.add([self._decoder.decode_at(one, size) for one in on_the_way], batch)
        for place in range(int(batch["valid"].sum())):
            name = self._name(len(self.images))
            self.images.append(ImageNumbers.of(first, place))
            if len(self.seen) < self._pictures:
                self.seen.append((name, {mode: result.image(place) for mode, result in results.items()}))
            if self._progress is not None:
                self._progress(len(self.images), name)


def _score(scorers: Scorers, predictions: Mapping[str, Array], batch: Batch) -> None:
    for name, scorer in scorers.items():
        scorer.add(predictions[name], batch)


def _finish(scorers: Scorers, progress: ProgressFn | None) -> dict[str, TaskScores]:
    return {name: scorer.finish(progress) for name, scorer in scorers.items()}
