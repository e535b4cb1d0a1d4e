"""Kernels stored in fewer bits than they are computed with.

In 8 bits a kernel (..., C) is whole numbers from -127 to 127 and one float32 scale for each of its C output
channels, a tensor of its own under the same name below ``scales/``. It is off by at most half a scale, 1/254
of the channel's largest weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from dynpix_jax.core.errors import UserError, suggest

Precision = Literal["float32", "float16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8")
_SCALES = "scales/"
_LARGEST = 127


def reduced(tensors: Mapping[str, np.ndarray], precision: Precision) -> dict[str, np.ndarray]:
    """Kernels in ``precision``; vectors, such as moments of norms, as they are.

    Raises:
        UserError: An unknown precision; a kernel's value that is not finite, or too large for float16.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision {precision!r}: {suggest(precision, PRECISIONS)}")
    found = {}
    for name, values in tensors.items():
        found[name] = values
        if precision == "float32" or values.ndim < 2 or not np.issubdtype(values.dtype, np.floating):
            continue
        if not np.isfinite(values).all():
            raise UserError(f"{name}: a weight is not finite")
        if precision == "int8":
            largest = np.abs(values).max(axis=tuple(range(values.ndim - 1)), initial=0)
            # A channel of zeros: any scale will do.
            scales = (np.where(largest > 0, largest, _LARGEST) / _LARGEST).astype(np.float32)
            scales = np.maximum(scales, np.finfo(np.float32).smallest_subnormal)
            found[name] = np.rint(values / scales).clip(-_LARGEST, _LARGEST).astype(np.int8)
            found[_SCALES + name] = scales
            continue
        if np.abs(values).max(initial=0) > np.finfo(np.float16).max:
            raise UserError(f"{name}: a weight is above 65504, float16's largest; expected float32 or int8")
        found[name] = values.astype(np.float16)
    return found


def restored(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Kernels of 8 or 16 bits as float32; all other tensors as they are.

    Raises:
        UserError: A kernel of 8 bits without a scale for each of its channels, or scales without a kernel.
    """
    found = {}
    for name, values in tensors.items():
        if name.startswith(_SCALES):
            kernel = tensors.get(name.removeprefix(_SCALES))
            if kernel is None or kernel.dtype != np.int8:
                raise UserError(f"{name}: expected a kernel of 8 bits with the rest of this name")
        elif values.dtype == np.float16:
            found[name] = values.astype(np.float32)
        elif values.dtype == np.int8:
            found[name] = values.astype(np.float32) * _scales_of(name, values, tensors)
        else:
            found[name] = values
    return found


def _scales_of(name: str, kernel: np.ndarray, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    scales = tensors.get(_SCALES + name)
    if scales is None or scales.shape != kernel.shape[-1:] or scales.dtype != np.float32:
        raise UserError(
            f"{name}: a kernel of 8 bits; expected {kernel.shape[-1]} float32 scales in {_SCALES}{name}"
        )
    if not (np.isfinite(scales).all() and (scales > 0).all()):
        raise UserError(f"{_SCALES}{name}: a scale is not a positive number")
    return scales
