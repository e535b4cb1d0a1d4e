"""The definition of the perforated convolution; slow and plain, for tests."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from dynpix_jax.core.typing import Array, Mask
from dynpix_jax.ops.conv import Pair, torch_padding


def perforated_conv_reference(
    x: Array,
    kernel: Array,
    mask: Mask,
    *,
    bias: Array | None = None,
    strides: Pair = (1, 1),
    dilation: Pair = (1, 1),
) -> Array:
    """Dense convolution in float32 at full precision, zeros where the mask is False; in x's dtype."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    y = lax.conv_general_dilated(
        x.astype(wide),
        kernel.astype(wide),
        window_strides=strides,
        padding=[(p, p) for p in torch_padding((kernel.shape[0], kernel.shape[1]), dilation)],
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST,
    )
    if bias is not None:
        y = y + bias.astype(wide)
    return jnp.where(mask[..., None], y, 0).astype(x.dtype)
