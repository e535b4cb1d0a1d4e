"""The .safetensors format: 8 bytes of header length, a JSON header, the tensors' bytes.

Source: the format's description at https://github.com/huggingface/safetensors (section "Format"). Written
here because it is shorter than a dependency, and because numpy alone has no bfloat16, which published weights
often use.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dynpix_jax.core.errors import UserError

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # widened to float32 by `widen_bfloat16`
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_MAX_HEADER_BYTES = 100_000_000  # the limit of the format's own reader


def widen_bfloat16(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bit patterns (uint16, any shape) as float32: bfloat16 is float32's upper half."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"name {key!r} appears twice")
        result[key] = value
    return result


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """(header without metadata checks, offset of the data in the file, bytes of data)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise UserError(f"{path}: not a .safetensors file: {size} bytes are too few for its header")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(_MAX_HEADER_BYTES, size - 8):
            raise UserError(
                f"{path}: corrupt or truncated .safetensors file: header of {length} bytes, file of {size}"
            )
        try:
            header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: corrupt .safetensors header: {error}") from error
    if not isinstance(header, dict):
        raise UserError(f"{path}: corrupt .safetensors header: expected a JSON object")
    return header, 8 + length, size - 8 - length


def _entry(
    path: Path, name: str, entry: Any, available: int
) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
    """(dtype, shape, begin, end) of one header entry, validated on its own."""
    is_count = lambda n: isinstance(n, int) and not isinstance(n, bool) and n >= 0  # noqa: E731
    try:
        dtype_name, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: tensor {name}: corrupt .safetensors entry {entry!r:.200}") from error
    if not isinstance(dtype_name, str) or dtype_name not in _DTYPES:
        raise UserError(f"{path}: tensor {name}: dtype {dtype_name!r} is not one of {', '.join(_DTYPES)}")
    dtype = _DTYPES[dtype_name]
    if not all(is_count(n) for n in (*shape, begin, end)) or not begin <= end:
        raise UserError(f"{path}: tensor {name}: corrupt shape {shape} or offsets {begin}..{end}")
    if end > available:
        raise UserError(
            f"{path}: truncated .safetensors file: tensor {name} ends at byte {end} of {available}"
        )
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise UserError(
            f"{path}: tensor {name}: {end - begin} bytes for shape {shape} of {dtype_name}, "
            f"expected {math.prod(shape) * dtype.itemsize}"
        )
    return dtype, shape, begin, end


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All tensors of a .safetensors file by name; bfloat16 becomes float32, everything else keeps its dtype.

    Raises UserError naming the file when the header, a size or an offset is not what the format allows.
    """
    path = Path(path)
    header, start, available = _read_header(path)
    header.pop("__metadata__", None)
    entries = {name: _entry(path, name, entry, available) for name, entry in header.items()}
    position = 0
    for name, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != position:  # the format forbids holes and overlaps; overlaps would multiply memory
            raise UserError(f"{path}: tensor {name} begins at byte {begin}, expected {position}")
        position = end
    if position != available:
        raise UserError(f"{path}: {available - position} bytes after the last tensor")
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(available)
    tensors = {}
    for name, (dtype, shape, begin, end) in entries.items():
        array = np.frombuffer(data, dtype, math.prod(shape), begin if end > begin else 0).reshape(shape)
        tensors[name] = widen_bfloat16(array) if header[name]["dtype"] == "BF16" else array
    return tensors


def read_safetensors_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The file's free-form `__metadata__` ({} if it has none); reads the header only."""
    metadata = _read_header(Path(path))[0].get("__metadata__") or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UserError(f"{path}: corrupt .safetensors metadata: expected an object of strings")
    return metadata


def _dtype_name(name: str, array: np.ndarray) -> str:
    if array.dtype.name == "bfloat16":
        return "BF16"
    for key, dtype in _DTYPES.items():
        if key != "BF16" and dtype == array.dtype.newbyteorder("<"):
            return key
    raise ValueError(f"tensor {name}: dtype {array.dtype} has no place in a .safetensors file")


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes a file that appears whole or not at all (it is written beside its place, then renamed)."""
    path = Path(path)
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    # Wide dtypes first, then by name: every tensor stays aligned to its item size, and equal input gives
    # equal bytes.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    position = 0
    for name in names:
        array = tensors[name]
        header[name] = {
            "dtype": _dtype_name(name, array),
            "shape": list(array.shape),
            "data_offsets": [position, position + array.nbytes],
        }
        position += array.nbytes
    encoded = json.dumps(header, separators=(",", ":")).encode("utf-8")
    encoded += b" " * (-len(encoded) % 8)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(struct.pack("<Q", len(encoded)) + encoded)
            for name in names:
                array = tensors[name]
                if array.dtype.name != "bfloat16":  # ml_dtypes arrays are little-endian already
                    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
                file.write(array.tobytes())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
