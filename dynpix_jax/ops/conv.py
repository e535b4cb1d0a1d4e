"""Dense convolution with the padding of PyTorch, and the arithmetic of its shapes."""

from __future__ import annotations

from collections.abc import Sequence

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
    (:func:`~dynpix_jax.ops.pointwise.pointwise`).

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
    y = lax.conv_general_dilated(
        x,
        kernel,
        window_strides=strides,
        padding=list(padding),
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y if bias is None else y + bias
