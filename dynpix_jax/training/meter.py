"""Metrics on their way from the device to the writers, and the check that they are finite.

A step's metrics are read one step late, when the next step is already running: reading them never stalls the
device. Before a checkpoint or an evaluation `flush` reads the last ones, so that no state is saved that was
not checked.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.typing import Array
from dynpix_jax.training.feed import Fed
from dynpix_jax.training.writers import Writer

TIMES = (
    *("step_seconds", "images_per_second", "images_per_second_per_device", "mfu"),
    *("data_wait", "late_steps", "checkpoint_seconds"),
)
"""Values of a log line that are of the clock, and differ from run to run."""


class NonFiniteError(UserError):
    """The loss or its gradient is NaN or infinite."""


class Meter:
    """Means between log lines, times, and the finite check.

    Attributes:
        flops: Operations of a step; None where they are not known.

    Args:
        writer: Gets a "train" line every `log_every` steps.
        log_every: Steps.
        batch_size: Images a step, over all processes.
        devices: How many share them.
        peak: Operations a second of a device; None where that is not known.
        window: Sums and count at the checkpoint that a run continues from; see `window`.
    """

    def __init__(
        self,
        writer: Writer,
        log_every: int,
        batch_size: int,
        window: Mapping[str, Any] | None = None,
        *,
        devices: int = 1,
        peak: float | None = None,
    ) -> None:
        self._writer, self._log_every, self._batch_size = writer, log_every, batch_size
        self._devices, self._peak = devices, peak
        self.flops: float | None = None
        self._sums: dict[str, float] = dict((window or {}).get("sums", {}))
        self._count: int = (window or {}).get("count", 0)
        self._pending: tuple[int, str, dict[str, Array], np.ndarray] | None = None
        self._clock = _Clock()
        self._since: float | None = None

    @property
    def window(self) -> dict[str, Any]:
        """Sums and count since the last log line; saved, so that a continued run logs the same means."""
        return {"sums": dict(self._sums), "count": self._count}

    def push(self, step: int, stage: str, metrics: dict[str, Array], fed: Fed) -> None:
        """Take the metrics of update `step`; report those before, or raise NonFiniteError."""
        self._report()
        self._pending = (step, stage, metrics, fed.ids)
        self._clock.steps += 1
        self._clock.late += fed.late
        self._clock.waited += fed.waited

    def count_checkpoint(self, seconds: float) -> None:
        """Takes seconds for which steps waited for a checkpoint."""
        self._clock.checkpoints += seconds

    def flush(self) -> None:
        """Report the last update, and leave the time until the next one out of images a second.

        Raises:
            NonFiniteError: The last update was not finite.
        """
        self._report()
        self._since = None

    def _report(self) -> None:
        if self._pending is None:
            return
        step, stage, metrics, ids = self._pending
        self._pending = None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            terms = ", ".join(f"{name}={value:.4g}" for name, value in values.items())
            raise NonFiniteError(
                f"step {step} (stage '{stage}'): the loss or its gradient is not finite: {terms};"
                f" batch elements {ids.tolist()}"
            )
        now = time.perf_counter()
        if self._since is not None:
            self._clock.seconds += now - self._since
            self._clock.timed += 1
        self._since = now
        if self._count and self._sums.keys() != values.keys():  # a new stage may have other terms
            self._sums, self._count = {}, 0
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        if step % self._log_every == 0:
            means: dict[str, Any] = {name: total / self._count for name, total in self._sums.items()}
            means["learning_rate"] = values["learning_rate"]
            self._writer.write(step, "train", {"stage": stage, **means, **self._times()})
            self._sums, self._count, self._clock = {}, 0, _Clock()

    def _times(self) -> dict[str, float]:
        clock, found = self._clock, dict[str, float]()
        if clock.steps:
            found["late_steps"] = clock.late / clock.steps
        if clock.seconds:
            each = clock.seconds / clock.timed
            found["step_seconds"] = each
            found["images_per_second"] = self._batch_size / each
            found["images_per_second_per_device"] = self._batch_size / each / self._devices
            found["data_wait"] = min(clock.waited / clock.seconds, 1.0)
            if self.flops and self._peak:
                found["mfu"] = self.flops / each / self._devices / self._peak
        if clock.checkpoints:
            found["checkpoint_seconds"] = clock.checkpoints
        return found


@dataclass
class _Clock:
    """Since the last log line: steps, those that waited for data and for how long, seconds of those that were
    timed, and seconds of checkpoints.
    """

    steps: int = 0
    late: int = 0
    waited: float = 0.0
    timed: int = 0
    seconds: float = 0.0
    checkpoints: float = 0.0
