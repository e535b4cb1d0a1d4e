"""Kernels stored in fewer bits than they are computed with.

In 8 bits a kernel (..., C) is whole numbers from -127 to 127 and one float32 scale for each of its C output
channels, a tensor of its own under the same name below ``scales/``. It is off by at most half a scale, 1/254
of the channel's largest weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from dynpix_jax.core.errors import UserError

Precision = Literal["float32", "float16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8")
_SCALES = "scales/"
_LARGEST = 127


def reduced(tensors: Mapping[str, np.ndarray], precision: Precision) -> dict[str, np.ndarray]:
    """Kernels in ``precision``; vectors, such as moments of norms, as they are.

    Raises:
        UserError: A kernel's value is not finite, or too large for float16.
    """
    found = {}
    for name, values in tensors.items():
        found[name] = values
        if precision == "float32" or values.ndim < 2 or not np.issubdtype(values.dtype, np.floating):
            continue
        if not np.isfinite(values).all():
            raise UserError(f"{name}: a weight is not finite")
        if precision == "int8":
            scales = np.abs(values).max(axis=tuple(range(values.ndim - 1))) / _LARGEST
            # A channel of zeros alone has no scale of its own.
            scales = np.where(scales > 0, scales, 1).astype(np.float32)
            found[name] = np.rint(values / scales).astype(np.int8)
            found[_SCALES + name] = scales
            continue
        if np.abs(values).max(initial=0) > np.finfo(np.float16).max:
            raise UserError(f"{name}: a weight is too large for float16")
        found[name] = values.astype(np.float16)
    return found


def restored(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """8-bit kernels as float32, times their scales; all other tensors as they are.

    Raises:
        UserError: Scales without a kernel of 8 bits, or not one for each of its channels.
    """
    found = {name: values for name, values in tensors.items() if not name.startswith(_SCALES)}
    for name, scales in tensors.items():
        if not name.startswith(_SCALES):
            continue
        kernel = tensors.get(name.removeprefix(_SCALES))
        if kernel is None or kernel.dtype != np.int8 or kernel.shape[-1:] != scales.shape:
            raise UserError(
                f"{name}: expected an 8-bit kernel of this name with {scales.size} output channels"
            )
        found[name.removeprefix(_SCALES)] = kernel.astype(np.float32) * scales
    return found
