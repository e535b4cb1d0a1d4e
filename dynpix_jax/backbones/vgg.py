"""VGG-16 (Simonyan and Zisserman, ICLR 2015): 13 convolutions, and fc6 and fc7 as convolutions.

Layer and parameter names are Caffe's: ``conv1_1`` ... ``conv5_3``, ``fc6``, ``fc7`` (the papers' conv-6 and
conv-7).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynpix_jax.backbones.base import DEFAULTS, BackboneConfig, BuildOptions, Stage
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.typing import Array
from dynpix_jax.nn.conv import Conv
from dynpix_jax.nn.norm import BatchNorm
from dynpix_jax.nn.remat import remat_unit

_BLOCKS = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))
"""(convolutions, channels as multiples of the first block's) of each block; a pooling follows each."""

FC_KERNEL = 7
"""Kernel size of fc6. The papers' "spatial padding of 3 cells" keeps the map's size."""


@dataclass(frozen=True)
class VGGConfig(BackboneConfig):
    """Section ``model.backbone`` of a VGG-16.

    Attributes:
        width: Channels of conv1 (64 as published).
        fc_features: Channels of fc6 and fc7 (4096 as published).
        pooling: How 2x2 pooling treats the last row or column of an odd size: ``ceil`` pools it alone
            (Caffe), ``floor`` drops it (torchvision).
        batch_norm: A norm between each of the 13 convolutions and its ReLU (vgg16_bn); fc6 and fc7 have none.
        dropout: Dropout rate after fc6 and fc7, in training; their features have it, too.
        preprocessing: Convention of the pretrained weights: ``caffe`` (BGR minus mean) or ``torch`` (RGB,
            mean, std).
        tap: A convolution's feature is the output (``relu``) or the input (``conv``) of its ReLU; those of
            fc6 and fc7 are the output, as in all networks that PixelNet's authors released.
    """

    width: int = 64
    fc_features: int = 4096
    pooling: Literal["ceil", "floor"] = "ceil"
    batch_norm: bool = False
    dropout: float = 0.5
    preprocessing: Literal["caffe", "torch"] = "caffe"
    tap: Literal["relu", "conv"] = "relu"
    name: str = field(default="vgg16", kw_only=True)

    def __post_init__(self) -> None:
        for name in ("width", "fc_features"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}; expected at least 1")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout: {self.dropout}; expected a share in [0, 1)")

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All 15 layers, bottom first."""
        convs = [
            Stage(f"conv{block}_{index}", self.width * multiple, 2 ** (block - 1))
            for block, (count, multiple) in enumerate(_BLOCKS, 1)
            for index in range(1, count + 1)
        ]
        return (*convs, *(Stage(name, self.fc_features, 32) for name in ("fc6", "fc7")))

    def build(self, options: BuildOptions = DEFAULTS) -> VGG:
        """The network up to the highest tap."""
        taps = options.taps
        names = tuple(stage.name for stage in self.stages)
        return VGG(self, names if taps is None else taps, unbiased=options.unbiased)


class VGG(nn.Module):
    """Preprocessed images (B, H, W, 3) -> {layer: (B, h, w, channels)} of the layers in ``taps``.

    Layers above the highest tap are not built. h and w are H and W over the layer's stride, rounded by
    ``config.pooling``. Training draws from the stream ``dropout`` (fc6, fc7).
    """

    config: VGGConfig
    taps: tuple[str, ...] = ("conv5_3",)
    unbiased: bool = False

    def setup(self) -> None:
        config = self.config
        names = [stage.name for stage in config.stages]
        self.stages = config.stages[: 1 + max(names.index(tap) for tap in self.taps)]
        convs, norms, in_features = [], [], 3
        for stage in self.stages:
            size = {"fc6": FC_KERNEL, "fc7": 1}.get(stage.name, 3)
            convs.append(Conv(in_features, stage.channels, size, use_bias=True, name=stage.name))
            if config.batch_norm and not stage.name.startswith("fc"):
                name = stage.name.replace("conv", "bn")
                norms.append(BatchNorm(stage.channels, unbiased=self.unbiased, name=name))
            in_features = stage.channels
        self.convs, self.norms = convs, norms
        self.drop = nn.Dropout(config.dropout)

    def __call__(self, images: Array, *, train: bool = False) -> dict[str, Array]:
        x = images
        features: dict[str, Array] = {}
        for stride in dict.fromkeys(stage.stride for stage in self.stages):
            x, found = self.block(x, stride, train=train)
            features |= found
        return features

    @remat_unit("stages", "blocks")
    def block(self, x: Array, stride: int, *, train: bool) -> tuple[Array, dict[str, Array]]:
        """The layers of one stride, with the pooling below: the last one's output, and the features."""
        features: dict[str, Array] = {}
        x = x if stride == 1 else self._pool(x)
        for index, (stage, conv) in enumerate(zip(self.stages, self.convs, strict=True)):
            if stage.stride != stride:
                continue
            x = conv(x)
            if index < len(self.norms):
                x = self.norms[index](x, train=train)
            activated = jax.nn.relu(x)
            if stage.name.startswith("fc"):
                activated = x = self.drop(activated, deterministic=not train)
            if stage.name in self.taps:
                features[stage.name] = x if self.config.tap == "conv" else activated
            x = activated
        return x, features

    def _pool(self, x: Array) -> Array:
        height, width = x.shape[1:3]
        ends = (height % 2, width % 2) if self.config.pooling == "ceil" else (0, 0)
        if min(height, width) < 2 and self.config.pooling == "floor":
            raise UserError(f"VGG: images too small: a map of {height}x{width} cells is to be pooled")
        x = jnp.asarray(x)
        return nn.max_pool(x, (2, 2), (2, 2), ((0, ends[0]), (0, ends[1])))
