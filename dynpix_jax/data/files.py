"""What all data sets on disk share: finding their files, and errors that say where to get them."""

from __future__ import annotations

from pathlib import Path

from dynpix_jax.core.errors import UserError


def need_file(path: Path, source: str, where_to_get: str) -> Path:
    """`path`, which is a file; a UserError that names it and says where to get it if it is none."""
    if not path.is_file():
        raise UserError(f"{source}: file not found: {path.absolute()}; {where_to_get}")
    return path


def need_folder(path: Path, source: str, where_to_get: str) -> Path:
    """`path`, which is a folder; a UserError that names it and says where to get it if it is none."""
    if not path.is_dir():
        raise UserError(f"{source}: folder not found: {path.absolute()}; {where_to_get}")
    return path


def find_files(folder: Path, patterns: tuple[str, ...], source: str, where_to_get: str) -> list[Path]:
    """The files in `folder` that match one of `patterns` (globs), sorted by path; none is a UserError."""
    need_folder(folder, source, where_to_get)
    found = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    if not found:
        raise UserError(f"{source}: no {' or '.join(patterns)} in {folder.absolute()}; {where_to_get}")
    return found


def read_names(path: Path, source: str, where_to_get: str) -> list[str]:
    """The lines of a list that are not blank; a UserError if it is missing, empty or not in UTF-8."""
    try:  # Windows' editors begin a file with a mark, which is no part of a name
        lines = need_file(path, source, where_to_get).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: {path.absolute()}: {error.reason}; expected a text in UTF-8") from None
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise UserError(f"{source}: {path.absolute()} is empty; {where_to_get}")
    return names


def same_size(source: str, image: Path, shape: tuple[int, ...], label: Path, other: tuple[int, ...]) -> None:
    """A UserError if an image and its label differ in (H, W)."""
    if shape[:2] != other[:2]:
        raise UserError(f"{source}: {label} has {other[:2]} pixels, its image {image} {shape[:2]}")
