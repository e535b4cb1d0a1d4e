"""Dense convolution with the padding of PyTorch, and the arithmetic of its shapes."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from dynpix_jax.ops.pointwise import pointwise
from dynpix_jax.typing import Array

Pair = tuple[int, int]


def torch_padding(kernel_size: Pair, dilation: Pair) -> Pair:
    """Rows and columns of zeros on each side: dilation * (k // 2)."""
    return dilation[0] * (kernel_size[0] // 2), dilation[1] * (kernel_size[1] // 2)


def conv_output_size(size: Pair, kernel_size: Pair, strides: Pair, dilation: Pair) -> Pair:
    """(Ho, Wo) of a convolution with :func:`torch_padding` on an input of ``size`` (H, W)."""
    padding = torch_padding(kernel_size, dilation)
    height, width = (
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(size, padding, dilation, kernel_size, strides, strict=True)
    )
    return height, width


def conv(
    x: Array,
    kernel: Array,
    *,
    strides: Pair = (1, 1),
    dilation: Pair = (1, 1),
    padding: Sequence[Pair] | None = None,
    bias: Array | None = None,
) -> Array:
    """Dense 2-D convolution (cross-correlation, as everywhere in deep learning).

    1x1 kernels without explicit padding run as a matrix product
    (:func:`~dynpix_jax.ops.pointwise.pointwise`), and so does a convolution to a single channel: one product
    for all taps, whose results are shifted and added, takes a third of the time of XLA's (on a CPU, where
    alone it is done).

    Args:
      x: (B, H, W, Cin).
      kernel: (kh, kw, Cin, Cout).
      strides: of rows and columns.
      dilation: of the kernel's rows and columns.
      padding: ((top, bottom), (left, right)) zeros; None: ``dilation * (k // 2)`` on every side, as PyTorch
        models pad (XLA's "SAME" pads asymmetrically at stride 2).
      bias: (Cout,) or None.

    Returns:
      (B, Ho, Wo, Cout) of the dtype of ``x``.

    Raises:
      ValueError: the shapes do not fit.
    """
    if x.ndim != 4:
        raise ValueError(f"conv: x must be (B, H, W, Cin), got shape {x.shape}")
    if kernel.ndim != 4 or kernel.shape[2] != x.shape[-1]:
        raise ValueError(
            f"conv: kernel must be (kh, kw, {x.shape[-1]}, Cout) for x of shape {x.shape}, got {kernel.shape}"
        )
    if padding is None:
        if kernel.shape[:2] == (1, 1):
            return pointwise(x, kernel, bias, strides)
        padding = [(p, p) for p in torch_padding((kernel.shape[0], kernel.shape[1]), dilation)]
        if (
            kernel.shape[-1] == 1
            and tuple(strides) == (1, 1)
            and kernel.shape[0] % 2 == kernel.shape[1] % 2 == 1
            and jax.default_backend() == "cpu"
        ):
            y = _to_one_channel(x, kernel, dilation)
            return y if bias is None else y + bias
    y = lax.conv_general_dilated(
        x,
        kernel,
        window_strides=strides,
        padding=list(padding),
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y if bias is None else y + bias


def _to_one_channel(x: Array, kernel: Array, dilation: Pair) -> Array:
    """Convolution of odd size at stride 1 to one channel, padded to keep the size of ``x``."""
    _, height, width, _ = x.shape
    rows, cols = kernel.shape[:2]
    # Summed in float32, as a convolution does.
    wide = jnp.promote_types(x.dtype, jnp.float32)
    taps = jnp.einsum("bhwc,tc->bhwt", x, kernel.reshape(rows * cols, -1), preferred_element_type=wide)
    pad_rows, pad_cols = torch_padding((rows, cols), dilation)
    taps = jnp.pad(taps, ((0, 0), (pad_rows, pad_rows), (pad_cols, pad_cols), (0, 0)))
    shifted = [
        taps[:, i * dilation[0] :, j * dilation[1] :, i * cols + j][:, :height, :width]
        for i in range(rows)
        for j in range(cols)
    ]
    return sum(shifted[1:], shifted[0])[..., None].astype(x.dtype)
