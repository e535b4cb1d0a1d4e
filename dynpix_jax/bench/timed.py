"""Programs that are timed in turn, and the resulting rows of numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from dynpix_jax.bench.masks import Kind
from dynpix_jax.evaluation.timing import Timing, interleaved_medians


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a measurement.

    Attributes:
        densities: Shares of active positions, each in [0, 1].
        mask: Kind of the masks.
        batch: Images at a time.
        runs: Rounds that count.
        dtype: Type of images or features and of the weights.
        backward: Forward and backward pass, with gradients of the input and the weights.
    """

    densities: tuple[float, ...]
    mask: Kind = "random"
    batch: int = 1
    runs: int = 11
    dtype: str = "float32"
    backward: bool = False


@dataclasses.dataclass(frozen=True)
class Program:
    """One thing to time.

    Attributes:
        label: Implementation or mode.
        run: Compiled at its first call.
        density: Share of positions active in its mask.
        mac_ratio: MACs at its mask's active positions over those of the reference, whether or not it executes
            more.
    """

    label: str
    run: Callable[[], Any]
    density: float = 1.0
    mac_ratio: float = 1.0


@dataclasses.dataclass(frozen=True)
class Job:
    """Programs that run in turn."""

    name: str
    title: str
    programs: Callable[[], list[Program]]
    calls: int | None = None


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """A program that cannot run here."""

    layer: str
    label: str
    reason: str
    asked_for: bool


@dataclasses.dataclass(frozen=True)
class Timed:
    """One program's time beside that of the reference, which computes everywhere."""

    layer: str
    label: str
    density: float
    timing: Timing
    time_ratio: float
    mac_ratio: float

    @property
    def time_over_macs(self) -> float | None:
        """Time ratio over MAC ratio, 1 where skipping saves all that it promises; None without MACs."""
        return self.time_ratio / self.mac_ratio if self.mac_ratio else None

    def to_json(self) -> dict[str, Any]:
        """All numbers by name."""
        return dataclasses.asdict(self) | {"time_over_macs": self.time_over_macs}


def measure(layer: str, programs: Sequence[Program], runs: int, *, calls: int | None = None) -> list[Timed]:
    """A row for each program.

    Args:
        layer: What they compute.
        programs: The reference first.
        runs: Rounds that count.
        calls: As in ``interleaved_medians``. None: 1 on a CPU, 10 elsewhere, where dispatching a single layer
            can take longer than the layer.
    """
    if calls is None:
        calls = 1 if jax.default_backend() == "cpu" else 10
    timings = interleaved_medians([program.run for program in programs], runs, calls=calls)
    return [
        Timed(
            layer,
            program.label,
            program.density,
            timing,
            timing.median / timings[0].median,
            program.mac_ratio,
        )
        for program, timing in zip(programs, timings, strict=True)
    ]
