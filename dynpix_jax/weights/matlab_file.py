"""MATLAB's .mat files as plain Python, the same for versions 5 to 7 (SciPy) and 7.3 (HDF5).

A struct is a dict, a struct array a list of dicts, a cell array a list, text a str, and numbers are an array
with MATLAB's axes. MATLAB drops ones at the end of a shape, and has no arrays of fewer than two axes.

Nothing in the file is run: what is not data (an object of a class, a function handle) becomes `Unread`.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from dynpix_jax.core.errors import UserError

_V5 = b"MATLAB 5.0"  # versions 5, 6 and 7 alike
_MAX_DEPTH = 32
_MAX_VALUES = 1_000_000
_MAX_BYTES = 16 * 2**30  # HDF5 may leave out what is zero: a bound on what a small file can unpack to


@dataclasses.dataclass(frozen=True)
class Unread:
    """A value that is not data."""

    kind: str


class _Budget:
    """Bounds the work that a hostile file can cause."""

    def __init__(self) -> None:
        self._values, self._bytes = _MAX_VALUES, _MAX_BYTES

    def take(self, depth: int, size: int = 0) -> None:
        self._values -= 1
        self._bytes -= size
        if depth > _MAX_DEPTH or self._values < 0 or self._bytes < 0:
            raise ValueError("nested too deeply or too large to be a network")


def _numbers(array: np.ndarray) -> np.ndarray | Unread:
    if array.dtype.kind not in "biuf":
        return Unread(str(array.dtype))
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _structs(fields: dict[str, list[Any]]) -> Any:
    """Values by field, one for each struct, as one dict for each struct."""
    structs = [dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True)]
    return structs[0] if len(structs) == 1 else structs


def _from_v5(value: Any, budget: _Budget, depth: int) -> Any:
    from scipy.io.matlab import MatlabFunction, MatlabObject, MatlabOpaque

    budget.take(depth)
    if isinstance(value, MatlabOpaque):
        return Unread(" ".join(bytes(name).decode() for name in value["s2"].ravel()))
    if isinstance(value, (MatlabFunction, MatlabObject)) or not isinstance(value, np.ndarray):
        return Unread(getattr(value, "classname", "") or type(value).__name__)
    elements = value.ravel(order="F")
    if value.dtype.names:
        return _structs(
            {
                name: [_from_v5(item, budget, depth + 1) for item in elements[name]]
                for name in value.dtype.names
            }
        )
    if value.dtype == object:
        return [_from_v5(item, budget, depth + 1) for item in elements]
    if value.dtype.kind == "U":
        return "\n".join(elements)
    return _numbers(value)


def _read_v5(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat

    budget = _Budget()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SciPy warns of objects; here they become `Unread`
        # MATLAB stores whole numbers as integers whatever their class: mat_dtype gives the class back.
        content = loadmat(path, mat_dtype=True)
    return {
        name: _from_v5(value, budget, 0)
        for name, value in content.items()
        if name not in ("__header__", "__version__", "__globals__", "__function_workspace__")
    }


class _V73:
    """Version 7.3: groups are structs; cells and struct arrays hold references to their values."""

    def __init__(self, file: Any):
        import h5py

        self._file, self._budget = file, _Budget()
        self._group, self._is_reference = h5py.Group, h5py.check_ref_dtype

    def value(self, node: Any, depth: int) -> Any:
        kind = node.attrs.get("MATLAB_class", b"")
        kind = kind.decode() if isinstance(kind, bytes) else str(kind)
        if isinstance(node, self._group):
            self._budget.take(depth)
            return self._struct(node, depth) if kind in ("struct", "") else Unread(kind)
        self._budget.take(depth, node.size * node.dtype.itemsize)
        if "MATLAB_empty" in node.attrs:  # the data is the shape
            if kind in ("struct", "cell"):
                return []
            return "" if kind == "char" else np.empty([int(n) for n in node[()].ravel()])
        if self._is_reference(node.dtype):
            return self._referred(node, depth) if kind == "cell" else Unread(kind)
        if kind == "char":
            return "".join(map(chr, node[()].ravel().tolist()))
        if "MATLAB_object_decode" in node.attrs:
            return Unread(kind)
        return _numbers(node[()].T)

    def _referred(self, node: Any, depth: int) -> list[Any]:
        # HDF5's order of elements is MATLAB's, as its axes are in reverse.
        return [self.value(self._file[reference], depth + 1) for reference in node[()].ravel()]

    def _struct(self, group: Any, depth: int) -> Any:
        if group and all(self._is_column(node) for node in group.values()):
            return _structs({name: self._referred(node, depth) for name, node in group.items()})
        return {name: self.value(node, depth + 1) for name, node in group.items()}

    def _is_column(self, node: Any) -> bool:
        """Whether the node has one field of all structs of an array: references that are not a cell array."""
        return (
            not isinstance(node, self._group)
            and self._is_reference(node.dtype) is not None
            and "MATLAB_class" not in node.attrs
        )


def _read_v73(path: Path) -> dict[str, Any]:
    import h5py

    with h5py.File(path, "r") as file:
        reader = _V73(file)
        return {name: reader.value(node, 0) for name, node in file.items() if not name.startswith("#")}


def read_matlab(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The variables of a .mat file by name.

    Raises:
        UserError: A corrupt or truncated file, or one of another kind. It names the file.
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(1024)
    try:
        # HDF5 may begin behind a header of 512 bytes, which is where MATLAB puts its own.
        if b"\x89HDF\r\n\x1a\n" in (start[:8], start[512:520]):
            return _read_v73(path)
        if start.startswith(_V5):
            return _read_v5(path)
    except Exception as error:  # a broken file raises whatever SciPy's or HDF5's parser stumbles over
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: corrupt .mat file: {reason}") from error
    raise UserError(f"{path}: not a .mat file of MATLAB 5 to 7.3")
