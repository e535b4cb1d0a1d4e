"""Chance: what a network scores with masks that have its densities and know nothing of the image.

Gates that look where it matters score better than their own masks with the positions shuffled, which keeps
nothing but densities, and than the masks of another image, which keeps where images usually need computation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np

from dynpix_jax.core.capabilities import TakesMasks
from dynpix_jax.core.routing import Mode
from dynpix_jax.evaluation.dealing import all_sums
from dynpix_jax.evaluation.runner import BatchResult, Runner
from dynpix_jax.evaluation.scorers import flatten_scores
from dynpix_jax.evaluation.totals import Batch, Totals

Masks = Mapping[str, np.ndarray]
"""Gate -> bool (B, h, w)."""

SHUFFLED, OTHER = "shuffled", "other image"
"""Kinds of chance: each mask with its positions shuffled; the masks of another image."""


@dataclass(frozen=True)
class ChanceScores:
    """The network with masks of chance.

    Attributes:
        numbers: Scores under the names of `tasks.all_scores`; of several draws the mean.
        macs: Executed, mean of an image.
        shares: Mean executed share of each gated layer.
    """

    numbers: dict[str, float]
    macs: float
    shares: dict[str, float]


def shuffled(masks: Masks, seeds: Sequence[Sequence[int]], *, nested: bool) -> dict[str, np.ndarray]:
    """Each image's masks with their positions in a random order: the densities stay.

    Args:
        masks: Masks of a batch.
        seeds: A seed of each image.
        nested: Masks of one size share one order, so that what an earlier gate skips later ones skip, too;
            otherwise each gate has its own.
    """
    result = {name: np.empty_like(mask) for name, mask in masks.items()}
    for place, seed in enumerate(seeds):
        random, orders = np.random.default_rng(seed), dict[Any, np.ndarray]()
        for name in sorted(masks):
            positions = masks[name][place].ravel()
            key = positions.size if nested else name
            if key not in orders:
                orders[key] = random.permutation(positions.size)
            result[name][place] = positions[orders[key]].reshape(masks[name].shape[1:])
    return result


def shifted(masks: Masks, valid: int, after: Masks) -> dict[str, np.ndarray]:
    """The masks of the image after each of a batch, in its size (nearest neighbour).

    Args:
        masks: Masks of the batch.
        valid: Its images; the rest fills it up.
        after: Masks of the next batch, or of the image that stands for it.
    """
    result = {}
    for name, mask in masks.items():
        height, width = mask.shape[1:]
        first = after[name][0].astype(np.uint8)
        fitted = cv2.resize(first, (width, height), interpolation=cv2.INTER_NEAREST).astype(bool)
        result[name] = np.concatenate([mask[1:valid], fitted[None], mask[valid:]])
    return result


class _Waiting(NamedTuple):
    """A batch that waits for the masks of the image after it."""

    batch: Batch
    inputs: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]


class Chance:
    """Scores of a network with masks of chance, batch by batch, on one device of each process."""

    def __init__(self, runner: Runner, mode: Mode, make: Callable[[], Totals], *, draws: int, first: int):
        """Args:
        runner: Runs the network, which `has_masked_gates`, on whole images.
        mode: Mode of the forward passes.
        make: Makes the sums of a pass over the images of this process, in that mode.
        draws: Number of random orders, each scored by itself.
        first: Index of this process's first image.
        """
        assert isinstance(runner.system, TakesMasks)
        self._runner, self._mode, self._nested = runner, mode, runner.system.nested_gates
        self._shuffled, self._other = [make() for _ in range(draws)], make()
        self._waiting: _Waiting | None = None
        self._start: Masks = {}
        self._first, self._count = first, 0

    def add(self, batch: Batch, inputs: dict[str, np.ndarray], result: BatchResult) -> None:
        """Adds a batch, of which ``result`` is the network's own."""
        masks = {name: np.asarray(mask) > 0.5 for name, mask in result.outputs.gates.items()}
        valid, size = int(batch["valid"].sum()), len(batch["valid"])
        for draw, totals in enumerate(self._shuffled):
            seeds = [(draw, self._first + self._count + place) for place in range(size)]
            self._run(totals, batch, inputs, shuffled(masks, seeds, nested=self._nested))
        self._start = self._start or masks
        self._run_other(masks)
        self._waiting = _Waiting(batch, inputs, masks)
        self._count += valid

    def finish(self) -> dict[str, ChanceScores]:
        """The scores of each kind; a collective. An image that is the only one has no other."""
        self._run_other(self._start_of_next())
        found = {SHUFFLED: [_finished(totals) for totals in self._shuffled], OTHER: [_finished(self._other)]}
        drawn = {kind: [one for one in scores if one is not None] for kind, scores in found.items()}
        return {kind: _mean(scores) for kind, scores in drawn.items() if scores}

    def _start_of_next(self) -> Masks:
        """The masks of the first image of the next process that has one, in a ring; {} for an only image."""
        start = {name: mask[:1] for name, mask in self._start.items()}
        firsts = all_sums({"count": np.array(self._count), "start": start})
        if sum(int(one["count"]) for one in firsts) < 2:
            return {}
        place = jax.process_index() + 1
        return next((one["start"] for one in firsts[place:] + firsts[:place] if one["start"]), {})

    def _run_other(self, after: Masks) -> None:
        """Runs the batch that waits, in the order of the source, which scorers need."""
        if self._waiting is not None and after:
            batch, inputs, masks = self._waiting
            self._run(self._other, batch, inputs, shifted(masks, int(batch["valid"].sum()), after))

    def _run(self, totals: Totals, batch: Batch, inputs: dict[str, np.ndarray], masks: Masks) -> None:
        totals.add({self._mode: self._runner.batch(batch["image"], self._mode, masks, **inputs)}, batch)


def _finished(totals: Totals) -> ChanceScores | None:
    """The scores of a pass of all processes; None if it has no images."""
    sums = all_sums(totals.sums())
    if not any(one["images"] for one in sums):
        return None
    found = totals.finish(sums)
    (mode,) = found.modes.values()
    numbers = flatten_scores({name: one.numbers for name, one in mode.scores.items()})
    return ChanceScores(numbers, found.means.macs, found.means.shares)


def _mean(draws: Sequence[ChanceScores]) -> ChanceScores:
    def of(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
        return {name: float(np.mean([value[name] for value in values])) for name in values[0]}

    return ChanceScores(
        of([one.numbers for one in draws]),
        float(np.mean([one.macs for one in draws])),
        of([one.shares for one in draws]),
    )
