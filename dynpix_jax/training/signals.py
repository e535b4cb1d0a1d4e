"""SIGTERM, SIGHUP and Ctrl-C as a request to stop at the next step."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""SIGHUP: the terminal was closed."""


class StopRequest:
    """Context in which the first SIGTERM, SIGHUP or SIGINT only sets a flag; the old handlers come back.

    A second SIGINT is handled as before, so that Ctrl-C twice stops at once; the others, which a scheduler
    may send again, go on setting the flag. With several processes JAX itself
    watches for SIGTERM, `at(step)` answers the same on all of them, and SIGINT is not ours.

    Attributes:
        signal: Name of the signal that came; "SIGTERM" until then.
    """

    def __init__(self) -> None:
        self.signal = signal.SIGTERM.name
        self._requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        # Only the main thread may set handlers (and receives the signal).
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            # Under nohup SIGHUP is ignored, and stays so.
            heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._previous = {number: signal.signal(number, self._on_signal) for number in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._requested = True
        self.signal = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(number, self._previous.pop(number))

    def at(self, step: int) -> bool:
        """True when training is to stop at `step`."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._requested
