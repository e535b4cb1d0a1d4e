"""Prediction within a budget: a system's steps run one by one.

The times of all steps are kept: under a budget of time a step starts only if, by its earlier times, it ends
within the budget.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import cast

import jax

from dynpix_jax.core.progressive import Progressive
from dynpix_jax.core.routing import Routing
from dynpix_jax.core.system import Inputs, System
from dynpix_jax.core.typing import Array, Variables
from dynpix_jax.flops import SystemMacs, system_macs

Clock = Callable[[], float]


@dataclass(frozen=True)
class Prediction:
    """The prediction after a step.

    Attributes:
        index: Index of the step, from 0.
        predictions: See StepResult.
        confidence: See StepResult.
        macs: MACs of this step, an image.
        total_macs: MACs of all steps so far.
        milliseconds: Wall time of this step for the batch.
        total_milliseconds: Time of all steps so far, without the caller's time between steps.
        gates: See StepResult.
        selections: See StepResult.
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
    """Latency model of steps: of each, the newest `kept` pairs of MACs and milliseconds.

    The first run of each step compiles and is left out.
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
        """Whether the step was measured."""
        return bool(self._steps.get((key, index)))

    def expected(self, key: Hashable, index: int, macs: float) -> float:
        """Upper estimate of the step's milliseconds for so many MACs.

        The largest time of the runs whose MACs are nearest (and within 5 % of these). A time is scaled up in
        proportion if the step has more MACs than the run, and never down: not all of it is arithmetic.

        Raises:
            KeyError: The step was never measured.
        """
        known = self._steps.get((key, index))
        if not known:
            raise KeyError(f"step {index} of {key} was never measured")
        nearest = min((known_macs for known_macs, _ in known), key=lambda other: abs(other - macs))
        near = [pair for pair in known if abs(pair[0] - nearest) <= 0.05 * nearest]
        return max(took * max(1.0, macs / other if other else 1.0) for other, took in near)


class StepPredictor:
    """Runs a system's steps and keeps what they took, by shapes and routing."""

    def __init__(
        self,
        system: Progressive,
        variables: Variables,
        *,
        pace: Pace | None = None,
        count: Callable[[System, tuple[int, int]], SystemMacs] = system_macs,
        clock: Clock = time.perf_counter,
    ):
        self.system, self.variables, self.pace = system, variables, pace or Pace()
        self._count, self._clock = count, clock
        self._counted: dict[tuple[int, int], SystemMacs] = {}

    def run(
        self,
        images: Array,
        inputs: Mapping[str, Array] = {},
        routing: Routing = Routing(),
        *,
        budget_ms: float | None = None,
        budget_macs: float | None = None,
    ) -> Iterator[Prediction]:
        """Yields the prediction after each step, until all are done or the next does not fit.

        A step runs only when the iterator asks for it, and none runs while the caller holds a prediction:
        closing the iterator stops. The first step always runs. Under a budget of time a step that was never
        measured is taken to fit, and the caller's time between steps counts. Each step compiles once for each
        size of images, in its first call.

        Args:
            images: (B, H, W, 3).
            inputs: As of `System.apply`.
            routing: As of `System.apply`.
            budget_ms: Milliseconds of all steps together, for the batch; None: no limit.
            budget_macs: MACs of all steps together, for an image; None: no limit.
        """
        key, macs_of = _key(images, inputs, routing), self._macs(images)
        steps, state = self.system.steps(self.variables, images, inputs, routing)
        begin, total_macs, total = self._clock(), 0.0, 0.0
        for index, step in enumerate(steps):
            macs = macs_of.of_step(index, step.shares(state))
            if index and budget_macs is not None and total_macs + macs > budget_macs:
                return
            if index and budget_ms is not None and self.pace.knows(key, index):
                elapsed = 1e3 * (self._clock() - begin)
                if elapsed + self.pace.expected(key, index, macs) > budget_ms:
                    return
            start = self._clock()
            state, result = jax.block_until_ready(step.run(state))
            milliseconds = 1e3 * (self._clock() - start)
            self.pace.record(key, index, macs, milliseconds)
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

    def predict(
        self,
        images: Array,
        inputs: Mapping[str, Array] = {},
        routing: Routing = Routing(),
        *,
        budget_ms: float | None = None,
        budget_macs: float | None = None,
    ) -> Prediction:
        """The latest prediction that fits both budgets; at least the first is made.

        A budget of time needs to know how long each step takes. If some step was never measured, all of them
        first run twice (`warm_up`), outside the budget. Arguments as of `run`.

        Raises:
            ValueError: A budget that is not positive.
        """
        for name, budget in (("budget_ms", budget_ms), ("budget_macs", budget_macs)):
            if budget is not None and not budget > 0:
                raise ValueError(f"{name}: {budget}; expected a positive number or None")
        if budget_ms is not None:
            key, count = _key(images, inputs, routing), self.count(images, inputs, routing)
            if not all(self.pace.knows(key, index) for index in range(count)):
                self.warm_up(images, inputs, routing)
        predictions = self.run(images, inputs, routing, budget_ms=budget_ms, budget_macs=budget_macs)
        latest = next(predictions)
        for prediction in predictions:  # one at a time in memory
            latest = prediction
        return latest

    def count(self, images: Array, inputs: Inputs, routing: Routing) -> int:
        """How many steps there are."""
        return len(self.system.steps(self.variables, images, inputs, routing)[0])

    def warm_up(
        self, images: Array, inputs: Mapping[str, Array] = {}, routing: Routing = Routing(), *, runs: int = 2
    ) -> None:
        """Compiles every step and measures it: all steps run ``runs`` times, the first to compile."""
        for _ in range(runs):
            for _prediction in self.run(images, inputs, routing):
                pass

    def _macs(self, images: Array) -> SystemMacs:
        size = (images.shape[1], images.shape[2])
        if size not in self._counted:
            self._counted[size] = self._count(cast(System, self.system), size)
        return self._counted[size]


def _key(images: Array, inputs: Inputs, routing: Routing) -> Hashable:
    leaves, structure = jax.tree.flatten((images, inputs, routing))
    of = [(leaf.shape, str(leaf.dtype)) if hasattr(leaf, "shape") else repr(leaf) for leaf in leaves]
    return (tuple(of), structure)
