"""Text that people type and read: sizes of images, tables, files."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynpix_jax.core.errors import UserError


def a_path(text: str) -> Path:
    """The path in an argument, for argparse; "" would be the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a path, got nothing")
    return local_path(text)


def local_path(path: str | Path) -> Path:
    """A path, which is none of another kind of file system: that of "gs://bucket/run" would be "gs:/bucket".

    Raises:
        UserError: It is an address.
    """
    found = Path(path)
    if len(found.parts) > 1 and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+:", found.parts[0]):
        raise UserError(
            f"{path}: expected a path, not an address; mount the bucket (gcsfuse, mount-s3) and give"
            " the path where it is"
        )
    return found


def parse_json(text: str) -> Any:
    """What a JSON text says. A ValueError for another text, also one that is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_size(text: str) -> tuple[int, int]:
    """ "321x481" -> (321, 481); a UserError for another form, or a side of 0."""
    match = re.fullmatch(r"([1-9]\d{0,5})[x×]([1-9]\d{0,5})", text.strip())
    if match is None:
        raise UserError(f"--size {text}: expected height x width in pixels, for example 321x481")
    return int(match[1]), int(match[2])


def changes(overrides: Sequence[str], key: str) -> bool:
    """Whether one of the overrides, "a.b=value" each, is of this key."""
    return any(override.partition("=")[0].strip() == key for override in overrides)


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
