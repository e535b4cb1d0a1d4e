"""Learned up-sampling (deconvolution) written as one matrix product."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from dynpix_jax.ops.pointwise import pointwise
from dynpix_jax.typing import Array


def bilinear_taps(stride: int) -> Array:
    """Triangle of width 2 * stride - 1 (and one zero) whose peak, 1, lies on the input cell: (2 * stride,)."""
    return jnp.maximum(1.0 - jnp.abs(jnp.arange(2 * stride) - (stride - 1.0)) / stride, 0.0)


class Deconv(nn.Module):
    """Transposed convolution by ``stride``: (B, h, w, features) -> (B, H, W, features) for ``size`` = (H, W).

    The kernel has 2 * stride taps a side and starts as bilinear interpolation of every channel. Output pixel
    ``stride * i`` lies on input cell ``i``, which is where a ResNet's padding puts its features (a centred
    deconvolution would shift the map by (stride - 1) / 2 pixels). Every input cell is multiplied once with the whole
    kernel, and the four overlapping blocks are added: no zero-stuffed convolution, which is slow on a CPU.
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
        b, h, w, _ = x.shape
        # (y block, y in block, x block, x in block, in, out) -> in, (y block, x block, y, x, out)
        matrix = kernel.reshape(2, s, 2, s, c, c).transpose(4, 0, 2, 1, 3, 5).reshape(c, -1)
        blocks = pointwise(x, matrix).reshape(b, h, w, 2, 2, s, s, c)
        padded = sum(
            jnp.pad(blocks[:, :, :, i, j], ((0, 0), (i, 1 - i), (j, 1 - j), (0, 0), (0, 0), (0, 0)))
            for i in (0, 1)
            for j in (0, 1)
        )
        full = padded.transpose(0, 1, 3, 2, 4, 5).reshape(b, (h + 1) * s, (w + 1) * s, c)
        return full[:, s - 1 : s - 1 + size[0], s - 1 : s - 1 + size[1]]
