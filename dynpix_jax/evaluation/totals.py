"""Sums over the batches of an evaluation: scores of each mode and exit, differences, numbers of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from dynpix_jax.core.routing import Mode
from dynpix_jax.core.typing import Array
from dynpix_jax.evaluation.dealing import Sums
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

    def sums(self, progress: ProgressFn | None) -> Sums:
        """What this process has found."""
        return {"scores": _sums(self.scorers, progress), "milliseconds": np.array(self.milliseconds)}

    def finish(self, sums: Sequence[Sums]) -> ModeScores:
        """The scores of all processes."""
        milliseconds = np.concatenate([one["milliseconds"] for one in sums])
        low, middle, high = (float(value) for value in np.percentile(milliseconds, (10, 50, 90)))
        return ModeScores(_finish(self.scorers, [one["scores"] for one in sums]), middle, (low, high))


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

    def sums(self, progress: ProgressFn | None) -> Sums:
        """What this process has found, by the number of the exit."""
        return {str(index): _sums(scorers, progress) for index, scorers in enumerate(self.scorers)}

    def finish(
        self, sums: Sequence[Sums], macs: Sequence[float], last: Mapping[str, TaskScores]
    ) -> list[ExitScores]:
        """The scores of each exit and of the last prediction, with MACs up to them; [] without exits."""
        if not any(sums):
            return []
        scorers = self.make()  # a process without images has met no exits
        # By number: in transit a tree's keys are sorted as words, "10" before "2".
        exits = (str(index) for index in range(len(macs) - 1))
        found = [_finish(scorers, [one[exit] for one in sums if one]) for exit in exits]
        return [ExitScores(scores, up_to) for scores, up_to in zip([*found, dict(last)], macs, strict=True)]


@dataclass
class Differences:
    """Distances between the predictions of two modes."""

    greatest: dict[str, float | None]

    def add(self, gaps: Mapping[str, Array]) -> None:
        """Adds those of a batch."""
        for name, gap in gaps.items():
            before = self.greatest[name]
            # np.maximum: a difference that is not a number stays.
            self.greatest[name] = float(gap if before is None else np.maximum(before, gap))

    def sums(self) -> Sums:
        """What this process has found; {} if that is nothing."""
        return {name: np.array(gap) for name, gap in self.greatest.items() if gap is not None}

    def finish(self, sums: Sequence[Sums]) -> dict[str, float | None]:
        """The greatest of all processes."""
        found = {name: [one[name] for one in sums if name in one] for name in self.greatest}
        return {name: float(np.max(gaps)) if gaps else None for name, gaps in found.items()}


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
        first: int = 0,
    ):
        self.modes = {mode: ModeTotals(make()) for mode in modes}
        self.exits, self.differences = ExitTotals(make), Differences(dict.fromkeys(tasks))
        self.images: list[ImageNumbers] = []
        self.seen: list[tuple[str, dict[Mode, ImageResult]]] = []
        self._decoder, self._name = Decoder(tasks), name
        self._pictures, self._progress, self._first = pictures, progress, first

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
            name = self._name(self._first + len(self.images))
            self.images.append(ImageNumbers.of(first, place))
            if len(self.seen) < self._pictures:
                self.seen.append((name, {mode: result.image(place) for mode, result in results.items()}))
            if self._progress is not None:
                self._progress(len(self.images), name)

    def sums(self) -> Sums:
        """What this process has found."""
        return {
            "modes": {mode: total.sums(self._progress) for mode, total in self.modes.items()},
            "exits": self.exits.sums(self._progress),
            "differences": self.differences.sums(),
            "images": _arrays(self.images),
        }

    def finish(self, sums: Sequence[Sums]) -> Found:
        """The scores and means of all processes."""
        images = [one["images"] for one in sums if one["images"]]
        means: Any = jax.tree.map(lambda *parts: float(np.mean(np.concatenate(parts))), *images)
        modes = {
            mode: total.finish([one["modes"][mode] for one in sums]) for mode, total in self.modes.items()
        }
        first = next(iter(modes.values())).scores
        exit_macs = [means["exit_macs"][str(index)] for index in range(len(means["exit_macs"]))]
        return Found(
            modes,
            self.exits.finish([one["exits"] for one in sums], exit_macs, first),
            self.differences.finish([one["differences"] for one in sums]),
            ImageNumbers(**{**means, "exit_macs": tuple(exit_macs)}),
        )


class Found(NamedTuple):
    """What all processes have found: scores by mode and exit, differences, means of images."""

    modes: dict[Mode, ModeScores]
    exits: list[ExitScores]
    differences: dict[str, float | None]
    means: ImageNumbers


def _arrays(images: Sequence[ImageNumbers]) -> Sums:
    """The numbers of images as a tree of arrays; {} without images."""
    if not images:
        return {}
    found: ImageNumbers = jax.tree.map(lambda *numbers: np.array(numbers), *images)
    return {**found._asdict(), "exit_macs": {str(i): macs for i, macs in enumerate(found.exit_macs)}}


def _score(scorers: Scorers, predictions: Mapping[str, Array], batch: Batch) -> None:
    for name, scorer in scorers.items():
        scorer.add(predictions[name], batch)


def _sums(scorers: Scorers, progress: ProgressFn | None) -> Sums:
    return {name: scorer.sums(progress) for name, scorer in scorers.items()}


def _finish(scorers: Scorers, sums: Sequence[Sums]) -> dict[str, TaskScores]:
    return {name: scorer.finish([one[name] for one in sums]) for name, scorer in scorers.items()}
