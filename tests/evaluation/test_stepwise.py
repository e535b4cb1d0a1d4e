"""Steps under a clock that only steps move: what runs, what is measured, when it stops."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import pytest

from dynpix_jax.core.progressive import Step, StepResult
from dynpix_jax.evaluation.stepwise import Pace, Prediction, StepPredictor
from tests.stepwise import count

TAKES = (0.010, 0.020, 0.100, 0.070)  # seconds
MACS = (1.0, 2.0, 10.0, 7.0)


class Toy:
    """Four steps that count; each moves the clock by what it takes, its first run by a second more."""

    def __init__(self):
        self.now = 0.0
        self.ran: list[int] = []
        # All of a step's work is gated: at a share of 1.4 it is 1.4 times as much.
        counted = count(MACS, {"work": MACS})
        self.predictor = StepPredictor(self, {}, count=counted, clock=self.clock)

    def clock(self) -> float:
        return self.now

    def steps(self, variables, images, inputs, routing) -> tuple[list[Step[int]], int]:
        factor = float(images[0, 0, 0, 0])

        def step(index: int) -> Step[int]:
            def run(state: int) -> tuple[int, StepResult]:
                assert state == index
                self.now += factor * TAKES[index] + (0.0 if index in self.ran else 1.0)
                self.ran.append(index)
                return state + 1, StepResult({"toy": jnp.full((1, 2, 2, 1), float(index))})

            return Step(run, lambda state: {"work": factor})

        return [step(index) for index in range(len(TAKES))], 0

    def begin(self, factor: float = 1.0, **budgets: float) -> Iterator[Prediction]:
        return self.predictor.run(jnp.full((1, 2, 2, 3), factor), **budgets)

    def run(self, factor: float = 1.0, **budgets: float) -> list[Prediction]:
        return list(self.begin(factor, **budgets))

    def warmed(self) -> Toy:
        self.run(), self.run()
        self.ran.clear()
        self.ran += [0, 1, 2, 3]  # compiled
        return self


def test_all_steps_run_in_order_and_are_measured():
    results = Toy().warmed().run()
    assert [result.index for result in results] == [0, 1, 2, 3]
    assert [float(result.predictions["toy"][0, 0, 0, 0]) for result in results] == [0, 1, 2, 3]
    assert [result.milliseconds for result in results] == pytest.approx([10, 20, 100, 70])
    assert [result.total_milliseconds for result in results] == pytest.approx([10, 30, 130, 200])
    assert [result.total_macs for result in results] == [1, 3, 13, 20]


def test_nothing_runs_before_it_is_asked_for_nor_after_closing():
    toy = Toy()
    steps = toy.begin()
    assert toy.ran == []
    next(steps)
    assert toy.ran == [0]
    steps.close()
    assert toy.ran == [0]
    assert list(steps) == []


@pytest.mark.parametrize(
    ("budget", "last"), [(1, 0), (10, 0), (29, 0), (31, 1), (100, 1), (129, 1), (131, 2), (201, 3)]
)
def test_a_step_starts_only_if_it_ends_within_the_budget(budget: float, last: int):
    toy = Toy().warmed()
    begin = toy.now
    assert toy.run(budget_ms=budget)[-1].index == last
    assert last == 0 or 1e3 * (toy.now - begin) <= budget


def test_what_the_caller_does_between_steps_counts():
    toy = Toy().warmed()
    steps = toy.begin(budget_ms=131)
    next(steps)
    toy.now += 0.002
    assert [result.index for result in steps] == [1]


@pytest.mark.parametrize(("budget", "last"), [(0.5, 0), (2.9, 0), (3, 1), (12.9, 1), (13, 2), (20, 3)])
def test_budget_of_macs(budget: float, last: int):
    toy = Toy()
    assert toy.run(budget_macs=budget)[-1].index == last
    assert toy.ran == list(range(last + 1))


def test_the_first_run_of_a_step_is_not_its_time():
    pace = Pace()
    pace.record("toy", 2, 10.0, 1100.0)
    assert not pace.knows("toy", 2)
    pace.record("toy", 2, 10.0, 100.0)
    assert pace.expected("toy", 2, 10.0) == pytest.approx(100)
    assert not pace.knows("another size", 2)
    with pytest.raises(KeyError, match="never measured"):
        pace.expected("another size", 2, 1.0)


def test_more_macs_are_expected_to_take_longer_fewer_not_less():
    pace = Pace()
    for milliseconds in (900.0, 40.0, 44.0, 42.0):
        pace.record("toy", 1, 100.0, milliseconds)
    assert pace.expected("toy", 1, 100.0) == 44  # the first compiled
    assert pace.expected("toy", 1, 200.0) == 88
    assert pace.expected("toy", 1, 50.0) == 44
    pace.record("toy", 1, 50.0, 25.0)
    assert pace.expected("toy", 1, 51.0) == pytest.approx(25.5)
    assert pace.expected("toy", 1, 90.0) == 44


def test_heavier_images_stop_earlier():
    """1.4 times the MACs and the time of what was measured: 130 * 1.4 = 182 do not fit into 150."""
    toy = Toy().warmed()
    assert toy.run(budget_ms=150)[-1].index == 2
    assert toy.run(1.4, budget_ms=150)[-1].index == 1


class Doubling:
    """Three steps of one jitted function."""

    def steps(self, variables, images, inputs, routing):
        @jax.jit
        def double(x):
            return 2 * x, StepResult({"toy": 2 * x})

        return [Step(double)] * 3, images


def test_a_system_predicts_within_budgets():
    predictor, images = StepPredictor(Doubling(), {}, count=count((1.0,) * 3)), jnp.ones((1, 4, 4, 3))
    assert [float(p.predictions["toy"].max()) for p in predictor.run(images)] == [2, 4, 8]
    assert predictor.predict(images).index == 2
    assert predictor.predict(images, budget_macs=2).index == 1
    assert predictor.predict(images, budget_ms=1e6).index == 2
    # Never measured at this size: it runs twice first, and then knows that nothing fits beyond the first.
    assert predictor.predict(images[:, :2], budget_ms=1e-6).index == 0
    for budget in (0, -1.0):
        with pytest.raises(ValueError, match="budget_ms"):
            predictor.predict(images, budget_ms=budget)
