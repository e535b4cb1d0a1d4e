"""Metrics on their way from the device to the writers, and the check that they are finite.

A step's metrics are read one step late, when the next step is already running: reading them never stalls the
device. Before a checkpoint or an evaluation `flush` reads the last ones, so that no state is saved that was
not checked.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.typing import Array
from dynpix_jax.training.feed import Fed
from dynpix_jax.training.writers import Writer


class NonFiniteError(UserError):
    """The loss or its gradient is NaN or infinite."""


class Meter:
    """Means between log lines, images a second, and the finite check.

    Args:
        writer: Gets a "train" line every `log_every` steps.
        log_every: Steps.
        batch_size: Images a step, over all processes.
        window: Sums and count at the checkpoint that a run continues from; see `window`.
    """

    def __init__(
        self, writer: Writer, log_every: int, batch_size: int, window: Mapping[str, Any] | None = None
    ) -> None:
        self._writer, self._log_every, self._batch_size = writer, log_every, batch_size
        self._sums: dict[str, float] = dict((window or {}).get("sums", {}))
        self._count: int = (window or {}).get("count", 0)
        self._pending: tuple[int, str, dict[str, Array], np.ndarray] | None = None
        self._images, self._seconds = 0, 0.0
        self._since: float | None = None

    @property
    def window(self) -> dict[str, Any]:
        """Sums and count since the last log line; saved, so that a continued run logs the same means."""
        return {"sums": dict(self._sums), "count": self._count}

    def push(self, step: int, stage: str, metrics: dict[str, Array], fed: Fed) -> None:
        """Take the metrics of update `step`; report those before, or raise NonFiniteError."""
        self._report()
        self._pending = (step, stage, metrics, fed.ids)

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
            self._seconds += now - self._since
            self._images += self._batch_size
        self._since = now
        if self._count and self._sums.keys() != values.keys():  # a new stage may have other terms
            self._sums, self._count = {}, 0
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        if step % self._log_every == 0:
            means: dict[str, Any] = {name: total / self._count for name, total in self._sums.items()}
            means["learning_rate"] = values["learning_rate"]
            if self._seconds:
                means["images_per_second"] = self._images / self._seconds
            self._writer.write(step, "train", {"stage": stage, **means})
            self._sums, self._count, self._images, self._seconds = {}, 0, 0, 0.0
