"""Times programs that run in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: median, 10th and 90th percentile, least."""

    median: float
    p10: float
    p90: float
    least: float

    def __str__(self) -> str:
        median, p10, p90 = (
            f"{value:.3g}" if value < 1000 else f"{value:.0f}" for value in (self.median, self.p10, self.p90)
        )
        return f"{median} ({p10}-{p90})"


def interleaved_medians(
    programs: Sequence[Callable[[], Any]], runs: int, *, warmup: int = 1, calls: int = 1
) -> list[Timing]:
    """Times programs that run in turn, so that a slow moment of the machine affects all of them.

    Every other round runs in reverse, so that no program always finds the caches of the same other one.

    Args:
        programs: Without arguments; their results (pytrees of jax arrays, or anything else) are waited for.
        runs: Rounds that count, at least 1.
        warmup: Rounds before those that count, which compile.
        calls: Calls in a row for one measurement, waited for together: on an accelerator each dispatch then
            overlaps with the call before.

    Raises:
        ValueError: ``runs`` or ``calls`` below 1, or ``warmup`` below 0.
    """
    if runs < 1 or calls < 1 or warmup < 0:
        raise ValueError(
            f"interleaved_medians: expected runs, calls >= 1, warmup >= 0; got {runs=}, {calls=}, {warmup=}"
        )
    taken: list[list[float]] = [[] for _ in programs]
    order = range(len(programs))
    for turn in range(-warmup, runs):
        for index in order if turn % 2 == 0 else reversed(order):
            start = time.perf_counter()
            jax.block_until_ready([programs[index]() for _ in range(calls)])
            if turn >= 0:
                taken[index].append(1e3 * (time.perf_counter() - start) / calls)
    return [Timing(*(float(q) for q in np.percentile(times, (50, 10, 90, 0)))) for times in taken]


def timed(programs: Mapping[str, Callable[[], Any]], runs: int) -> dict[str, Timing]:
    """Named programs timed in turn (`interleaved_medians`)."""
    return dict(zip(programs, interleaved_medians(list(programs.values()), runs), strict=True))
