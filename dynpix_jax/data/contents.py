"""What a data set holds, for a later run to compare: names of elements, sizes of their files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dynpix_jax.core.source import Source, mark_of


def contents_of(source: Source) -> list[str]:
    """A line an element: its name, a tab, and what tells it from another of that name, if anything does."""

    def line(index: int) -> str:
        return f"{source.name(index)}\t{mark_of(source, index)}".replace("\n", " ")

    with ThreadPoolExecutor(16) as pool:  # file systems answer slowly, and many questions at once
        return list(pool.map(line, range(len(source))))


def sizes(files: Iterable[Path]) -> str:
    """The bytes of files: "10310+221"; "missing" in the place of a file that is not there."""
    return "+".join(str(file.stat().st_size) if file.is_file() else "missing" for file in files)


def digest(lines: Sequence[str]) -> str:
    """SHA-256 of `contents_of`."""
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def first_difference(then: Sequence[str], now: Sequence[str]) -> str:
    """In words; both differ."""
    before, after = (dict(line.rpartition("\t")[::2] for line in lines) for lines in (then, now))
    for name, mark in before.items():
        if name not in after:
            return f"'{name}' is missing"
        if after[name] != mark:
            return f"'{name}' was replaced ({mark} then, {after[name]} now)"
    added = next((name for name in after if name not in before), None)
    return "the order of the elements" if added is None else f"'{added}' was added"
