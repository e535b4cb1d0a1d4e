"""1x1 convolution as a matrix product."""

from __future__ import annotations

import jax.numpy as jnp

from dynpix_jax.core.typing import Array


def pointwise(x: Array, kernel: Array, bias: Array | None = None, strides: tuple[int, int] = (1, 1)) -> Array:
    """1x1 convolution of ``x``.

    A matrix product, because XLA's CPU gradient of a 1x1 convolution with respect to the kernel is several
    times slower. A stride takes every n-th row and column first.

    Args:
        x: (B, H, W, Cin).
        kernel: (1, 1, Cin, Cout) or (Cin, Cout).
        bias: (Cout,) or None.
        strides: Strides of rows and columns.

    Returns:
        (B, ceil(H / strides[0]), ceil(W / strides[1]), Cout), of the dtype of the product.

    Raises:
        ValueError: The shapes do not fit.
    """
    if x.ndim != 4:
        raise ValueError(f"pointwise: x must be (B, H, W, Cin), got shape {x.shape}")
    if kernel.ndim == 4 and kernel.shape[:2] == (1, 1):
        kernel = kernel[0, 0]
    if kernel.ndim != 2 or kernel.shape[0] != x.shape[-1]:
        expected = f"(1, 1, {x.shape[-1]}, Cout) or ({x.shape[-1]}, Cout)"
        raise ValueError(f"pointwise: kernel must be {expected} for x of shape {x.shape}, got {kernel.shape}")
    if tuple(strides) != (1, 1):
        x = x[:, :: strides[0], :: strides[1]]
    y = jnp.einsum("bhwc,cd->bhwd", x, kernel)
    return y if bias is None else (y + bias).astype(y.dtype)
