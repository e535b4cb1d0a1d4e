"""Convolution layers with explicit input width, so that fused sparse code can read their kernels."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax.nn.initializers import Initializer

from dynpix_jax.core.typing import Array
from dynpix_jax.nn.parameters import parameter
from dynpix_jax.ops.columns import wide_kernel
from dynpix_jax.ops.conv import conv
from dynpix_jax.ops.depthwise import depthwise_conv
from dynpix_jax.ops.sparse import Convolution, Depthwise

he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Conv(nn.Module):
    """2-D convolution, (B, H, W, in_features) -> (B, H', W', features).

    Padding is PyTorch's ``dilation * (kernel_size // 2)`` on every side, so an odd kernel at stride 1 keeps
    the size. A 1x1 kernel runs as a matrix product: its gradients on a CPU are several times faster that way.
    """

    in_features: int
    features: int
    kernel_size: int = 3
    strides: int = 1
    dilation: int = 1
    use_bias: bool = False
    kernel_init: Initializer = he_normal
    bias_init: Initializer = nn.initializers.zeros_init()

    def setup(self) -> None:
        shape = (self.kernel_size, self.kernel_size, self.in_features, self.features)
        self.kernel = parameter(self, "kernel", self.kernel_init, shape)
        self.bias = parameter(self, "bias", self.bias_init, (self.features,)) if self.use_bias else None

    def __call__(self, x: Array) -> Array:
        strides, dilation = (self.strides, self.strides), (self.dilation, self.dilation)
        return conv(x, self.kernel.astype(x.dtype), strides=strides, dilation=dilation, bias=self.bias)

    def side_by_side(self, x: Array, count: int) -> Array:
        """The same of a map whose columns are `together`, for a stride and dilation of 1 (`ops.columns`)."""
        if count == 1:
            return self(x)
        y = conv(x, wide_kernel(self.kernel, count).astype(x.dtype))
        return y if self.bias is None else (y + jnp.tile(self.bias, count)).astype(y.dtype)

    def layer(self) -> Convolution:
        """The module as a layer of `ops.sparse_block`."""
        strides, dilation = (self.strides, self.strides), (self.dilation, self.dilation)
        return Convolution(self.kernel, self.bias, strides, dilation)


class DepthwiseConv(nn.Module):
    """Depthwise convolution with the padding of `Conv`, (B, H, W, features) -> (B, H', W', features)."""

    features: int
    kernel_size: int = 3
    strides: int = 1
    dilation: int = 1

    def setup(self) -> None:
        # A channel's outputs depend on its own inputs only: the fan is the kernel's size.
        init = nn.initializers.normal((2.0 / self.kernel_size**2) ** 0.5)
        self.kernel = parameter(self, "kernel", init, (self.kernel_size, self.kernel_size, 1, self.features))

    def __call__(self, x: Array) -> Array:
        strides, dilation = (self.strides, self.strides), (self.dilation, self.dilation)
        return depthwise_conv(x, self.kernel.astype(x.dtype), strides=strides, dilation=dilation)

    def layer(self) -> Depthwise:
        """The module as a layer of `ops.sparse_block`."""
        return Depthwise(self.kernel, (self.strides, self.strides), (self.dilation, self.dilation))
