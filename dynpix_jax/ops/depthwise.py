"""Depthwise convolution: every channel has its own kernel."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from dynpix_jax.core.typing import Array
from dynpix_jax.ops.conv import Pair, conv_output_size, torch_padding
from dynpix_jax.ops.platform import by_platform

SHIFTED = "depthwise_shifted"
"""Name of the program that holds no convolution for ``flops`` to count: see `shifted_macs`."""


def depthwise_conv(x: Array, kernel: Array, *, strides: Pair = (1, 1), dilation: Pair = (1, 1)) -> Array:
    """Depthwise 2-D convolution with the padding of PyTorch.

    On a CPU the taps are shifted, multiplied and added; XLA's grouped convolution takes several times as long
    there, and its gradient up to ten times. Differentiable in reverse mode.

    Args:
        x: (B, H, W, C).
        kernel: (kh, kw, 1, C), kh and kw odd.
        strides: Strides of rows and columns.
        dilation: Dilation of the kernel's rows and columns.

    Returns:
        (B, ceil(H / strides[0]), ceil(W / strides[1]), C).

    Raises:
        ValueError: The shapes do not fit.
    """
    if x.ndim != 4 or kernel.ndim != 4 or kernel.shape[2:] != (1, x.shape[-1]):
        raise ValueError(
            f"depthwise_conv: kernel {kernel.shape} for x {x.shape}; expected (kh, kw, 1, C), (B, H, W, C)"
        )
    if kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0:
        raise ValueError(f"depthwise_conv: kernel of even size {kernel.shape[:2]}")
    return _run(x, kernel, (strides[0], strides[1]), (dilation[0], dilation[1]))


def shifted_macs(kernel: tuple[int, ...], output: tuple[int, ...]) -> float:
    """MACs of the program `SHIFTED` from the shapes of its kernel and its result."""
    macs = float(kernel[0] * kernel[1])
    for extent in output:
        macs *= extent
    return macs


def _depthwise_shifted(x: Array, kernel: Array, strides: Pair, dilation: Pair) -> Array:
    size = (kernel.shape[0], kernel.shape[1])
    height, width = conv_output_size((x.shape[1], x.shape[2]), size, strides, dilation)
    rows, columns = torch_padding(size, dilation)
    padded = jnp.pad(x, ((0, 0), (rows, rows), (columns, columns), (0, 0)))
    terms = []
    for i in range(size[0]):
        for j in range(size[1]):
            top, left = i * dilation[0], j * dilation[1]
            bottom, right = top + (height - 1) * strides[0] + 1, left + (width - 1) * strides[1] + 1
            window = padded[:, top : bottom : strides[0], left : right : strides[1]]
            terms.append(window * kernel[i, j, 0])
    return sum(terms[1:], terms[0])


_depthwise_shifted.__name__ = SHIFTED
_shifted = partial(jax.jit, static_argnums=(2, 3))(_depthwise_shifted)


def _grouped(x: Array, kernel: Array, strides: Pair, dilation: Pair) -> Array:
    rows, columns = torch_padding((kernel.shape[0], kernel.shape[1]), dilation)
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=strides,
        padding=[(rows, rows), (columns, columns)],
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


_run = by_platform(cpu=_shifted, default=_grouped)
