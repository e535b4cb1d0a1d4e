"""What a run was trained on, kept in its workdir and checkpoints: a data set that has changed is noticed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynpix_jax.core.errors import UserError, cause_of
from dynpix_jax.data.contents import digest, first_difference

FILE = "data.txt"
"""In a workdir: the elements of the training data, a line each."""


@dataclasses.dataclass(frozen=True)
class DataRecord:
    """The training data of a run.

    Attributes:
        lines: `data.contents.contents_of` the source.
        accept_changed: Whether a run may continue on other data than it began with.
    """

    lines: Sequence[str]
    accept_changed: bool = False

    @property
    def summary(self) -> dict[str, Any]:
        """What a checkpoint holds: the number of elements, and a digest of their names and sizes."""
        return {"elements": len(self.lines), "sha256": digest(self.lines)}

    def continue_from(self, saved: Mapping[str, Any], workdir: Path) -> str | None:
        """Compares with what a checkpoint holds.

        Returns:
            A note if other data are accepted; None if they are the same, or nothing is known.

        Raises:
            UserError: Other data; names the first difference.
        """
        if not saved or saved == self.summary:
            return None
        counts = f"{saved.get('elements')} elements then, {len(self.lines)} now"
        changed = f"workdir {workdir}: its training data have changed: {counts}"
        changed += self._difference(saved, workdir)
        if self.accept_changed:
            return f"{changed}; the run goes on with those"
        raise UserError(f"{changed}; bring them back, or go on with --accept-changed-data")

    def write(self, workdir: Path) -> None:
        """Writes the elements for a later run, unless they are there."""
        file, text = workdir / FILE, "\n".join(self.lines)
        try:
            if not file.is_file() or _read(file) != text:
                file.write_text(text, encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            raise UserError(f"cannot write {file}: {cause_of(error)}") from None

    def _difference(self, saved: Mapping[str, Any], workdir: Path) -> str:
        try:
            then = _read(workdir / FILE).split("\n")
        except OSError:
            return ""
        # It may be that of a run which was refused, or stopped, before it had a checkpoint.
        return f"; {first_difference(then, self.lines)}" if digest(then) == saved.get("sha256") else ""


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="surrogateescape")
