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
from pathlib import Path
from typing import IO, NoReturn

from dynpix_jax.core.errors import UserError, cause_of

_log = logging.getLogger(__name__)
BEAT = 5.0
"""Seconds between the signs of life of a holder."""
STALE = 30.0
"""Seconds without a sign of life after which a holder on another host is dead."""


class Lock:
    """Holds the lock ``file`` while the context lasts; the system lets it go if the program is killed.

    Some shared file systems keep `flock` to one host. So the file also says who holds it, and its time of
    change is a sign of life.

    Args:
        file: Made, with its folder, if need be.
        what: Is locked, for messages: "workdir runs/a".
        advice: Ends the message of a refusal.

    Raises:
        UserError: Another program holds the lock, on this host or another; says which, and since when.
    """

    def __init__(self, file: Path, what: str, advice: str) -> None:
        self._file, self._what, self._advice = file, what, advice
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Lock:
        self._acquire()
        self._beating.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._beating.join()
        if not self._stream.closed:
            with self._stream, contextlib.suppress(OSError):
                self._stream.truncate(0)  # nobody holds it

    def renew(self) -> bool:
        """Takes the lock again if its file was removed.

        Returns:
            Whether that was so.

        Raises:
            UserError: Another program has taken it since.
        """
        try:
            if os.path.samestat(os.stat(self._file), os.fstat(self._stream.fileno())):
                return False
        except FileNotFoundError:
            pass
        self._stream.close()
        self._acquire()
        return True

    def _acquire(self) -> None:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self._file.open("a+")
        except OSError as error:
            raise UserError(f"{self._what}: {self._file}: {cause_of(error)}") from None
        locked = True
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._refuse(_holder(self._stream))
        except OSError:
            locked = False  # a file system without locks: the signs of life tell
        holder = _holder(self._stream)
        if holder.host and not (locked and holder.host == socket.gethostname()):
            self._wait_for_death(holder)
        now = datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds")
        try:
            self._stream.truncate(0)
            self._stream.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": now}))
            self._stream.flush()
        except OSError as error:
            raise UserError(f"{self._what}: {self._file}: {cause_of(error)}") from None

    def _refuse(self, holder: _Holder) -> NoReturn:
        self._stream.close()
        raise UserError(f"{self._what} is in use by {holder}; {self._advice}")

    def _wait_for_death(self, holder: _Holder) -> None:
        """Returns when a holder on another host gives no sign of life, and refuses if it gives one."""
        seen = self._file.stat().st_mtime
        age = _clock_of(self._file) - seen
        if age < STALE:
            _log.warning(
                "%s was in use by %s; waiting %.0f s for a sign of life", self._what, holder, STALE - age
            )
        while age < STALE:
            time.sleep(BEAT / 5)
            if self._file.stat().st_mtime != seen:
                self._refuse(holder)
            age = _clock_of(self._file) - seen

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with contextlib.suppress(OSError):  # the folder may have been removed
                os.utime(self._file)


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


def _clock_of(file: Path) -> float:
    """The time as the file system has it; its clock may differ from this host's."""
    probe = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
