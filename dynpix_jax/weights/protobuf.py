"""Protocol buffers without their library: a message is a list of numbered fields, and no more is needed here.

Source: https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

import numpy as np

# Field number -> its values in order: an integer (a varint), or bytes (4, 8, or of any length).
Message = dict[int, list[int | memoryview]]

_VARINT, _EIGHT_BYTES, _ANY_LENGTH, _FOUR_BYTES = 0, 1, 2, 5
_FIXED = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """(value, end)."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise ValueError("truncated")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number of more than 64 bits")


def parse(data: memoryview) -> Message:
    """The fields of a message, nested ones not parsed; a ValueError if the bytes are none."""
    message: Message = {}
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        value: int | memoryview
        if number == 0:
            raise ValueError("a field of number 0")
        if wire == _VARINT:
            value, position = _varint(data, position)
        elif wire == _ANY_LENGTH or wire in _FIXED:
            size = _FIXED.get(wire, 0)
            if wire == _ANY_LENGTH:
                size, position = _varint(data, position)
            if size > len(data) - position:
                raise ValueError(f"field {number} has {size} bytes where {len(data) - position} are left")
            value = data[position : position + size]
            position += size
        else:
            raise ValueError(f"field {number} is of wire type {wire}")
        message.setdefault(number, []).append(value)
    return message


def parts(message: Message, number: int) -> list[memoryview]:
    """The values of a field that holds messages, text or bytes."""
    values = message.get(number, [])
    if not all(isinstance(value, memoryview) for value in values):
        raise ValueError(f"field {number} is a number, expected bytes")
    return [value for value in values if isinstance(value, memoryview)]


def text(message: Message, number: int) -> str:
    """A field's text; of several the last, as protocol buffers define; "" without one."""
    values = parts(message, number)
    return bytes(values[-1]).decode() if values else ""


def integers(message: Message, number: int) -> list[int]:
    """A field's integers, one by one or packed."""
    result = []
    for value in message.get(number, []):
        if isinstance(value, int):
            result.append(value)
        else:
            position = 0
            while position < len(value):
                item, position = _varint(value, position)
                result.append(item)
    return [value - (1 << 64) if value >> 63 else value for value in result]


def reals(message: Message, number: int, dtype: str) -> np.ndarray:
    """A field's numbers of fixed size (`dtype` "<f4" or "<f8"), one by one or packed."""
    values = parts(message, number)
    return np.concatenate([np.frombuffer(value, dtype) for value in values] or [np.empty(0, dtype)])
