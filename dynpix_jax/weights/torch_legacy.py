"""The format of torch before 1.6: five pickles one behind the other, then the raw storages.

The pickles: a magic number, the protocol's version, facts on the machine, the object (with a key in the place
of each storage), and the list of the keys. For each key, in that order, follow the number of elements (64
bits) and the elements. Numbers are little-endian whatever the machine, as torch writes them.

Memory is bounded by the file's size.

Source: torch/serialization.py (`_legacy_save`) and torch/csrc/serialization.cpp (`THPStorage_writeFileRaw`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dynpix_jax.core.errors import UserError
from dynpix_jax.weights import torch_pickle
from dynpix_jax.weights.torch_pickle import ElementsOf

START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number, 80 bits, pickled with protocol 2
_PROTOCOL = 1001


class _Storages:
    """Storages allocated while the object is unpickled, and filled from the data behind the pickles."""

    def __init__(self, path: Path):
        self._path = path
        self._left = path.stat().st_size
        self._found: dict[str, tuple[str, np.ndarray]] = {}

    def elements(self, key: str, kind: str, numel: int) -> np.ndarray:
        """Room for a storage, the same for all tensors that share it."""
        if key not in self._found:
            dtype = np.dtype(torch_pickle.STORAGES[kind])
            self._left -= numel * dtype.itemsize
            if self._left < 0:
                raise UserError(f"{self._path}: the storages claim more bytes than the file has: truncated?")
            self._found[key] = kind, torch_pickle.widened(np.zeros(numel, dtype), kind)
        known, elements = self._found[key]
        if (known, elements.size) != (kind, numel):
            raise UserError(
                f"{self._path}: storage {key} is {numel} of {kind}, and elsewhere {elements.size} of {known}"
            )
        return elements

    def fill(self, file: BinaryIO, keys: Any) -> None:
        """Reads the storages from where the file stands, in the order of `keys`."""
        if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(self._found):
            raise UserError(f"{self._path}: its list of storages is not that of its tensors: corrupt file")
        for key in keys:
            kind, elements = self._found[key]
            stored = np.dtype(torch_pickle.STORAGES[kind]).newbyteorder("<")
            count = int.from_bytes(self._read(file, 8, key), "little", signed=True)
            if count != elements.size:
                raise UserError(
                    f"{self._path}: storage {key} has {count} elements, and its tensors {elements.size}"
                )
            data = self._read(file, elements.size * stored.itemsize, key)
            elements[:] = torch_pickle.widened(np.frombuffer(data, stored), kind)

    def _read(self, file: BinaryIO, size: int, key: str) -> bytes:
        data = file.read(size)
        if len(data) != size:
            raise UserError(f"{self._path}: truncated: {len(data)} bytes for storage {key}, expected {size}")
        return data


def read_legacy(path: Path) -> Any:
    """The content of the file, for `torch_pickle.plain`.

    Args:
        path: A file that begins with `START`.

    Raises:
        UserError: A corrupt or truncated file; a pickle of more than plain data. Nothing of it is run.
    """
    storages, position = _Storages(path), len(START)
    with path.open("rb") as file:
        head = file.read(torch_pickle.MAX_PICKLE_BYTES)

        def next_pickle(elements_of: ElementsOf = torch_pickle.no_storages) -> Any:
            nonlocal position
            begin, position = position, torch_pickle.scan(path, head, position)
            return torch_pickle.load(path, head[begin:position], elements_of)

        if (version := next_pickle()) != _PROTOCOL:
            raise UserError(f"{path}: version {version!r:.20} of torch's older format, expected {_PROTOCOL}")
        next_pickle()  # facts on the machine: none of them changes how the file is read
        root = next_pickle(storages.elements)
        keys = next_pickle()
        file.seek(position)
        storages.fill(file, keys)
    return root
