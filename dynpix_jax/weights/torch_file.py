"""PyTorch .pth/.pt zip files read without torch and without executing what is pickled in them.

A pickle is a program: loading one with `pickle.load` runs whatever its author wrote. Here it meets three
fences. 1. The program is scanned first: only the instructions that `torch.save` emits for plain data are let
through. 2. Names resolve to inert stand-ins from a fixed table; any other name is refused, never imported. 3.
What comes out must consist of tensors, dicts, lists, tuples and scalars. Memory is bounded by the file's
size: entries must be stored (as `torch.save` does), a storage must have exactly the bytes its element count
says, and tensors are views of their storages.

Source: torch/serialization.py (`_save`, `_load`) and torch/_utils.py (`_rebuild_tensor_v2`) of PyTorch 2.
"""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dynpix_jax.core.errors import UserError
from dynpix_jax.weights.safetensors_file import widen_bfloat16

# The 80-bit magic number with which torch < 1.6 began its files, pickled with protocol 2.
_LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_RESAVE = "load it with torch and save the weights alone: torch.save(model.state_dict(), 'weights.pth')"
_MAX_PICKLE_BYTES = 64 * 2**20  # a ResNet's is 50 kB: the tensors' data lies outside the pickle
_MAX_DEPTH = 32

_STORAGES = {
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
    "HalfStorage": "f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}

# Instructions for plain data, names, storages (BINPERSID) and calls of stand-ins (REDUCE, BUILD). Left out on
# purpose: INST, OBJ, NEWOBJ* (other ways to call), EXT* (names that bypass find_class), PERSID, buffers,
# text-mode numbers.
_OPCODES = frozenset(
    re.findall(
        r"\w+",
        """PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT
    BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES
    EMPTY_DICT DICT SETITEM SETITEMS EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL BINPERSID REDUCE BUILD""",
    )
)


class _Inert:
    """What the pickle may hold but not change: BUILD would otherwise write into any attributes."""

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError(f"the pickle tries to modify a {type(self).__name__}")


@dataclasses.dataclass(frozen=True)
class _StandIn(_Inert):
    """What a permitted name resolves to: an instance, since a class or function could be changed by BUILD."""

    name: str
    build: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        return self.build(*args)


@dataclasses.dataclass(frozen=True, eq=False)
class _Storage(_Inert):
    elements: np.ndarray  # 1-D, native byte order, bfloat16 already widened


@dataclasses.dataclass(frozen=True, eq=False)
class _Tensor(_Inert):
    array: np.ndarray  # a read-only view of a storage; wrapped, since arrays have a __setstate__ of their own


class _Dict(dict[Any, Any]):
    """Stands for collections.OrderedDict; drops what torch attaches to a state dict (`_metadata`)."""

    def __setstate__(self, state: object) -> None:
        del state


def _not_callable(*args: object) -> None:
    raise pickle.UnpicklingError(f"the pickle calls a storage type with {len(args)} arguments")


def _counts(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple) or not all(type(v) is int and v >= 0 for v in values):
        raise pickle.UnpicklingError(f"expected a tuple of non-negative integers, got {values!r:.100}")
    return values


def _rebuild_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, metadata: Any = None
) -> _Tensor:
    """torch._utils._rebuild_tensor_v2; offset, size and stride are in elements."""
    del requires_grad, hooks  # hooks are an (always empty) OrderedDict
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    if metadata:
        raise pickle.UnpicklingError(f"tensor with unsupported flags {metadata!r:.100}")
    (offset,), size, stride = _counts((offset,)), _counts(size), _counts(stride)
    if len(size) != len(stride) or len(size) > 32:
        raise pickle.UnpicklingError(f"tensor of size {size} with strides {stride}")
    elements = storage.elements
    if 0 in size:
        return _Tensor(np.empty(size, elements.dtype))
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= elements.size:
        raise pickle.UnpicklingError(
            f"tensor of size {size}, strides {stride}, offset {offset} exceeds its {elements.size} elements"
        )
    item = elements.dtype.itemsize
    strides = tuple(step * item for step in stride)
    return _Tensor(np.lib.stride_tricks.as_strided(elements[offset:], size, strides, writeable=False))


def _rebuild_parameter(data: Any, requires_grad: Any, hooks: Any, state: Any = None) -> Any:
    del requires_grad, hooks, state
    return data


_NAMES: dict[str, _StandIn] = {
    entry.name: entry
    for entry in (
        _StandIn("collections.OrderedDict", _Dict),
        _StandIn("torch.Size", lambda values: _counts(tuple(values))),
        _StandIn("torch._utils._rebuild_tensor_v2", _rebuild_tensor),
        _StandIn("torch._utils._rebuild_parameter", _rebuild_parameter),
        _StandIn("torch._utils._rebuild_parameter_with_state", _rebuild_parameter),
        *(_StandIn(f"torch.{name}", _not_callable) for name in _STORAGES),
    )
}


def _stand_in(path: Path, name: str) -> _StandIn:
    if name not in _NAMES:
        raise UserError(
            f"{path}: refused: the pickle wants {name}, which is not plain tensor data (it was not run); "
            f"if you trust the file, {_RESAVE}"
        )
    return _NAMES[name]


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, path: Path, load_storage: Callable[[str, str, int], _Storage]):
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._path = path
        self._load_storage = load_storage

    def find_class(self, module: str, name: str) -> _StandIn:
        return _stand_in(self._path, f"{module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        # ("storage", type, key, location, number of elements)
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"):
            raise pickle.UnpicklingError(f"unknown persistent object {pid!r:.100}")
        _, kind, key, _, numel = pid
        name = kind.name.removeprefix("torch.") if isinstance(kind, _StandIn) else None
        if name not in _STORAGES or not isinstance(key, str):
            raise pickle.UnpicklingError(f"corrupt storage record {pid!r:.100}")
        return self._load_storage(key, name, *_counts((numel,)))


def _scan(path: Path, data: bytes) -> None:
    """Refuses instructions outside `_OPCODES`, and memo indices that would allocate memory at will."""
    try:
        program = [(opcode.name, argument) for opcode, argument, _ in pickletools.genops(data)]
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: corrupt or truncated pickle: {error}") from error
    for name, argument in program:
        if name in ("GLOBAL", "INST"):  # before all else, so that the message tells what the pickle was after
            _stand_in(path, str(argument).replace(" ", "."))
    for name, argument in program:
        if name not in _OPCODES:
            what = f" {argument!r:.100}" if argument is not None else ""
            raise UserError(
                f"{path}: refused: the pickle holds the instruction {name}{what}, "
                f"which no file of plain tensors needs; if you trust the file, {_RESAVE}"
            )
        if name == "LONG_BINPUT" and int(argument or 0) > len(data):
            raise UserError(f"{path}: corrupt pickle: memo index {argument}")


def _plain(path: Path, value: Any, name: str, depth: int, done: dict[int, Any]) -> Any:
    """The value with tensors as arrays; raises UserError for anything that is not plain data.

    Containers that appear in several places are converted once (`done`, by identity), so that a small file
    cannot unfold into a huge tree; a container inside itself ends at the depth limit.
    """
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return value
    if isinstance(value, _Tensor):
        return value.array
    if depth > _MAX_DEPTH:
        raise UserError(f"{path}: nested too deeply to be a file of weights")
    if id(value) not in done:
        prefix = f"{name}." if name else ""
        if isinstance(value, dict):
            if strange := [key for key in value if not isinstance(key, (str, int, float))]:
                raise UserError(f"{path}: refused: {name or '(root)'} has the key {strange[0]!r:.100}")
            done[id(value)] = {
                key: _plain(path, item, f"{prefix}{key}", depth + 1, done) for key, item in value.items()
            }
        elif isinstance(value, (list, tuple)):
            done[id(value)] = [
                _plain(path, item, f"{prefix}{i}", depth + 1, done) for i, item in enumerate(value)
            ]
        else:
            kind = value.name if isinstance(value, _StandIn) else type(value).__name__.strip("_").lower()
            raise UserError(
                f"{path}: refused: entry {name or '(root)'} is {kind}, not a tensor, dict, list or scalar"
            )
    return done[id(value)]


class _Archive:
    """The zip file behind the pickle: NAME/data.pkl, NAME/byteorder, NAME/data/KEY."""

    def __init__(self, path: Path, archive: zipfile.ZipFile):
        self._path, self._zip = path, archive
        infos = archive.infolist()
        roots = [
            i.filename.removesuffix("data.pkl") for i in infos if i.filename.split("/")[1:] == ["data.pkl"]
        ]
        if len(roots) != 1:
            raise UserError(f"{path}: a zip file, but not of torch.save: {len(roots)} entries */data.pkl")
        self._root = roots[0]
        names = {info.filename for info in infos}
        if f"{self._root}constants.pkl" in names:
            raise UserError(f"{path}: a TorchScript program, not a file of weights; {_RESAVE}")
        for info in infos:
            if info.compress_type != zipfile.ZIP_STORED:
                raise UserError(f"{path}: entry {info.filename} is compressed, which torch.save never does")
        if sum(info.file_size for info in infos) > path.stat().st_size:
            raise UserError(f"{path}: the entries claim more bytes than the file has: corrupt zip file")
        order = self.read("byteorder", 16) if f"{self._root}byteorder" in names else b"little"
        if order not in (b"little", b"big"):
            raise UserError(f"{path}: unknown byte order {order!r}")
        self._order: Literal["<", ">"] = "<" if order == b"little" else ">"
        self._storages: dict[tuple[str, str], _Storage] = {}

    def read(self, name: str, limit: int) -> bytes:
        try:
            info = self._zip.getinfo(self._root + name)
        except KeyError as error:
            raise UserError(f"{self._path}: entry {self._root}{name} is missing from the file") from error
        if info.file_size > limit:
            raise UserError(
                f"{self._path}: entry {info.filename} has {info.file_size} bytes, expected {limit} at most"
            )
        return self._zip.read(info)

    def storage(self, key: str, kind: str, numel: int) -> _Storage:
        """One storage, read and widened once however many tensors share it."""
        if (key, kind) not in self._storages:
            bfloat16 = kind == "BFloat16Storage"
            dtype = np.dtype("u2" if bfloat16 else _STORAGES[kind]).newbyteorder(self._order)
            data = self.read(f"data/{key}", numel * dtype.itemsize)
            if len(data) != numel * dtype.itemsize:
                raise UserError(
                    f"{self._path}: storage {key} has {len(data)} bytes, expected {numel * dtype.itemsize} "
                    f"for {numel} elements of {kind}"
                )
            elements = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="), copy=False)
            self._storages[key, kind] = _Storage(widen_bfloat16(elements) if bfloat16 else elements)
        return self._storages[key, kind]


def read_torch(path: str | os.PathLike[str]) -> Any:
    """What `torch.save` wrote, with tensors as read-only numpy views (bfloat16 widened to float32).

    Raises UserError naming the file: older non-zip format, TorchScript, corrupt or truncated file, and any
    pickle that asks for more than tensors, dicts, lists, tuples and scalars. Nothing in the file is ever
    executed.
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(_LEGACY_START) or start[257:262] == b"ustar":
        raise UserError(
            f"{path}: the format of torch before 1.6 (not a zip file); re-save it with a newer torch: "
            f"torch.save(torch.load({path.name!r}), 'new.pth')"
        )
    if not start.startswith(b"PK"):
        raise UserError(f"{path}: not a PyTorch file: neither a zip file nor torch's older format")
    try:
        with zipfile.ZipFile(path) as opened:
            archive = _Archive(path, opened)
            data = archive.read("data.pkl", _MAX_PICKLE_BYTES)
            _scan(path, data)
            root = _Unpickler(data, path, archive.storage).load()
    except UserError:
        raise
    except Exception as error:  # a hostile or damaged pickle can raise anything from within the unpickler
        raise UserError(f"{path}: corrupt PyTorch file: {error or type(error).__name__}") from error
    return _plain(path, root, "", 0, {})
