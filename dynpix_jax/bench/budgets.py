"""Prediction in steps against the clock: when each prediction arrives, and whether budgets of time are kept.

Weights and image are random, and so are the masks of a network that has them: nested, of that density in the
mean. The first table has a line for each prediction: the median milliseconds until it is there. The second
has a line for each budget: which predictions came in time, and the longest call of ``predict`` over the
budget.

example:
  dynpix bench budgets --config=configs/anytime/cityscapes.py:variant=ca,arch=w48 --size 512x1024
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp

from dynpix_jax.bench.arguments import check_counts, check_densities
from dynpix_jax.bench.model import draw_masks, gate_shapes
from dynpix_jax.bench.network import add_network, read_network
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.progressive import Progressive
from dynpix_jax.core.routing import MODES, Routing
from dynpix_jax.core.text import aligned
from dynpix_jax.core.typing import Mask
from dynpix_jax.evaluation.stepwise import StepPredictor


@dataclass(frozen=True)
class InBudget:
    """Calls of `predict` with a budget."""

    budget_ms: float
    exits: tuple[int, ...]
    milliseconds: tuple[float, ...]

    @property
    def longest(self) -> float:
        """The longest call over the budget."""
        return max(self.milliseconds) / self.budget_ms


def arrivals(predictor: StepPredictor, *arguments: Any, runs: int) -> tuple[float, ...]:
    """Median milliseconds until each prediction is there; all are computed, and compiled before."""
    predictor.warm_up(*arguments)
    times = [[step.total_milliseconds for step in predictor.run(*arguments)] for _ in range(runs)]
    return tuple(median(column) for column in zip(*times, strict=True))


def kept(predictor: StepPredictor, *arguments: Any, budgets_ms: Sequence[float], runs: int) -> list[InBudget]:
    """Calls `predict` within each budget ``runs`` times; other arguments as of :func:`arrivals`."""
    found = []
    for budget in budgets_ms:
        exits, times = [], []
        for _ in range(runs):
            start = time.perf_counter()
            exits.append(predictor.predict(*arguments, budget_ms=budget).index + 1)
            times.append(1e3 * (time.perf_counter() - start))
        found.append(InBudget(budget, tuple(exits), tuple(times)))
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the program."""
    add_network(parser)
    parser.add_argument("--density", type=float, default=0.5, help="of the masks (default: 0.5)")
    parser.add_argument("--mode", choices=MODES, default="sparse")
    parser.add_argument(
        "--budgets", type=float, nargs="+", default=[0.25, 0.5, 0.75], help="shares of the full time"
    )
    parser.add_argument("--runs", type=int, default=7, metavar="N", help="rounds (default: 7)")


def run(args: argparse.Namespace) -> int:
    """Prints both tables; gives the exit status."""
    check_counts(args, "runs")
    check_densities([args.density])
    for share in args.budgets:
        if not 0 < share < float("inf"):
            raise UserError(f"--budgets {share:g}: expected a share of the full time, above 0")
    network = read_network(args)
    system, size = network.system, network.size
    if not isinstance(system, Progressive):
        raise UserError(f"{network.name}: its network does not predict in steps")
    image = jax.random.randint(jax.random.key(0), (1, *size, 3), 0, 256, jnp.uint8)
    variables = jax.jit(system.init)(jax.random.key(1), {"image": image})
    masks: dict[str, Mask] = {}
    if shapes := gate_shapes(system, size):
        masks = draw_masks(system, "blobs", jax.random.key(2), shapes, args.density)
    predictor = StepPredictor(system, variables)
    arguments: tuple[Any, ...] = (image, {}, Routing(mode=args.mode, masks=masks))
    start = time.perf_counter()
    for _ in predictor.run(*arguments):
        pass
    print(f"first pass, with compiling: {time.perf_counter() - start:.0f} s")
    times = arrivals(predictor, *arguments, runs=args.runs)
    cells = [[str(number), f"{ms:.1f}", f"{ms / times[-1]:.1%}"] for number, ms in enumerate(times, 1)]
    print(aligned(("prediction", "ms until it", "of the last"), cells))
    budgets = [share * times[-1] for share in args.budgets]
    cells = [
        [
            f"{one.budget_ms:.1f}",
            f"{one.budget_ms / times[-1]:.0%}",
            ",".join(map(str, sorted(set(one.exits)))),
            f"{one.longest:.2f}",
        ]
        for one in kept(predictor, *arguments, budgets_ms=budgets, runs=args.runs)
    ]
    print(aligned(("budget, ms", "of the last", "predictions", "longest call / budget"), cells))
    return 0
