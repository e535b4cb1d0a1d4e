"""Convolutions that skip what is already certain (Liu et al., section 3.4): layers between two exits."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from dynpix_jax.nn.conv import Conv
from dynpix_jax.nn.norm import BatchNorm
from dynpix_jax.nn.routing import Mode
from dynpix_jax.ops.interpolation import Normalize, interpolate_masked
from dynpix_jax.ops.perforated_conv import perforated_conv
from dynpix_jax.ops.resize import resize_nearest
from dynpix_jax.typing import Array, Mask

Record = Callable[[tuple[int, int], float, int], None]

LAMBDA = 3.0
"""Initial value of every interpolation's lam (released code)."""


@flax.struct.dataclass
class Masking:
    """Where the convolutions between two exits compute, and how the other positions are filled.

    mask: bool (B, h, w) at the resolution of the exits, True = compute. radius, normalize: see
    ops.interpolate_masked. mode: "dense" computes everywhere, "sparse" at active positions only.
    record: told of every convolution that takes the mask: (H, W) of its output, MACs an image, features.
    """

    mask: Mask
    radius: int = flax.struct.field(pytree_node=False, default=3)
    normalize: Normalize = flax.struct.field(pytree_node=False, default="full")
    mode: Mode = flax.struct.field(pytree_node=False, default="dense")
    record: Record | None = flax.struct.field(pytree_node=False, default=None)

    def at(self, size: tuple[int, int]) -> Mask:
        """The mask at another resolution: of every cell of positions the one at the top left."""
        return resize_nearest(self.mask, size)

    def fill(self, y: Array, lam: Array) -> Array:
        """What a convolution gives, (B, H, W, C), with the skipped positions interpolated (section 3.4)."""
        mask = self.at((y.shape[1], y.shape[2]))
        return interpolate_masked(y, mask, lam, radius=self.radius, normalize=self.normalize)


class MaskedConv(nn.Module):
    """`Conv` that computes where a mask says so and interpolates elsewhere, with a trainable ``lam``.

    Without ``adaptive`` there is no ``lam``, and masks are not taken.
    """

    in_features: int
    features: int
    kernel_size: int = 3
    strides: int = 1
    use_bias: bool = False
    adaptive: bool = False

    def setup(self) -> None:
        self.conv = Conv(
            self.in_features, self.features, self.kernel_size, self.strides, use_bias=self.use_bias
        )
        if self.adaptive:
            self.lam = self.param("lam", nn.initializers.constant(LAMBDA), (), jnp.float32)

    def __call__(self, x: Array, masking: Masking | None = None) -> Array:
        """(B, H, W, in_features) -> (B, H', W', features)."""
        if masking is None:
            return self.conv(x)
        if masking.record is not None:
            size = (-(-x.shape[1] // self.strides), -(-x.shape[2] // self.strides))
            macs = float(self.kernel_size**2 * self.in_features * self.features * size[0] * size[1])
            masking.record(size, macs, self.features)
        if masking.mode == "dense":
            return masking.fill(self.conv(x), self.lam)
        strides = (self.strides, self.strides)
        mask = masking.at((-(-x.shape[1] // self.strides), -(-x.shape[2] // self.strides)))
        y = perforated_conv(x, self.conv.kernel, mask, bias=self.conv.bias, strides=strides)
        return masking.fill(y, self.lam)


class ConvNorm(nn.Module):
    """Masked convolution, batch norm, and (``relu``) ReLU."""

    in_features: int
    features: int
    kernel_size: int = 3
    strides: int = 1
    relu: bool = True
    use_bias: bool = False
    frozen_norm: bool = False
    momentum: float = 0.9
    adaptive: bool = False

    def setup(self) -> None:
        self.conv = MaskedConv(
            self.in_features, self.features, self.kernel_size, self.strides, self.use_bias, self.adaptive
        )
        self.bn = BatchNorm(self.features, self.frozen_norm, self.momentum)

    def __call__(self, x: Array, masking: Masking | None = None, *, train: bool = False) -> Array:
        y = self.bn(self.conv(x, masking), train=train)
        return jax.nn.relu(y) if self.relu else y
