"""SIGTERM as a request to stop at the next step."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Context in which SIGTERM only sets a flag; the old handler comes back at its end.

    With several processes JAX itself watches for the signal and `at(step)` answers the same on all of them.
    """

    def __init__(self) -> None:
        self._requested = False
        self._previous: Any = None

    def __enter__(self) -> StopRequest:
        # Only the main thread may set handlers (and receives the signal).
        self._owner = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
        if self._owner:
            self._previous = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._owner:
            signal.signal(signal.SIGTERM, self._previous)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._requested = True

    def at(self, step: int) -> bool:
        """True when training is to stop at `step`."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._requested
