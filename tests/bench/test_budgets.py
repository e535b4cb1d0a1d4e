"""`dynpix bench budgets`: arrivals and kept budgets of steps that take known times."""

from __future__ import annotations

import time

import jax.numpy as jnp
import pytest

from dynpix_jax.bench.budgets import InBudget, arrivals, kept
from dynpix_jax.core.progressive import Step, StepResult
from dynpix_jax.evaluation.stepwise import StepPredictor
from tests.stepwise import count

TAKES = (0.005, 0.05, 0.1)  # seconds


class Sleeping:
    """Steps that take their time."""

    def steps(self, variables, images, inputs, routing):
        def step(takes):
            def run(state):
                time.sleep(takes)
                return state, StepResult({"toy": images})

            return Step(run)

        return [step(takes) for takes in TAKES], ()


def test_times_and_budgets():
    predictor, image = StepPredictor(Sleeping(), {}, count=count((1.0,) * 3)), jnp.ones((1, 2, 2, 3))
    times = arrivals(predictor, image, runs=1)
    assert len(times) == 3
    for found, least in zip(times, (5, 55, 155), strict=True):
        assert found >= least
    first, every = kept(predictor, image, budgets_ms=(40.0, 1e5), runs=2)
    # The second step takes 50 ms at least: it never fits.
    assert first.exits == (1, 1)
    assert every.exits == (3, 3)
    assert min(every.milliseconds) >= 155
    assert InBudget(100.0, (1, 1), (50.0, 110.0)).longest == pytest.approx(1.1)
