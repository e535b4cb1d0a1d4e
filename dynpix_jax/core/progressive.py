"""Anytime prediction: a network that runs in steps, each with a prediction, and stops within a budget.

A system that subclasses `ProgressiveSystem` says what its steps are (loops, exits, iterates of a solver), and
gets `predict_iter` and `predict` for it. Steps are compiled functions of a state that is handed from one to
the next; whatever is measured of them is kept by the system, so that a budget of time can be held: a step
starts only if, by what it took before, it ends in time.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any, Generic, TypeVar

import flax.struct
import jax

from dynpix_jax.core.routing import Routing
from dynpix_jax.core.system import Inputs, System
from dynpix_jax.core.typing import Array, Variables

State = TypeVar("State")
Clock = Callable[[], float]


@flax.struct.dataclass
class StepResult:
    """What a step hands out, on the device; a pytree, so that a jitted function can return it.

    predictions: task -> logits (B, H, W, C) at the images' size. confidence: (B, h, w) at the resolution at
    which the system decides, larger is surer; None where it has none. gates, selections: as in Outputs, of
    this step.
    """

    predictions: dict[str, Array]
    confidence: Array | None = None
    gates: dict[str, Array] = flax.struct.field(default_factory=dict)
    selections: dict[str, Array] = flax.struct.field(default_factory=dict)


@dataclass(frozen=True)
class Step(Generic[State]):
    """One step: `run` takes the state before it and gives the state after it with what it hands out.

    macs: MACs an image (mean over the batch) that it will execute from that state. A first call of `run` with
    new shapes may compile.
    """

    run: Callable[[State], tuple[State, StepResult]]
    macs: Callable[[State], float]


@dataclass(frozen=True)
class Prediction:
    """A prediction on the way: what `predict_iter` yields after each step and `predict` returns.

    index: of the step, from 0. predictions, confidence, gates, selections: see StepResult.
    macs, milliseconds: of this step, MACs an image and wall time of the batch. total_macs,
    total_milliseconds: of all steps so far; time that the caller takes between steps is not in it.
    """

    index: int
    predictions: dict[str, Array]
    confidence: Array | None
    macs: float
    total_macs: float
    milliseconds: float
    total_milliseconds: float
    gates: dict[str, Array] = field(default_factory=dict)
    selections: dict[str, Array] = field(default_factory=dict)


class Pace:
    """How long steps took: for each the newest `kept` pairs of MACs and milliseconds.

    The first run of each step is not among them: it compiles.
    """

    def __init__(self, kept: int = 8):
        self._kept = kept
        self._steps: dict[tuple[Hashable, int], deque[tuple[float, float]]] = {}

    def record(self, key: Hashable, index: int, macs: float, milliseconds: float) -> None:
        """Notes that step `index` of the program `key` took so long for so many MACs."""
        known = self._steps.get((key, index))
        if known is None:
            self._steps[key, index] = deque(maxlen=self._kept)
        else:
            known.append((macs, milliseconds))

    def knows(self, key: Hashable, index: int) -> bool:
        """Whether `expected` has something to go by."""
        return bool(self._steps.get((key, index)))

    def expected(self, key: Hashable, index: int, macs: float) -> float:
        """Milliseconds that the step will take at most for so many MACs, as far as is known.

        The slowest of the runs with about as many MACs (the nearest, and within 5 % of them); in proportion
        if it has more MACs than these had, but not less if it has fewer: not all of its time is arithmetic.

        Raises:
          KeyError: nothing is known of it.
        """
        known = self._steps.get((key, index))
        if not known:
            raise KeyError(f"step {index} of {key} was never measured")
        nearest = min((known_macs for known_macs, _ in known), key=lambda other: abs(other - macs))
        near = [pair for pair in known if abs(pair[0] - nearest) <= 0.05 * nearest]
        return max(took * max(1.0, macs / other if other else 1.0) for other, took in near)


def run_steps(
    steps: Sequence[Step[State]],
    state: State,
    *,
    pace: Pace,
    key: Hashable,
    budget_ms: float | None = None,
    budget_macs: float | None = None,
    clock: Clock = time.perf_counter,
) -> Iterator[Prediction]:
    """Runs the steps one by one and yields after each, until all are done or the next does not fit.

    Nothing is computed before it is asked for, and nothing is under way while the caller holds a prediction:
    closing the iterator stops. The first step always runs. Under a budget of time a step that was never
    measured counts as one that fits; the caller's own time between steps counts.

    Args:
      pace: what is known of their times; grows with every step.
      key: of the program (shapes, mode) in `pace`.
      budget_ms, budget_macs: for all steps together; None: no limit.
      clock: seconds.
    """
    begin = clock()
    total_macs = total = 0.0
    for index, step in enumerate(steps):
        macs = step.macs(state)
        if index and budget_macs is not None and total_macs + macs > budget_macs:
            return
        if index and budget_ms is not None and pace.knows(key, index):
            elapsed = 1e3 * (clock() - begin)
            if elapsed + pace.expected(key, index, macs) > budget_ms:
                return
        start = clock()
        state, result = jax.block_until_ready(step.run(state))
        milliseconds = 1e3 * (clock() - start)
        pace.record(key, index, macs, milliseconds)
        total_macs, total = total_macs + macs, total + milliseconds
        yield Prediction(
            index,
            result.predictions,
            result.confidence,
            macs,
            total_macs,
            milliseconds,
            total,
            result.gates,
            result.selections,
        )


class ProgressiveSystem(System):
    """A system that predicts in steps; see System for the rest."""

    @cached_property
    def pace(self) -> Pace:
        """What was measured of the steps, by shapes and routing."""
        return Pace()

    @abstractmethod
    def steps(
        self, variables: Variables, images: Array, inputs: Inputs, routing: Routing
    ) -> tuple[Sequence[Step[Any]], Any]:
        """The steps for (B, H, W, 3) images, and the state that the first one takes.

        The last step's predictions are those of `apply`, the ones before its exits.
        """

    def step_macs(self, size: tuple[int, int]) -> tuple[float, ...]:
        """MACs of each step for one (H, W) image with nothing skipped; () where the data decide on them."""
        return ()

    def prediction_macs(self, size: tuple[int, int], shares: Mapping[str, Any]) -> tuple[Any, ...]:
        """MACs of an (H, W) image up to each exit and the last prediction, layers executed at ``shares``.

        Shares are numbers, or arrays (B,) of several images; so are the results that depend on them.
        """
        return tuple(accumulate(self.step_macs(size)))

    def predict_iter(
        self,
        variables: Variables,
        images: Array,
        inputs: Mapping[str, Array] = {},
        routing: Routing = Routing(),
    ) -> Iterator[Prediction]:
        """The prediction after each step: stop whenever it will do.

        Nothing is computed before it is asked for, and nothing goes on when the iterator is closed. Each step
        compiles once for each size of images, in its first call.
        """
        steps, state = self.steps(variables, images, inputs, routing)
        return run_steps(steps, state, pace=self.pace, key=_key(images, inputs, routing))

    def predict(
        self,
        variables: Variables,
        images: Array,
        inputs: Mapping[str, Array] = {},
        routing: Routing = Routing(),
        *,
        budget_ms: float | None = None,
        budget_macs: float | None = None,
    ) -> Prediction:
        """The latest prediction that fits both budgets; at least the first is made.

        A budget of time needs to know how long each step takes. Every run of `predict` and `predict_iter`
        is measured; where some step was never, all of them run twice (`warm_up`), before the budget's time
        begins.

        Args:
            variables: as of `apply`.
            images: (B, H, W, 3).
            inputs: as of `apply`.
            routing: as of `apply`.
            budget_ms: milliseconds for the batch; None: no limit.
            budget_macs: MACs an image; None: no limit.

        Raises:
            ValueError: a budget that is not positive.
        """
        for name, budget in (("budget_ms", budget_ms), ("budget_macs", budget_macs)):
            if budget is not None and not budget > 0:
                raise ValueError(f"{name}: {budget}; expected a positive number or None")
        key = _key(images, inputs, routing)
        steps, state = self.steps(variables, images, inputs, routing)
        if budget_ms is not None and not all(self.pace.knows(key, index) for index in range(len(steps))):
            self.warm_up(variables, images, inputs, routing)
        predictions = run_steps(
            steps, state, pace=self.pace, key=key, budget_ms=budget_ms, budget_macs=budget_macs
        )
        latest = next(predictions)
        for prediction in predictions:
            latest = prediction
        return latest

    def warm_up(
        self,
        variables: Variables,
        images: Array,
        inputs: Mapping[str, Array] = {},
        routing: Routing = Routing(),
        *,
        runs: int = 2,
    ) -> None:
        """Compiles every step and measures it: all steps run ``runs`` times, the first to compile."""
        for _ in range(runs):
            for _prediction in self.predict_iter(variables, images, inputs, routing):
                pass


def _key(images: Array, inputs: Inputs, routing: Routing) -> Hashable:
    leaves, structure = jax.tree.flatten((images, inputs, routing))
    of = [(leaf.shape, str(leaf.dtype)) if hasattr(leaf, "shape") else repr(leaf) for leaf in leaves]
    return (tuple(of), structure)
