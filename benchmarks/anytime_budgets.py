"""Prediction in steps against the clock: when each exit arrives, and whether budgets of time are kept.

    python benchmarks/anytime_budgets.py \
        --config=configs/anytime/cityscapes.py:variant=ca,arch=w48 --size 512x1024 --density 0.5

Weights and image are random, and so are the masks of a network that has them: nested, of that density in the
mean. A line an exit: the median milliseconds until it is there, of those until the last one; then a line a
budget: which exits came in time, and the longest call of ``predict`` relative to the budget.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp

from dynpix_jax import papers
from dynpix_jax.cli.flops import parse_size
from dynpix_jax.core.configs import load_config
from dynpix_jax.core.progressive import ProgressiveSystem
from dynpix_jax.core.routing import Routing
from dynpix_jax.evaluation.bench.model import draw_masks, gate_shapes


@dataclass(frozen=True)
class Kept:
    """Calls of `predict` with a budget: exits that came, from 1, and milliseconds of each call."""

    budget_ms: float
    exits: tuple[int, ...]
    milliseconds: tuple[float, ...]

    @property
    def longest(self) -> float:
        """Of the budget."""
        return max(self.milliseconds) / self.budget_ms


def arrivals(system: ProgressiveSystem, *arguments: Any, runs: int) -> tuple[float, ...]:
    """Median milliseconds until each prediction is there, all of them computed; compiled before."""
    system.warm_up(*arguments)
    times = [[step.total_milliseconds for step in system.predict_iter(*arguments)] for _ in range(runs)]
    return tuple(median(column) for column in zip(*times, strict=True))


def kept(system: ProgressiveSystem, *arguments: Any, budgets_ms: Sequence[float], runs: int) -> list[Kept]:
    """`predict` within each budget, so many times."""
    found = []
    for budget in budgets_ms:
        exits, times = [], []
        for _ in range(runs):
            start = time.perf_counter()
            exits.append(system.predict(*arguments, budget_ms=budget).index + 1)
            times.append(1e3 * (time.perf_counter() - start))
        found.append(Kept(budget, tuple(exits), tuple(times)))
    return found


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="of a network that predicts in steps")
    parser.add_argument("--size", default="512x1024", help="height x width of the image")
    parser.add_argument("--density", type=float, default=0.5, help="of the masks (default: 0.5)")
    parser.add_argument("--mode", choices=("sparse", "dense"), default="sparse")
    parser.add_argument(
        "--budgets", type=float, nargs="+", default=[0.25, 0.5, 0.75], help="of the full time"
    )
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    system = papers.build(load_config(args.config).model)
    if not isinstance(system, ProgressiveSystem):
        parser.error(f"--config {args.config}: its network does not predict in steps")
    size = parse_size(args.size)
    image = jax.random.randint(jax.random.key(0), (1, *size, 3), 0, 256, jnp.uint8)
    variables = jax.jit(system.init)(jax.random.key(1), {"image": image})
    masks: Mapping[str, Any] = {}
    if shapes := gate_shapes(system, size):
        masks = draw_masks(system, "blobs", jax.random.key(2), shapes, args.density)
    arguments = (variables, image, {}, Routing(mode=args.mode, masks=masks))
    start = time.perf_counter()
    for _ in system.predict_iter(*arguments):
        pass
    print(f"first pass, with compiling: {time.perf_counter() - start:.0f} s")
    times = arrivals(system, *arguments, runs=args.runs)
    print("prediction    ms until it  of the last")
    for number, milliseconds in enumerate(times, 1):
        print(f"{number:>10}{milliseconds:>15.1f}{milliseconds / times[-1]:>13.1%}")
    budgets = [share * times[-1] for share in args.budgets]
    print("budget, ms    of the last  predictions  longest call / budget")
    for one in kept(system, *arguments, budgets_ms=budgets, runs=args.runs):
        came = ",".join(map(str, sorted(set(one.exits))))
        print(f"{one.budget_ms:>10.1f}{one.budget_ms / times[-1]:>15.0%}{came:>13}{one.longest:>23.2f}")


if __name__ == "__main__":
    main()
