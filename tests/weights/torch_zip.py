"""Writes PyTorch zip files without torch: stand-ins that pickle under torch's names, and a zip around."""

from __future__ import annotations

import collections
import contextlib
import io
import pickle
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

KINDS = {
    "f4": "FloatStorage",
    "f8": "DoubleStorage",
    "f2": "HalfStorage",
    "i8": "LongStorage",
    "i4": "IntStorage",
    "i2": "ShortStorage",
    "i1": "CharStorage",
    "u1": "ByteStorage",
    "b1": "BoolStorage",
}


def _named(module: str, name: str) -> Any:
    """A function that pickles as the global `module.name`."""
    function = types.FunctionType((lambda *args: args).__code__, {})
    function.__module__, function.__name__, function.__qualname__ = module, name, name
    return function


REBUILD_TENSOR = _named("torch._utils", "_rebuild_tensor_v2")
OLD_REBUILD_TENSOR = _named("torch._utils", "_rebuild_tensor")
REBUILD_PARAMETER = _named("torch._utils", "_rebuild_parameter")
STORAGES = {name: _named("torch", name) for name in [*KINDS.values(), "BFloat16Storage", "StrangeStorage"]}


class Call:
    """Pickles as the call `function(*args)`, with a state for BUILD if one is given."""

    def __init__(self, function: Any, *args: Any, state: Any = None):
        self.function, self.args, self.state = function, args, state

    def __reduce__(self) -> tuple[Any, ...]:
        return (self.function, self.args) if self.state is None else (self.function, self.args, self.state)


class Storage:
    """A storage of the archive: `kind` is torch's name, `numel` what the pickle claims."""

    def __init__(self, data: bytes, kind: str, numel: int):
        self.data, self.kind, self.numel = data, kind, numel

    @classmethod
    def of(cls, array: np.ndarray) -> Storage:
        kind = KINDS[array.dtype.newbyteorder("=").str[1:]]
        return cls(array.tobytes(), kind, array.size)


def tensor(array: np.ndarray, **changes: Any) -> Call:
    """A contiguous tensor, or a view of `storage=` with `offset=`, `size=`, `stride=` in elements."""
    strides = tuple(step // array.itemsize for step in np.empty(array.shape, array.dtype).strides)
    fields = {"storage": Storage.of(array), "offset": 0, "size": array.shape, "stride": strides, **changes}
    return Call(
        REBUILD_TENSOR,
        fields["storage"],
        fields["offset"],
        fields["size"],
        fields["stride"],
        False,
        collections.OrderedDict(),
    )


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, storages: list[Storage], protocol: int):
        super().__init__(file, protocol)
        self.storages = storages

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, Storage):
            return None
        if value not in self.storages:
            self.storages.append(value)
        key = str(self.storages.index(value))
        return ("storage", STORAGES[value.kind], key, "cpu", value.numel)


@contextlib.contextmanager
def fake_torch() -> Iterator[None]:
    """The pickler looks every global up before it writes it, so for that moment there is a `torch`."""
    assert "torch" not in sys.modules
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name, storage in STORAGES.items():
        setattr(torch, name, storage)
    for function in (REBUILD_TENSOR, OLD_REBUILD_TENSOR, REBUILD_PARAMETER):
        setattr(utils, function.__name__, function)
    sys.modules.update({"torch": torch, "torch._utils": utils})
    try:
        yield
    finally:
        del sys.modules["torch"], sys.modules["torch._utils"]


def save(
    path: Path,
    root: Any = None,
    *,
    protocol: int = 2,
    byteorder: bytes | None = b"little",
    pickled: bytes | None = None,
    compression: int = zipfile.ZIP_STORED,
    extra: dict[str, bytes] | None = None,
) -> Path:
    """Writes what `torch.save(root, path)` would; `pickled` replaces the pickle of `root`."""
    storages: list[Storage] = []
    if pickled is None:
        buffer = io.BytesIO()
        with fake_torch():
            _Pickler(buffer, storages, protocol).dump(root)
        pickled = buffer.getvalue()
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{path.stem}/data.pkl", pickled)
        if byteorder is not None:
            archive.writestr(f"{path.stem}/byteorder", byteorder)
        for key, storage in enumerate(storages):
            archive.writestr(f"{path.stem}/data/{key}", storage.data)
        archive.writestr(f"{path.stem}/version", b"3\n")
        for name, data in (extra or {}).items():
            archive.writestr(f"{path.stem}/{name}", data)
    return path
