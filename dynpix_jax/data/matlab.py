"""Reading MATLAB files of both kinds, with errors that name the file and the variable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dynpix_jax.core.errors import UserError
from dynpix_jax.data.files import need_file


def read_mat(path: Path, names: tuple[str, ...], source: str, where_to_get: str) -> dict[str, np.ndarray]:
    """The variables `names` of a .mat file before version 7.3, as SciPy gives them.

    Raises:
        UserError: Missing or corrupt file, or one without these variables.
    """
    from scipy.io import loadmat  # half a second, which all commands would wait for

    need_file(path, source, where_to_get)
    try:
        content = loadmat(path, variable_names=list(names))
    # SciPy's reader has no error class of its own: a broken file raises whatever its parser stumbles over.
    except Exception as error:
        raise UserError(f"{source}: corrupt .mat file ({type(error).__name__}: {error}): {path}") from None
    for name in names:
        if name not in content:
            raise UserError(f"{source}: no variable {name!r} in {path}; {where_to_get}")
    return {name: np.asarray(content[name]) for name in names}


@contextmanager
def open_v73(path: Path, names: tuple[str, ...], source: str, where_to_get: str) -> Iterator[Any]:
    """A .mat file of version 7.3, which is HDF5, open for reading: an `h5py.File` that has the `names`.

    Arrays have their axes in reverse: h5py's [n, x, y] is MATLAB's (y, x, n).

    Raises:
        UserError: Missing or corrupt file, or one without these variables.
    """
    import h5py  # photos are labelled without it

    need_file(path, source, where_to_get)
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UserError(
            f"{source}: {path} cannot be read as a .mat file of version 7.3 ({error}); {where_to_get}"
        ) from None
    with file:
        for name in names:
            if name not in file:
                raise UserError(f"{source}: no variable {name!r} in {path}; {where_to_get}")
        yield file
