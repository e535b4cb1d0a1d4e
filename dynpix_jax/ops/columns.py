"""Maps of few channels for TPUs, which store channels in vectors of 128: columns side by side fill them.

A map (B, H, W, C) becomes (B, H, W / n, n C), whose channels are those of n columns. No part of a vector
stays empty then, for which convolutions take n times the products, most of them with zeros.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax

from dynpix_jax.core.typing import Array
from dynpix_jax.ops.platform import default_platform

LANES = 128


def columns_together(channels: int, width: int) -> int:
    """How many columns of a map of that width fill a vector; 1 on other platforms than TPUs."""
    count = LANES // channels if default_platform() == "tpu" else 1
    return max((n for n in range(1, count + 1) if width % n == 0), default=1)


def together(x: Array, count: int) -> Array:
    """(B, H, W, C) -> (B, H, W / count, count C)."""
    b, height, width, channels = x.shape
    return x.reshape(b, height, width // count, count * channels)


def apart(x: Array, count: int) -> Array:
    """The inverse of `together`."""
    b, height, width, channels = x.shape
    return x.reshape(b, height, width * count, channels // count)


def wide_kernel(kernel: Array, count: int) -> Array:
    """The kernel of a convolution of stride 1 for maps whose columns are `together`, of odd sides again.

    (kh, kw, Cin, Cout) -> (kh, kw', count Cin, count Cout).
    """
    rows, taps, inputs, outputs = kernel.shape
    reach = -(-(taps // 2) // count)
    # Column `to` of a group reads column `of` of the group at distance `group` by this tap.
    group, of, to = np.ogrid[-reach : reach + 1, :count, :count]
    tap = count * group + of - to + taps // 2
    reads = (tap[..., None] == np.arange(taps)).astype(np.float32)
    # HIGHEST: it only moves values.
    wide = jnp.einsum("giot,ytac->ygiaoc", reads, kernel, precision=lax.Precision.HIGHEST)
    return wide.reshape(rows, 2 * reach + 1, count * inputs, count * outputs)
