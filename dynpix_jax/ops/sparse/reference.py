"""Reference definitions of `perforated_conv` and `sparse_block`; slow and plain, for tests."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from dynpix_jax.core.typing import Array, Mask
from dynpix_jax.ops.conv import Pair, torch_padding
from dynpix_jax.ops.sparse.layers import Affine, Convolution, Relu, Shortcut


def perforated_conv_reference(
    x: Array,
    kernel: Array,
    mask: Mask,
    *,
    bias: Array | None = None,
    strides: Pair = (1, 1),
    dilation: Pair = (1, 1),
) -> Array:
    """Dense convolution in float32 at full precision, zero where the mask is False; in x's dtype."""
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


def sparse_block_reference(
    x: Array,
    mask: Mask,
    layers: Sequence[Convolution | Affine | Relu],
    *,
    combine: Shortcut | None = None,
    init: Array | None = None,
) -> Array:
    """The chain everywhere in float32, then ``combine`` by the mask."""
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    for layer in layers:
        if isinstance(layer, Convolution):
            everywhere = jnp.ones((x.shape[0], 1, 1), jnp.bool_)
            geometry = dict(strides=layer.strides, dilation=layer.dilation)
            y = perforated_conv_reference(y, layer.kernel, everywhere, bias=layer.bias, **geometry)
        elif isinstance(layer, Affine):
            y = y * layer.multiplier + layer.offset
        else:
            y = jnp.maximum(y, 0)
    active = mask[..., None]
    if init is None:
        return jnp.where(active, y, 0).astype(x.dtype)
    if combine is None:
        return jnp.where(active, y, init).astype(init.dtype)
    shortcut = init.astype(y.dtype)
    if combine.affine is not None:
        shortcut = shortcut * combine.affine.multiplier + combine.affine.offset
    out = shortcut + jnp.where(active, y, 0)
    return (jnp.maximum(out, 0) if combine.relu else out).astype(init.dtype)
