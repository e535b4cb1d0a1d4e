"""What can be seen of a run from outside: a trace of some of its steps, and where it stands still."""

from __future__ import annotations

import contextlib
import faulthandler
import re
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.processes import here

PEAK_FLOPS = {
    r"TPU v5 lite|TPU v5e": 197e12,
    r"TPU v5p?": 459e12,
    r"TPU v6 lite|TPU v6e": 918e12,
    r"NVIDIA A100.*": 312e12,
    r"NVIDIA H[12]00.*": 989e12,
}
"""Kind of device, a regex -> operations a second in bfloat16, dense, by its vendor's pages."""


def peak_flops(device_kind: str) -> float | None:
    """Operations a second of a device in bfloat16; None where that is not known, as of CPUs."""
    return next((peak for kind, peak in PEAK_FLOPS.items() if re.fullmatch(kind, device_kind)), None)


@dataclass(frozen=True)
class ProfileSteps:
    """The steps that a trace is of: ``steps`` after ``start``."""

    start: int
    steps: int


def parse_profile(text: str) -> ProfileSteps:
    """The steps of "START:STEPS"; a UserError for another text."""
    found = re.fullmatch(r"(\d{1,12}):(\d{1,12})", text)
    if found is None or not int(found[2]):
        raise UserError(f"--profile {text}: expected START:STEPS such as 100:5, at least one step")
    return ProfileSteps(int(found[1]), int(found[2]))


class Profile:
    """Writes a trace of some steps, for XProf and TensorBoard, into ``folder``.

    Raises:
        UserError: The run has already passed their beginning, or ends before it.
    """

    def __init__(self, wanted: ProfileSteps | None, folder: Path, step: int, total: int):
        self._wanted, self._folder, self._running = wanted, folder, False
        if wanted is not None and not step <= wanted.start < total:
            raise UserError(
                f"--profile {wanted.start}:{wanted.steps}: the run is at step {step} of {total}; expected"
                " a step that is to come"
            )

    def before(self, step: int) -> None:
        """Begins, if the step after ``step`` is the first one."""
        if self._wanted is not None and step == self._wanted.start:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, state: Any) -> bool:
        """Ends after the last one, when it is computed; whether it did."""
        if not self._running or self._wanted is None or step < self._wanted.start + self._wanted.steps:
            return False
        jax.block_until_ready(state)
        self.close()
        return True

    def close(self) -> None:
        """Ends a trace that has begun."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()


class StallDetector:
    """Prints where every thread of this process is when no step was done for a while.

    Args:
        minutes: How long; 0 never prints.
    """

    def __init__(self, minutes: float):
        self._seconds, self._last, self._step = 60 * minutes, time.monotonic(), 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stall detector", daemon=True)
        if minutes:
            self._thread.start()

    def tick(self, step: int) -> None:
        """Step ``step`` is done, or something else that takes its time."""
        self._last, self._step = time.monotonic(), step

    def close(self) -> None:
        """Ends the thread."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        told = 0.0
        while not self._stopped.wait(min(self._seconds / 4, 5.0)):
            last = self._last
            if time.monotonic() - last > self._seconds and told != last:
                told = last
                what = f"no step for {self._seconds / 60:g} minutes, after step {self._step}; it is here:"
                print(f"{here()}: {what}", file=sys.stderr, flush=True)  # noqa: T201
                with contextlib.suppress(OSError, ValueError):  # a stream that is no file
                    faulthandler.dump_traceback(sys.stderr)
