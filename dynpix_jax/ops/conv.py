"""Dense convolution with the padding of PyTorch, and the arithmetic of its shapes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from dynpix_jax.core.typing import Array
from dynpix_jax.ops import winograd
from dynpix_jax.ops.platform import by_platform, pull_back
from dynpix_jax.ops.pointwise import pointwise

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
    (:func:`~dynpix_jax.ops.pointwise.pointwise`). On a CPU, a convolution to a single channel is one product
    for all taps, whose results are shifted and added: a third of the time of XLA's. A wide 3x3 in float32
    takes a quarter of the products there, to 3e-5 of the largest result (`ops.winograd`). Differentiable in
    reverse mode, any number of times.

    Args:
        x: (B, H, W, Cin).
        kernel: (kh, kw, Cin, Cout).
        strides: Strides of rows and columns.
        dilation: Dilation of the kernel's rows and columns.
        padding: ((top, bottom), (left, right)) zeros; None: ``dilation * (k // 2)`` on every side, as PyTorch
            models pad (XLA's "SAME" pads asymmetrically at stride 2).
        bias: (Cout,) or None.

    Returns:
        (B, Ho, Wo, Cout) of the dtype of ``x``.

    Raises:
        ValueError: The shapes do not fit.
    """
    if x.ndim != 4:
        raise ValueError(f"conv: x must be (B, H, W, Cin), got shape {x.shape}")
    if kernel.ndim != 4 or kernel.shape[2] != x.shape[-1]:
        raise ValueError(
            f"conv: kernel must be (kh, kw, {x.shape[-1]}, Cout) for x of shape {x.shape}, got {kernel.shape}"
        )
    strides, dilation = (strides[0], strides[1]), (dilation[0], dilation[1])
    if padding is None:
        window = (kernel.shape[0], kernel.shape[1])
        if window == (1, 1):
            return pointwise(x, kernel, bias, strides)
        padding = [(p, p) for p in torch_padding(window, dilation)]
        if kernel.shape[-1] == 1 and strides == (1, 1) and window[0] % 2 == window[1] % 2 == 1:
            y = _to_one_channel(x, kernel, dilation)
            return y if bias is None else (y + bias).astype(x.dtype)
    sides = tuple((low, high) for low, high in padding)
    y = _convolve_in_order(x, kernel, strides, dilation, sides, (1, 1))
    return y if bias is None else (y + bias).astype(x.dtype)


def _convolve(
    x: Array, kernel: Array, strides: Pair, dilation: Pair, padding: tuple[Pair, ...], spread: Pair
) -> Array:
    """``spread``: distances between the rows and columns of ``x``, filled with zeros."""
    return lax.conv_general_dilated(
        x, kernel, strides, padding, spread, dilation, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _plain(strides: Pair, dilation: Pair, padding: tuple[Pair, ...], spread: Pair) -> bool:
    """Whether a 3x3 is one of stride 1 that keeps the size."""
    return strides == spread == (1, 1) and padding == tuple((d, d) for d in dilation)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _convolve_in_order(
    x: Array, kernel: Array, strides: Pair, dilation: Pair, padding: tuple[Pair, ...], spread: Pair
) -> Array:
    """`_convolve`, whose gradients of any order are convolutions of NHWC and HWIO on a CPU too.

    JAX swaps the roles of axes instead of transposing arrays. On a CPU, XLA undoes that in the main program
    only: inside branches and loops such gradients become plain loops, 15 to 30 times slower.
    """

    def run(x: Array, kernel: Array) -> Array:
        return _convolve(x, kernel, strides, dilation, padding, spread)

    def by_winograd(x: Array, kernel: Array) -> Array:
        return winograd.winograd_conv(x, kernel, dilation)

    if not (_plain(strides, dilation, padding, spread) and winograd.pays(x, kernel, dilation)):
        return run(x, kernel)
    y: Array = lax.platform_dependent(x, kernel, cpu=by_winograd, default=run)
    return y


def _forward(
    x: Array, kernel: Array, strides: Pair, dilation: Pair, padding: tuple[Pair, ...], spread: Pair
) -> tuple[Array, tuple[Array, Array]]:
    return _convolve_in_order(x, kernel, strides, dilation, padding, spread), (x, kernel)


def _backward(
    strides: Pair,
    dilation: Pair,
    padding: tuple[Pair, ...],
    spread: Pair,
    saved: tuple[Array, Array],
    gradient: Array,
) -> tuple[Array, Array]:
    def run(x: Array, kernel: Array) -> Array:
        return _convolve(x, kernel, strides, dilation, padding, spread)

    plain = _plain(strides, dilation, padding, spread)

    def in_order(x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
        if plain and winograd.pays(x, kernel, dilation, gradients=True):
            return winograd.winograd_gradients(dilation, (x, kernel), gradient)
        return _gradients_in_order(x, kernel, gradient, strides, dilation, padding, spread)

    gradients: tuple[Array, Array] = lax.platform_dependent(
        *saved, gradient, cpu=in_order, default=partial(pull_back, run)
    )
    return gradients


def _gradients_in_order(
    x: Array,
    kernel: Array,
    gradient: Array,
    strides: Pair,
    dilation: Pair,
    padding: tuple[Pair, ...],
    spread: Pair,
) -> tuple[Array, Array]:
    of_x, of_kernel = [], []
    for axis, (low, _) in enumerate(padding):
        reach = (kernel.shape[axis] - 1) * dilation[axis]
        inside = (x.shape[axis + 1] - 1) * spread[axis] + 1
        outside = (gradient.shape[axis + 1] - 1) * strides[axis] + 1
        of_x.append((reach - low, inside + low - outside))
        of_kernel.append((low, outside + reach - inside - low))
    flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    to_x = _convolve_in_order(gradient, flipped, spread, dilation, tuple(of_x), strides)
    # Channels and batch are swapped.
    images, outputs = x.transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3)
    to_kernel = _convolve_in_order(images, outputs, dilation, strides, tuple(of_kernel), spread)
    return to_x, to_kernel.transpose(1, 2, 0, 3)


_convolve_in_order.defvjp(_forward, _backward)


def _same_size(x: Array, kernel: Array, dilation: Pair) -> Array:
    sides = tuple((p, p) for p in torch_padding((kernel.shape[0], kernel.shape[1]), dilation))
    return _convolve(x, kernel, (1, 1), dilation, sides, (1, 1))


def _by_taps(x: Array, kernel: Array, dilation: Pair) -> Array:
    """One product for all taps, whose results are shifted and added."""
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


_to_one_channel = by_platform(cpu=_by_taps, default=_same_size)
