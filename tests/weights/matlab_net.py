"""Writes .mat files of MATLAB 5/7 (SciPy) and 7.3 (HDF5) as MATLAB lays out structs, cells and text."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from scipy.io import savemat

from tests.data.matlab_v73 import new_v73

_NUMBERS = itertools.count()


class Structs(list[dict[str, Any]]):
    """A struct array; a list is a cell array, and a dict one struct."""


def _as_matlab(array: np.ndarray) -> np.ndarray:
    """MATLAB's shape: two axes at least, and no ones behind the second."""
    array = np.asarray(array)
    array = array.reshape(array.shape + (1,) * (2 - array.ndim))
    while array.ndim > 2 and array.shape[-1] == 1:
        array = array[..., 0]
    return array


def _for_scipy(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _for_scipy(item) for name, item in value.items()}
    if isinstance(value, Structs):
        result = np.empty((1, len(value)), [(name, object) for name in value[0]])
        for index, item in enumerate(value):
            result[0, index] = tuple(_for_scipy(field) for field in item.values())
        return result
    if isinstance(value, list):
        result = np.empty((1, len(value)), object)
        for index, item in enumerate(value):
            result[0, index] = _for_scipy(item)
        return result
    return value if isinstance(value, str) else _as_matlab(value)


def _put(file: Any, group: Any, name: str, value: Any) -> None:
    """One value of version 7.3 under a name; what cells and struct arrays refer to lies in `#refs#`."""

    def refer(items: list[Any]) -> np.ndarray:
        refs = file.require_group("#refs#")
        result = np.empty((len(items), 1), h5py.ref_dtype)
        for index, item in enumerate(items):
            place = f"r{next(_NUMBERS)}"
            _put(file, refs, place, item)
            result[index, 0] = refs[place].ref
        return result

    def kind(node: Any, text: str) -> None:
        node.attrs["MATLAB_class"] = np.bytes_(text)

    if isinstance(value, Structs) and len(value) != 1:
        inner = group.create_group(name)
        kind(inner, "struct")
        for field in value[0]:
            inner.create_dataset(field, data=refer([item[field] for item in value]))
    elif isinstance(value, dict | Structs):
        inner = group.create_group(name)
        kind(inner, "struct")
        for field, item in (value if isinstance(value, dict) else value[0]).items():
            _put(file, inner, field, item)
    elif isinstance(value, list) and value:
        kind(group.create_dataset(name, data=refer(value)), "cell")
    elif isinstance(value, str) and value:
        text = np.array([[ord(letter)] for letter in value], np.uint16)
        node = group.create_dataset(name, data=text)
        kind(node, "char")
        node.attrs["MATLAB_int_decode"] = np.int32(2)
    elif isinstance(value, (list, str)) or np.size(value) == 0:
        shape = _as_matlab(value).shape if isinstance(value, np.ndarray) else (0, 0)
        node = group.create_dataset(name, data=np.array(shape, np.uint64))
        kind(node, "cell" if isinstance(value, list) else "char" if isinstance(value, str) else "single")
        node.attrs["MATLAB_empty"] = np.uint8(1)
    else:
        array = _as_matlab(value)
        names = {"float32": "single", "float64": "double"}
        kind(group.create_dataset(name, data=array.T), names.get(str(array.dtype), str(array.dtype)))


def save(path: Path, variables: dict[str, Any], version: str) -> Path:
    """Writes the variables.

    Args:
      path: the file.
      variables: dicts, `Structs`, lists, text and arrays.
      version: "5" (uncompressed), "7" (compressed) or "7.3".
    """
    if version == "7.3":
        with new_v73(path) as file:
            for name, value in variables.items():
                _put(file, file, name, value)
    else:
        content = {name: _for_scipy(value) for name, value in variables.items()}
        savemat(path, content, do_compression=version == "7", long_field_names=True)
    return path


def _element(number: int, data: bytes) -> bytes:
    return struct.pack("<II", number, len(data)) + data + bytes(-len(data) % 8)


def _matrix(matlab_class: int, body: bytes) -> bytes:
    return _element(14, _element(6, struct.pack("<II", matlab_class, 0)) + body)


_HEADER = b"MATLAB 5.0 MAT-file, Platform: GLNXA64".ljust(116) + bytes(8) + struct.pack("<H", 0x0100) + b"IM"


def save_object(path: Path, name: str, kind: str) -> Path:
    """A file of version 5 with a variable that is an object of a class, byte by byte."""
    texts = b"".join(_element(1, text.encode()) for text in (name, "MCOS", kind))
    ids = _matrix(13, _element(5, struct.pack("<ii", 2, 1)) + _element(1, b"") + _element(6, bytes(8)))
    path.write_bytes(_HEADER + _matrix(17, texts + ids))
    return path


def save_as_bytes(path: Path, name: str, array: np.ndarray) -> Path:
    """A file of version 5 with a matrix of class `single` of whole numbers, which MATLAB stores as bytes."""
    body = _element(5, struct.pack("<ii", *array.shape)) + _element(1, name.encode())
    path.write_bytes(_HEADER + _matrix(7, body + _element(2, array.astype(np.uint8).tobytes(order="F"))))
    return path
