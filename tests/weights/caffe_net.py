"""Writes .caffemodel files without Caffe and without protocol buffers' library: the encoder is all here."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

V1_TYPES = {"Convolution": 4, "InnerProduct": 14, "Deconvolution": 39, "Data": 5, "ReLU": 18}


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    result = b""
    while value >= 0x80:
        result += bytes([value & 0x7F | 0x80])
        value >>= 7
    return result + bytes([value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def sized(field: int, value: bytes | str) -> bytes:
    """A message, text, or packed numbers."""
    value = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | 2) + varint(len(value)) + value


def real(field: int, value: float) -> bytes:
    return varint(field << 3 | 5) + struct.pack("<f", value)


def blob(array: np.ndarray, *, form: str = "shape") -> bytes:
    """A BlobProto.

    Args:
      array: what it holds.
      form: "shape" (since 2014), "legacy" (four axes), "double", "unpacked" (one float a field), "chunks".
    """
    data = array.astype("<f8" if form == "double" else "<f4").tobytes()
    if form == "unpacked":
        numbers = b"".join(real(5, value) for value in array.ravel())
    elif form == "chunks":
        numbers = sized(5, data[:8]) + sized(5, data[8:])
    else:
        numbers = sized(8 if form == "double" else 5, data)
    if form == "legacy":
        four = (1,) * (4 - array.ndim) + array.shape
        return b"".join(number(axis, size) for axis, size in enumerate(four, 1)) + numbers
    return sized(7, sized(1, b"".join(varint(size) for size in array.shape))) + numbers


def layer(
    name: str,
    kind: str,
    blobs: Sequence[bytes] = (),
    *,
    v1: bool = False,
    convolution: bytes = b"",
    mean: Sequence[float] = (),
) -> bytes:
    """A layer as a field of the network; `convolution` holds the fields of its ConvolutionParameter."""
    transform = b"".join(real(5, value) for value in mean)
    if v1:
        body = sized(3, name) + sized(4, name) + number(5, V1_TYPES[kind])
        body += b"".join(sized(6, data) for data in blobs) + real(7, 1.0)
        body += sized(10, convolution) if convolution else b""
        return sized(2, body + (sized(36, transform) if transform else b""))
    body = sized(1, name) + sized(2, kind) + sized(4, name)
    body += b"".join(sized(7, data) for data in blobs)
    body += sized(100, transform) if transform else b""
    return sized(100, body + (sized(106, convolution) if convolution else b""))


def save(path: Path, *layers: bytes) -> Path:
    """A network with its name and an input, as Caffe writes them, and the layers."""
    path.write_bytes(sized(1, "VGG_ILSVRC_16_layers-NoDC") + sized(3, "data") + b"".join(layers))
    return path
