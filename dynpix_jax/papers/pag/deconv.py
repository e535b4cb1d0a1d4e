"""Learned up-sampling (deconvolution) written as one matrix product."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from dynpix_jax.core.typing import Array
from dynpix_jax.ops.pointwise import pointwise


def bilinear_taps(stride: int) -> Array:
    """(2 * stride,) triangle of width 2 * stride - 1 and a zero; its peak, 1, lies on the input cell."""
    return jnp.maximum(1.0 - jnp.abs(jnp.arange(2 * stride) - (stride - 1.0)) / stride, 0.0)


class Deconv(nn.Module):
    """Transposed convolution by ``stride``: (B, h, w, features) -> (B, H, W, features) for ``size`` = (H, W).

    The kernel has 2 * stride taps a side and starts as bilinear interpolation of every channel. Output pixel
    ``stride * i`` lies on input cell ``i``, which is where a ResNet's padding puts its features (a centred
    deconvolution would shift the map by (stride - 1) / 2 pixels). Beyond the last cell, pixels from
    ``stride * (h - 1) + 1`` on, the last cell is repeated: zeros would let the features fade out.
    Written as a matrix product over 2x2 input cells: no zero-stuffed convolution, which is slow on a CPU.
    """

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Array, size: tuple[int, int]) -> Array:
        s, c = self.stride, self.features
        if s * x.shape[1] < size[0] or s * x.shape[2] < size[1]:
            raise ValueError(f"size: {size} is more than stride {s} times the input {x.shape[1:3]}")

        def bilinear(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
            taps = bilinear_taps(s).astype(dtype)
            return jnp.einsum("y,x,io->yxio", taps, taps, jnp.eye(c, dtype=dtype))

        kernel = self.param("kernel", bilinear, (2 * s, 2 * s, c, c), jnp.float32).astype(x.dtype)
        # Every s x s block of the output sees 2 x 2 input cells: one matrix product over their channels.
        b, h, w, _ = x.shape
        padded = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)), mode="edge")
        padded = jnp.pad(padded, ((0, 0), (1, 0), (1, 0), (0, 0)))
        cells = [padded[:, 1 - i : h + 2 - i, 1 - j : w + 2 - j] for i in (0, 1) for j in (0, 1)]
        # (y block, y in block, x block, x in block, in, out) -> (y block, x block, in), (y, x, out)
        matrix = kernel.reshape(2, s, 2, s, c, c).transpose(0, 2, 4, 1, 3, 5).reshape(4 * c, s * s * c)
        blocks = pointwise(jnp.concatenate(cells, axis=-1), matrix).reshape(b, h + 1, w + 1, s, s, c)
        full = blocks.transpose(0, 1, 3, 2, 4, 5).reshape(b, (h + 1) * s, (w + 1) * s, c)
        return full[:, s - 1 : s - 1 + size[0], s - 1 : s - 1 + size[1]]
