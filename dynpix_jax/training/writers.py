"""Where numbers and pictures go during training: JSON lines, TensorBoard, the console."""

from __future__ import annotations

import json
import logging
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import rich.console
import rich.progress
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from dynpix_jax.core.errors import UserError
from dynpix_jax.training.log_file import LogFile

_log = logging.getLogger(__name__)

Values = Mapping[str, float | int | str | np.ndarray]
"""Numbers; strings that name things (the stage); pictures, uint8 (H, W, 3)."""


class Writer:
    """What the loop calls; each writer overrides what concerns it. ``step`` counts the run's updates."""

    def tick(self, step: int, stage: str) -> None:
        """Update ``step`` has been dispatched."""

    def write(self, step: int, kind: str, values: Values) -> None:
        """Values of kind "train" (means since the last line) or "eval"."""

    def note(self, text: str) -> None:
        """A line for the reader."""

    def close(self) -> None:
        """Flush and release."""


class Writers(Writer):
    """Several writers as one, called in their order.

    What one of them cannot write (`OSError`) is said once and never ends the run.
    """

    def __init__(self, writers: Sequence[Writer]) -> None:
        self._writers = tuple(writers)
        self._failed: set[Writer] = set()

    def tick(self, step: int, stage: str) -> None:
        """Pass on."""
        self._each(lambda writer: writer.tick(step, stage))

    def write(self, step: int, kind: str, values: Values) -> None:
        """Pass on."""
        self._each(lambda writer: writer.write(step, kind, values))

    def note(self, text: str) -> None:
        """Pass on."""
        self._each(lambda writer: writer.note(text))

    def close(self) -> None:
        """Pass on."""
        self._each(lambda writer: writer.close())

    def _each(self, call: Callable[[Writer], None]) -> None:
        for writer in self._writers:
            try:
                call(writer)
            except OSError as error:
                if writer not in self._failed:
                    self._failed.add(writer)
                    _log.warning("%s: %s; the run goes on", type(writer).__name__, error.strerror or error)


class JsonlWriter(Writer):
    """One JSON object a line: {"step", "kind", values...}, without pictures.

    Args:
        file: Appended to. Lines of steps after ``resume_step`` (written by a run that was killed after its
            last checkpoint), a half-written last line and what is no such line are removed first.
        resume_step: Step of the checkpoint that the run continues from; 0 for a new run.
        evaluated: Whether the checkpoint was taken after the evaluation at ``resume_step``; if not, the run
            evaluates again, and an "eval" line of that step is removed, too.

    Raises:
        UserError: The file cannot be read or replaced.
    """

    def __init__(self, file: str | Path, resume_step: int = 0, *, evaluated: bool = True) -> None:
        path = Path(file)
        try:
            if path.exists():
                _keep_lines(path, (resume_step, evaluated))
        except OSError as error:
            raise UserError(f"log {path}: {error.strerror or error}; remove it, or make room") from None
        self._file = LogFile(path)

    def write(self, step: int, kind: str, values: Values) -> None:
        """Append a line."""
        line = json.dumps({"step": step, "kind": kind, **_printable(values)})
        self._file.append(f"{line}\n".encode())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _keep_lines(file: Path, last: tuple[int, bool]) -> None:
    lines = file.read_bytes().decode(errors="replace").splitlines()
    places = [_position(line) for line in lines]
    garbled = sum(place is None for place in places[:-1])  # the last may be half written
    if garbled:
        _log.warning("log %s: %d lines are garbled and were removed", file, garbled)
    kept = [line for line, place in zip(lines, places, strict=True) if place is not None and place <= last]
    temporary = file.with_suffix(".tmp")
    temporary.write_text("".join(f"{line}\n" for line in kept))
    os.replace(temporary, file)


class TensorBoardWriter(Writer):
    """An event file for TensorBoard: a scalar or a picture "kind/name" for each value.

    Not written by tensorboardX itself: its thread ends with the first error of the disk, and its queue then
    blocks whoever writes.

    Args:
        directory: Folder of the event files.
        resume_step: Step that the run continues from; TensorBoard hides later steps of older event files.
    """

    def __init__(self, directory: str | Path, resume_step: int = 0) -> None:
        started = time.time()
        name = f"events.out.tfevents.{int(started)}.{socket.gethostname()}.{os.getpid()}"
        head = _record(Event(wall_time=started, file_version="brain.Event:2"))
        if resume_step:
            start = Event(wall_time=started, step=resume_step + 1)
            start.session_log.status = start.session_log.START
            head += _record(start)
        self._file = LogFile(Path(directory) / name, head)

    def write(self, step: int, kind: str, values: Values) -> None:
        """Add numbers and pictures."""
        pieces = []
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                found = summary.image(f"{kind}/{name}", value, dataformats="HWC")
            elif not isinstance(value, str):
                found = summary.scalar(f"{kind}/{name}", value)
            else:
                continue
            pieces.append(_record(Event(wall_time=time.time(), step=step, summary=found)))
        self._file.append(b"".join(pieces))

    def close(self) -> None:
        """Close the event file."""
        self._file.close()


def _record(event: Event) -> bytes:
    """An event as event files have it: its length, a checksum of that, the event, its checksum."""
    content: bytes = event.SerializeToString()
    length = struct.pack("<Q", len(content))
    checksums = (struct.pack("<I", masked_crc32c(part)) for part in (length, content))
    return length + next(checksums) + content + next(checksums)


class ConsoleWriter(Writer):
    """A progress bar on a terminal, plain lines anywhere else; no pictures.

    Args:
        total_steps: Steps of the whole run.
        stream: Where to; standard output by default.
    """

    def __init__(self, total_steps: int, stream: TextIO | None = None) -> None:
        self._total = total_steps
        self._console = rich.console.Console(
            file=stream or sys.stdout, highlight=False, soft_wrap=True, markup=False
        )
        self._progress: rich.progress.Progress | None = None
        if self._console.is_terminal:
            columns = (
                "{task.description}",
                rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TimeElapsedColumn(),
                rich.progress.TimeRemainingColumn(),
                "{task.fields[numbers]}",
            )
            self._progress = rich.progress.Progress(*columns, console=self._console)
            self._task = self._progress.add_task("start", total=total_steps, numbers="")
            self._progress.start()

    def tick(self, step: int, stage: str) -> None:
        """Move the bar."""
        if self._progress is not None:
            self._progress.update(self._task, completed=step, description=stage)

    def write(self, step: int, kind: str, values: Values) -> None:
        """Show the numbers: beside the bar or as a line."""
        numbers = " ".join(f"{name}={_format(value)}" for name, value in _printable(values).items())
        if self._progress is not None and kind == "train":
            self._progress.update(self._task, completed=step, numbers=numbers)
        else:
            self._console.print(f"{kind} {step}/{self._total} {numbers}")

    def note(self, text: str) -> None:
        """Print the line."""
        self._console.print(text)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._progress is not None:
            self._progress.stop()


def _printable(values: Values) -> dict[str, Any]:
    return {name: value for name, value in values.items() if not isinstance(value, np.ndarray)}


def _format(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _position(line: str) -> tuple[float, bool] | None:
    """(step, is an evaluation) of a JSON line; None for a line that is none."""
    try:
        values = json.loads(line)
        return float(values["step"]), values["kind"] == "eval"
    except (ValueError, KeyError, TypeError):
        return None
