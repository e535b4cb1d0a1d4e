"""Where numbers and pictures go during training: JSON lines, TensorBoard, the console."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import rich.console
import rich.progress
import tensorboardX

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
    """Several writers as one, called in their order."""

    def __init__(self, writers: Sequence[Writer]) -> None:
        self._writers = tuple(writers)

    def tick(self, step: int, stage: str) -> None:
        """Pass on."""
        for writer in self._writers:
            writer.tick(step, stage)

    def write(self, step: int, kind: str, values: Values) -> None:
        """Pass on."""
        for writer in self._writers:
            writer.write(step, kind, values)

    def note(self, text: str) -> None:
        """Pass on."""
        for writer in self._writers:
            writer.note(text)

    def close(self) -> None:
        """Pass on."""
        for writer in self._writers:
            writer.close()


class JsonlWriter(Writer):
    """One JSON object a line: {"step", "kind", values...}, without pictures.

    Args:
        file: Appended to. Lines of steps after ``resume_step`` (written by a run that was killed after its
            last checkpoint) and a half-written last line are removed first.
        resume_step: Step of the checkpoint that the run continues from; 0 for a new run.
        evaluated: Whether the checkpoint was taken after the evaluation at ``resume_step``; if not, the run
            evaluates again, and an "eval" line of that step is removed, too.
    """

    def __init__(self, file: str | Path, resume_step: int = 0, *, evaluated: bool = True) -> None:
        self._file = Path(file)
        if self._file.exists():
            last = (resume_step, evaluated)
            kept = [line for line in self._file.read_text().splitlines() if _position(line) <= last]
            temporary = self._file.with_suffix(".tmp")
            temporary.write_text("".join(f"{line}\n" for line in kept))
            os.replace(temporary, self._file)
        self._stream = self._file.open("a")

    def write(self, step: int, kind: str, values: Values) -> None:
        """Append a line."""
        self._stream.write(json.dumps({"step": step, "kind": kind, **_printable(values)}) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


class TensorBoardWriter(Writer):
    """Event files for TensorBoard: a scalar or a picture "kind/name" for each value.

    Args:
        directory: Folder of the event files.
        resume_step: Step that the run continues from; TensorBoard hides later steps of older event files.
    """

    def __init__(self, directory: str | Path, resume_step: int = 0) -> None:
        self._writer = tensorboardX.SummaryWriter(
            str(directory), purge_step=resume_step + 1 if resume_step else None
        )

    def write(self, step: int, kind: str, values: Values) -> None:
        """Add numbers and pictures."""
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                self._writer.add_image(f"{kind}/{name}", value, step, dataformats="HWC")
            elif not isinstance(value, str):
                self._writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


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


def _position(line: str) -> tuple[float, bool]:
    """(step, is an evaluation) of a JSON line; beyond everything for a line that was cut off."""
    try:
        values = json.loads(line)
        return values["step"], values["kind"] == "eval"
    except (ValueError, KeyError, TypeError):
        return float("inf"), True
