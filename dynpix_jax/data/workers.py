"""Worker processes: they end with the process that started them, however it ends."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import threading

from dynpix_jax.core.errors import UserError


def end_with_parent(*_: int) -> None:
    """Called in a worker when it starts: one whose parent was killed would wait for work for ever.

    Ctrl-C and a closed terminal are for the parent, which ends its workers in order. What some pools give as
    arguments is not read.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def remove_quietly() -> None:
    """Called before workers start: Python tells nobody that it removes what a killed one has in memory."""
    option = "ignore:resource_tracker:UserWarning"
    if option not in sys.warnoptions:
        sys.warnoptions.append(option)  # Python's own process for that starts with them


def check_death(error: RuntimeError) -> None:
    """Raises a UserError if an error of grain says that a worker was killed."""
    found = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
    if found:
        code = int(found[1])
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        raise UserError(
            f"a worker that loads batches {how} (out of memory?); the same command continues, and "
            "training.workers sets their number"
        ) from error
