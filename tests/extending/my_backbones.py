"""A backbone of one's own: ConvNeXt (Liu et al., CVPR 2022), but for overlapping kernels where it reduces.

    model.backbone = dict(name="my_backbones:ConvNeXtConfig", depths=(3, 3, 9, 3), widths=(96, 192, 384, 768))

PAG, recurrent scene parsing and PixelNet take it as it is. PAG's gates (scope="residual") skip all that a
block costs, its depthwise 7x7 and its two linear layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from dynpix_jax.backbones.base import (
    DEFAULTS,
    BackboneConfig,
    BlockBackbone,
    BuildOptions,
    Stage,
    normalize,
)
from dynpix_jax.core.typing import Array
from dynpix_jax.nn.conv import Conv, DepthwiseConv
from dynpix_jax.nn.residual import Block, BlockSpec
from dynpix_jax.ops.sparse import Layer


@dataclass(frozen=True)
class ConvNeXtConfig(BackboneConfig):
    """Section ``model.backbone``: blocks and channels of the stages."""

    name: str = "my_backbones:ConvNeXtConfig"
    depths: tuple[int, ...] = (3, 3, 9, 3)
    widths: tuple[int, ...] = (96, 192, 384, 768)

    @property
    def block_specs(self) -> tuple[BlockSpec, ...]:
        specs, inside = [], self.widths[0]
        for number, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), 1):
            stage = f"stage{number}"
            if number > 1:  # reduces; it has no parts that could be skipped
                specs.append(BlockSpec(f"down{number}", stage, inside, width, width, strides=2, splits=False))
            blocks = [f"{stage}_{index + 1}" for index in range(depth)]
            specs += [BlockSpec(name, stage, width, width, width, frozen_norm=True) for name in blocks]
            inside = width
        return tuple(specs)

    @property
    def stages(self) -> tuple[Stage, ...]:
        return tuple(Stage(f"stage{n}", width, 2 ** (n + 1)) for n, width in enumerate(self.widths, 1))

    def preprocess(self, images: Array) -> Array:
        return normalize(images, "torch")

    def build(self, options: BuildOptions = DEFAULTS) -> nn.Module:
        return ConvNeXt(self, options)


def channel_norm(scale: Array, bias: Array, x: Array) -> Array:
    """Layer norm over the channels of each position."""
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * scale + bias


class ChannelNorm(nn.Module):
    """(..., features) -> the same; `layer` is what a sparse block takes of it."""

    features: int

    def setup(self) -> None:
        self.scale = self.param("scale", nn.initializers.ones_init(), (self.features,))
        self.bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))

    def layer(self) -> Layer:
        return Partial(channel_norm, self.scale, self.bias)

    def __call__(self, x: Array) -> Array:
        return channel_norm(self.scale, self.bias, x)


class ConvNeXtBlock(Block):
    """O = x + F3(F2(x)): a depthwise 7x7 and a norm, then two linear layers with a GELU between.

    Told as layers, which dense mode runs everywhere and sparse mode where a gate is on.
    """

    relu = False

    def setup(self) -> None:
        width = self.spec.features
        self.depthwise = DepthwiseConv(width, kernel_size=7)
        self.norm = ChannelNorm(width)
        self.widen = Conv(width, 4 * width, kernel_size=1, use_bias=True)
        self.narrow = Conv(4 * width, width, kernel_size=1, use_bias=True)
        self.scale = self.param("scale", nn.initializers.constant(0.1), (width,))

    def spatial_layers(self) -> tuple[Layer, ...]:
        return self.depthwise.layer(), self.norm.layer()

    def expand_layers(self) -> tuple[Layer, ...]:
        scale = Partial(jnp.multiply, self.scale)
        return self.widen.layer(), Partial(jax.nn.gelu), self.narrow.layer(), scale


class Downsample(Block):
    """A norm and a 3x3 convolution of stride 2."""

    def setup(self) -> None:
        self.norm = ChannelNorm(self.spec.in_features)
        self.conv = Conv(self.spec.in_features, self.spec.out_features, strides=2, use_bias=True)

    def __call__(self, x: Array, *, train: bool = False) -> Array:
        return self.conv(self.norm(x))


class ConvNeXt(BlockBackbone):
    """The network of a ConvNeXtConfig."""

    def setup_stem(self) -> None:
        width = self.config.widths[0]
        self.stem_conv = Conv(3, width, kernel_size=7, strides=4, use_bias=True)
        self.stem_norm = ChannelNorm(width)

    def stem(self, images: Array, *, train: bool) -> Array:
        return self.stem_norm(self.stem_conv(images))

    def make_block(self, spec: BlockSpec, **flax: Any) -> Block:
        return ConvNeXtBlock(spec, **flax) if spec.splits else Downsample(spec, **flax)
