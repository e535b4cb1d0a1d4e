"""A lock on a folder or file that one program at a time may write, and who holds it."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from dynpix_jax.core.errors import UserError, cause_of

_log = logging.getLogger(__name__)
BEAT = 5.0
"""Seconds between the signs of life of a holder."""
STALE = 30.0
"""Seconds without a sign of life after which a holder on another host is dead."""


@contextlib.contextmanager
def locked(file: Path, what: str, advice: str) -> Iterator[None]:
    """Holds the lock ``file`` while the context lasts; the system lets it go if the program is killed.

    Some shared file systems keep `flock` to one host. So the file also says who holds it, and its time of
    change is a sign of life.

    Args:
        file: Made if need be; its folder must exist.
        what: Is locked, for messages: "workdir runs/a".
        advice: Ends the message of a refusal.

    Raises:
        UserError: Another program holds the lock, on this host or another; says which, and since when.
    """
    try:
        stream = file.open("a+")
    except OSError as error:
        raise UserError(f"{what}: {file}: {cause_of(error)}") from None
    with stream:
        _acquire(stream, file, what, advice)
        ended = threading.Event()
        beating = threading.Thread(target=_beat, args=(file, ended), daemon=True)
        beating.start()
        try:
            yield
        finally:
            ended.set()
            beating.join()
            with contextlib.suppress(OSError):
                stream.truncate(0)  # nobody holds it


def _acquire(stream: IO[str], file: Path, what: str, advice: str) -> None:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{what} is in use by {_holder(stream)}; {advice}") from None
    except OSError:
        pass  # a file system without locks: the signs of life tell
    holder = _holder(stream)
    if holder.host not in ("", socket.gethostname()):
        _wait_for_death(file, what, advice, holder)
    now = datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds")
    try:
        stream.truncate(0)
        stream.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": now}))
        stream.flush()
    except OSError as error:
        raise UserError(f"{what}: {file}: {cause_of(error)}") from None


class _Holder:
    """Who wrote a lock's file; host "" if nobody did."""

    def __init__(self, values: object) -> None:
        known = values if isinstance(values, dict) else {}
        self.host, self.pid, self.since = (str(known.get(name, "")) for name in ("host", "pid", "since"))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}" if self.host else "another process"


def _holder(stream: IO[str]) -> _Holder:
    stream.seek(0)
    try:
        return _Holder(json.loads(stream.read()))
    except (OSError, ValueError):
        return _Holder(None)


def _wait_for_death(file: Path, what: str, advice: str, holder: _Holder) -> None:
    """Returns when a holder on another host gives no sign of life; a UserError if it gives one."""
    seen = file.stat().st_mtime
    age = _clock_of(file) - seen
    if age < STALE:
        _log.warning("%s was in use by %s; waiting %.0f s for a sign of life", what, holder, STALE - age)
    while age < STALE:
        time.sleep(BEAT / 5)
        if file.stat().st_mtime != seen:
            raise UserError(f"{what} is in use by {holder}; {advice}")
        age = _clock_of(file) - seen


def _clock_of(file: Path) -> float:
    """The time as the file system has it; its clock may differ from this host's."""
    probe = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _beat(file: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with contextlib.suppress(OSError):  # the folder may have been removed
            os.utime(file)
