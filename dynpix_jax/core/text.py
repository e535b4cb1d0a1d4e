"""Text that people type and read: sizes of images, tables, files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from dynpix_jax.core.errors import UserError


def parse_size(text: str) -> tuple[int, int]:
    """ "321x481" -> (321, 481); a UserError for another form, or a side of 0."""
    match = re.fullmatch(r"([1-9]\d{0,5})[x×]([1-9]\d{0,5})", text.strip())
    if match is None:
        raise UserError(f"--size {text}: expected height x width in pixels, for example 321x481")
    return int(match[1]), int(match[2])


def aligned(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table as lines of text: the first column to the left, the others to the right."""
    rows = [heads, *cells]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        columns = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *columns]).rstrip())
    return "\n".join(lines)


def write_text(path: Path, text: str) -> None:
    """Writes a file, and its folder where there is none yet. Raises UserError where that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
