"""Writes files in the format of torch before 1.6, byte by byte but for the pickles, without torch."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

from tests.weights.torch_zip import STORAGES, Storage, fake_torch

MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001
MACHINE = {
    "protocol_version": VERSION,
    "little_endian": True,
    "type_sizes": {"short": 2, "int": 4, "long": 4},
}


class _Pickler(pickle.Pickler):
    """Keys of storages are decimal addresses of C structs, which torch sorts as text."""

    def __init__(self, file: io.BytesIO, storages: dict[str, Storage], view: tuple[int, int] | None):
        super().__init__(file, 2)
        self.storages, self.view = storages, view

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, Storage):
            return None
        known = [key for key, storage in self.storages.items() if storage is value]
        key = known[0] if known else str(94_000_000_000_000 - 16 * len(self.storages))
        self.storages[key] = value
        view = None if self.view is None else (f"{key}1", *self.view)
        return ("storage", STORAGES[value.kind], key, "cuda:0", value.numel, view)


def save(
    path: Path,
    root: Any = None,
    *,
    pickled: bytes | None = None,
    magic: int = MAGIC,
    version: int = VERSION,
    view: tuple[int, int] | None = None,
    keys: list[str] | None = None,
    extra_count: int = 0,
) -> Path:
    """Writes what torch 1.1's `torch.save(root, path)` would.

    Args:
      path: the file.
      root: the object.
      pickled: stands in the place of the pickle of `root`.
      magic: the first number.
      version: the second.
      view: (offset, number of elements) of the part that every tensor's storage is, as torch 0.3 had it.
      keys: stands in the place of the list of keys.
      extra_count: how wrong the number of elements before each storage is.
    """
    storages: dict[str, Storage] = {}
    if pickled is None:
        buffer = io.BytesIO()
        with fake_torch():
            _Pickler(buffer, storages, view).dump(root)
        pickled = buffer.getvalue()
    with path.open("wb") as file:
        for value in (magic, version, MACHINE):
            file.write(pickle.dumps(value, 2))
        file.write(pickled)
        file.write(pickle.dumps(sorted(storages) if keys is None else keys, 2))
        for key in sorted(storages):
            file.write((storages[key].numel + extra_count).to_bytes(8, "little"))
            file.write(storages[key].data)
    return path
