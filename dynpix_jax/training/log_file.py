"""A log that is appended to whatever happens to its disk: what cannot be written waits for the next time."""

from __future__ import annotations

import logging
import os
from collections import deque
from pathlib import Path

_MOST = 64 * 2**20
"""Bytes that wait, at most; after that the oldest are lost."""
_log = logging.getLogger(__name__)


class LogFile:
    """A file that whole pieces are appended to, or nothing.

    A piece that cannot be written (full disk, a file system that has become read-only, a folder that was
    removed) is said once, kept, and tried again with the next one; nothing raises. What was half written is
    cut off again.

    Args:
        path: Made with its folder at the first piece; what it holds stays.
        head: Written into a file that is made anew.
    """

    def __init__(self, path: Path, head: bytes = b"") -> None:
        self.path, self._head = path, head
        self._file: int | None = None
        self._waiting: deque[bytes] = deque()
        self._lost = 0
        self._said = False

    def append(self, piece: bytes) -> None:
        """Writes a piece, after those that wait."""
        self._waiting.append(piece)
        try:
            self._write()
        except OSError as error:
            self._close()
            self._say(f"{error.strerror or error}; the run goes on, and this is tried again")
        while sum(map(len, self._waiting)) > _MOST:
            self._waiting.popleft()
            self._lost += 1

    def close(self) -> None:
        """Tries once more, then says what is lost."""
        if self._waiting:
            self.append(b"")
        self._lost += sum(map(bool, self._waiting))
        self._waiting.clear()
        self._close()
        if self._lost:
            _log.warning("log %s: %d entries could not be written", self.path, self._lost)

    def _write(self) -> None:
        if self._file is not None and not os.fstat(self._file).st_nlink:
            self._close()
            self._say("it was removed; it begins anew")
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        while self._waiting:
            end = os.fstat(self._file).st_size
            piece = (b"" if end else self._head) + self._waiting[0]
            try:
                written = 0
                while written < len(piece):
                    written += os.write(self._file, piece[written:])
            except OSError:
                os.ftruncate(self._file, end)
                raise
            self._waiting.popleft()

    def _say(self, what: str) -> None:
        if not self._said:
            _log.warning("log %s: %s", self.path, what)
        self._said = True

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file = None
