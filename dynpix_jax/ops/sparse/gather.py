"""Active positions only, in plain XLA on every backend: chunks of gather, matrix product, scatter."""

from __future__ import annotations

import jax.numpy as jnp

from dynpix_jax.core.typing import Array, Mask
from dynpix_jax.ops.conv import Pair
from dynpix_jax.ops.sparse.active import ActiveSet, active_set, map_active


def gather(
    x: Array,
    kernel: Array,
    mask: Mask,
    active: ActiveSet | None,
    bias: Array | None,
    strides: Pair,
    dilation: Pair,
) -> Array:
    """:func:`~dynpix_jax.ops.sparse.active.map_active` with a matrix product."""
    *window, _, features = kernel.shape
    weights = kernel.reshape(-1, features)

    def product(windows: Array) -> Array:
        accumulated = jnp.promote_types(x.dtype, jnp.float32)
        y = jnp.dot(windows.reshape(windows.shape[0], -1), weights, preferred_element_type=accumulated)
        return y if bias is None else y + bias

    return map_active(
        product,
        x,
        active_set(mask) if active is None else active,
        window=(window[0], window[1]),
        dilation=dilation,
        strides=strides,
        init=jnp.zeros((*mask.shape, features), x.dtype),
    )
