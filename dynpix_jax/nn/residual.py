"""Residual blocks of ResNet (He et al., CVPR 2016), split into F1, F2 and F3 of PAG's eq. 2."""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax

from dynpix_jax.core.typing import Array
from dynpix_jax.nn.conv import Conv
from dynpix_jax.nn.norm import BatchNorm


@dataclass(frozen=True)
class BlockSpec:
    """What a residual block must know. ``features`` is the width of its 3x3 convolution.

    ``name`` follows the papers: ``res4_2`` is the second block of the macro block Res4. ``dilation`` is that
    of its (first) 3x3; ``stage_dilation`` that of the stage's later layers, which a BasicBlock's second 3x3
    already has. ``momentum`` is that of the norms' running averages. ``rectified``: its input comes from a
    ReLU, so that a block which skips positions need not apply its own there.
    """

    name: str
    in_features: int
    features: int
    strides: int = 1
    dilation: int = 1
    stage_dilation: int = 1
    stride_in_1x1: bool = True
    frozen_norm: bool = False
    expansion: int = 4
    momentum: float = 0.9
    rectified: bool = False

    @property
    def out_features(self) -> int:
        """Channels of the block's output."""
        return self.features * self.expansion

    @property
    def needs_projection(self) -> bool:
        """Whether the shortcut must change shape."""
        return self.strides != 1 or self.in_features != self.out_features


class Bottleneck(nn.Module):
    """O = ReLU(I + F3(F2(F1(I)))): 1x1 reduce, 3x3, 1x1 expand, each with batch norm.

    The stride sits on F1 (``stride_in_1x1``, the Caffe networks of the papers) or on F2 (torchvision).
    (B, H, W, in_features) -> (B, ceil(H / strides), ceil(W / strides), 4 * features).
    """

    spec: BlockSpec

    def setup(self) -> None:
        spec = self.spec
        first, second = (spec.strides, 1) if spec.stride_in_1x1 else (1, spec.strides)
        self.conv1 = Conv(spec.in_features, spec.features, 1, first)
        self.bn1 = BatchNorm(spec.features, spec.frozen_norm, spec.momentum)
        self._setup_spatial(second)
        self.conv3 = Conv(spec.features, spec.out_features, 1)
        self.bn3 = BatchNorm(spec.out_features, spec.frozen_norm, spec.momentum)
        if spec.needs_projection:
            self.projection = Conv(spec.in_features, spec.out_features, 1, spec.strides)
            self.projection_bn = BatchNorm(spec.out_features, spec.frozen_norm, spec.momentum)

    def _setup_spatial(self, strides: int) -> None:
        self.conv2 = Conv(self.spec.features, self.spec.features, 3, strides, self.spec.dilation)
        self.bn2 = BatchNorm(self.spec.features, self.spec.frozen_norm, self.spec.momentum)

    def reduce(self, x: Array, *, train: bool) -> Array:
        """F1: 1x1 convolution, norm, ReLU."""
        return jax.nn.relu(self.bn1(self.conv1(x), train=train))

    def spatial(self, x: Array, *, train: bool) -> Array:
        """F2: 3x3 convolution, norm, ReLU."""
        return jax.nn.relu(self.bn2(self.conv2(x), train=train))

    def expand(self, x: Array, *, train: bool) -> Array:
        """F3: 1x1 convolution, norm."""
        return self.bn3(self.conv3(x), train=train)

    def shortcut(self, x: Array, *, train: bool) -> Array:
        """I, projected where the block changes the shape."""
        if not self.spec.needs_projection:
            return x
        return self.projection_bn(self.projection(x), train=train)

    def __call__(self, x: Array, *, train: bool = False) -> Array:
        z = self.expand(self.spatial(self.reduce(x, train=train), train=train), train=train)
        return jax.nn.relu(self.shortcut(x, train=train) + z)


class BasicBlock(nn.Module):
    """O = ReLU(I + F2(F1(I))) with two 3x3 convolutions (ResNet-18 and -34); ``spec.expansion`` is 1."""

    spec: BlockSpec

    def setup(self) -> None:
        spec = self.spec
        self.conv1 = Conv(spec.in_features, spec.features, 3, spec.strides, spec.dilation)
        self.bn1 = BatchNorm(spec.features, spec.frozen_norm, spec.momentum)
        self.conv2 = Conv(spec.features, spec.features, 3, 1, spec.stage_dilation)
        self.bn2 = BatchNorm(spec.features, spec.frozen_norm, spec.momentum)
        if spec.needs_projection:
            self.projection = Conv(spec.in_features, spec.features, 1, spec.strides)
            self.projection_bn = BatchNorm(spec.features, spec.frozen_norm, spec.momentum)

    def __call__(self, x: Array, *, train: bool = False) -> Array:
        y = jax.nn.relu(self.bn1(self.conv1(x), train=train))
        y = self.bn2(self.conv2(y), train=train)
        if self.spec.needs_projection:
            x = self.projection_bn(self.projection(x), train=train)
        return jax.nn.relu(x + y)
