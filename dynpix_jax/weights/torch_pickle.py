"""The pickles inside PyTorch files, read without torch and without executing what is pickled in them.

A pickle is a program: loading one with `pickle.load` runs whatever its author wrote. Here it meets three
fences. 1. The program is scanned first: only the instructions that `torch.save` emits for plain data are let
through. 2. Names resolve to inert stand-ins from a fixed table; any other name is refused, never imported. 3.
What comes out must consist of tensors, dicts, lists, tuples and scalars.

NumPy's scalars, which training programs keep beside the weights (`best_mIoU`), are let through as None: their
values are never needed.

Source: torch/_utils.py (`_rebuild_tensor_v2`) and torch/serialization.py (`persistent_id`) of PyTorch 2.
"""

from __future__ import annotations

import dataclasses
import io
import pickle
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dynpix_jax.core.errors import UserError

RESAVE = "load it with torch and save the weights alone: torch.save(model.state_dict(), 'weights.pth')"
MAX_PICKLE_BYTES = 64 * 2**20  # a ResNet's is 50 kB: the tensors' data lies outside the pickle
_MAX_DEPTH = 32

# (key, type of storage, number of elements) -> the storage's elements, 1-D, native byte order, widened.
ElementsOf = Callable[[str, str, int], np.ndarray]
# Types of storages -> dtypes of their elements in the file. bfloat16 is read as bits and then widened.
STORAGES = {
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
    "HalfStorage": "f2",
    "BFloat16Storage": "u2",
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


def widened(elements: np.ndarray, kind: str) -> np.ndarray:
    """A storage's elements as they are computed with: bfloat16 bits as float32, whose upper half they are."""
    return (elements.astype(np.uint32) << 16).view(np.float32) if kind == "BFloat16Storage" else elements


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


class _Nothing:
    """Stands for NumPy's dtypes and scalars, whose values are not needed."""

    def __setstate__(self, state: object) -> None:
        del state


def _not_callable(*args: object) -> None:
    raise pickle.UnpicklingError(f"the pickle calls a storage type with {len(args)} arguments")


def _nothing(*args: object) -> _Nothing:
    del args
    return _Nothing()


def _counts(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple) or not all(type(v) is int and v >= 0 for v in values):
        raise pickle.UnpicklingError(f"expected a tuple of non-negative integers, got {values!r:.100}")
    return values


def _rebuild_tensor(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any = False,
    hooks: Any = None,
    metadata: Any = None,
) -> _Tensor:
    """torch._utils._rebuild_tensor and its _v2; offset, size and stride are in elements."""
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
        _StandIn("torch._utils._rebuild_tensor", _rebuild_tensor),
        _StandIn("torch._utils._rebuild_tensor_v2", _rebuild_tensor),
        _StandIn("torch._utils._rebuild_parameter", _rebuild_parameter),
        _StandIn("torch._utils._rebuild_parameter_with_state", _rebuild_parameter),
        _StandIn("numpy.core.multiarray.scalar", _nothing),
        _StandIn("numpy._core.multiarray.scalar", _nothing),
        _StandIn("numpy.dtype", _nothing),
        _StandIn("_codecs.encode", _nothing),  # how protocol 2 spells the bytes of a scalar
        *(_StandIn(f"torch.{name}", _not_callable) for name in STORAGES),
    )
}


def _stand_in(path: Path, name: str) -> _StandIn:
    if name not in _NAMES:
        raise UserError(
            f"{path}: refused: the pickle wants {name}, which is not plain tensor data (it was not run); "
            f"if you trust the file, {RESAVE}"
        )
    return _NAMES[name]


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, path: Path, elements_of: ElementsOf):
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._path = path
        self._elements_of = elements_of

    def find_class(self, module: str, name: str) -> _StandIn:
        return _stand_in(self._path, f"{module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        # ("storage", type, key, location, number of elements); before torch 1.6 also None, or, up to torch
        # 0.3, (key, offset, number of elements) of a part of the storage.
        if not (isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage"):
            raise pickle.UnpicklingError(f"unknown persistent object {pid!r:.100}")
        _, kind, key, _, numel, *part = pid
        name = kind.name.removeprefix("torch.") if isinstance(kind, _StandIn) else None
        if name not in STORAGES or not isinstance(key, str):
            raise pickle.UnpicklingError(f"corrupt storage record {pid!r:.100}")
        elements = self._elements_of(key, name, *_counts((numel,)))
        if part and part[0] is not None:
            offset, size = _counts(part[0][1:])
            if offset + size > elements.size:
                raise pickle.UnpicklingError(f"part {offset}+{size} exceeds storage {key} of {elements.size}")
            elements = elements[offset : offset + size]
        return _Storage(elements)


def scan(path: Path, data: bytes, start: int = 0) -> int:
    """Refuses a pickle with instructions that no file of plain tensors needs, before any of them is run.

    Args:
        path: The file, for messages.
        data: Bytes in which the pickle lies.
        start: Where it begins.

    Returns:
        Where it ends.

    Raises:
        UserError: An instruction or a name that is not plain data; a memo index that would allocate memory at
            will; a pickle that is corrupt or cut short.
    """
    stream, refused = io.BytesIO(data), ""
    stream.seek(start)
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            # Names are checked first, so that the message says what the pickle asks for.
            if opcode.name in ("GLOBAL", "INST"):
                _stand_in(path, str(argument).replace(" ", "."))
            if opcode.name not in _OPCODES:
                what = f" {argument!r:.100}" if argument is not None else ""
                refused = refused or f"{opcode.name}{what}"
            if opcode.name == "LONG_BINPUT" and int(argument or 0) > len(data):
                raise UserError(f"{path}: corrupt pickle: memo index {argument}")
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: corrupt or truncated pickle: {error}") from error
    if refused:
        raise UserError(
            f"{path}: refused: the pickle holds the instruction {refused}, "
            f"which no file of plain tensors needs; if you trust the file, {RESAVE}"
        )
    return stream.tell()


def load(path: Path, data: bytes, elements_of: ElementsOf) -> Any:
    """The content of a scanned pickle, with tensors wrapped; `plain` unwraps them."""
    return _Unpickler(data, path, elements_of).load()


def no_storages(key: str, kind: str, numel: int) -> np.ndarray:
    """For pickles that hold no tensors."""
    raise pickle.UnpicklingError(f"storage {key} of {numel} elements ({kind}) where none may be")


def plain(path: Path, root: Any) -> Any:
    """The result of `load`, with tensors as read-only arrays.

    Raises:
        UserError: Something that is not a tensor, dict, list, tuple or scalar.
    """
    return _plain(path, root, "", 0, {})


def _plain(path: Path, value: Any, name: str, depth: int, done: dict[int, Any]) -> Any:
    """Containers that appear in several places are converted once (`done`, by identity).

    So a small file cannot unfold into a huge tree; a container inside itself ends at the depth limit.
    """
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return value
    if isinstance(value, _Nothing):
        return None
    if isinstance(value, _Tensor):
        return value.array
    if depth > _MAX_DEPTH:
        raise UserError(f"{path}: nested too deeply to be a file of weights")
    if id(value) not in done:
        place = name or "(root)"

        def inside(key: Any, item: Any) -> Any:
            return _plain(path, item, f"{name}.{key}" if name else str(key), depth + 1, done)

        if isinstance(value, dict):
            _check_keys(path, value, place)
            done[id(value)] = {key: inside(key, item) for key, item in value.items()}
        elif isinstance(value, (list, tuple)):
            done[id(value)] = [inside(index, item) for index, item in enumerate(value)]
        else:
            kind = value.name if isinstance(value, _StandIn) else type(value).__name__.strip("_").lower()
            raise UserError(f"{path}: refused: entry {place} is {kind}, not a tensor, dict, list or scalar")
    return done[id(value)]


def _check_keys(path: Path, value: dict[Any, Any], place: str) -> None:
    if strange := [key for key in value if not isinstance(key, (str, int, float))]:
        raise UserError(f"{path}: refused: {place} has the key {strange[0]!r:.100}")
