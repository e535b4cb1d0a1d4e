"""MATLAB files of version 7.3 as MATLAB writes them: HDF5 behind a header of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

# Text, eight bytes of nothing, the version and the order of the bytes.
HEADER = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, HDF5 schema 1.00 .".ljust(116) + bytes(8) + b"\0\2IM"


@contextmanager
def new_v73(path: Path) -> Iterator[h5py.File]:
    """An `h5py.File` for writing, which gets the header when it is closed."""
    with h5py.File(path, "w", userblock_size=512) as file:
        yield file
    with path.open("r+b") as plain:
        plain.write(HEADER)
