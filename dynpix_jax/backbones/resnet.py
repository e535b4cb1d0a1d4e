"""ResNet-18 to -101 as dense feature extractors, and SE-ResNets with modules per task (ASTMT).

Dilations are those of PAG's backbone (section 4). Stages are named as in the papers: the stem (a 7x7
convolution or three 3x3, each with norm and ReLU, then pooling) counts as the first, the macro blocks are
``res2`` ... ``res5``, their blocks ``res4_1``, ``res4_2``, ...
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from dynpix_jax.backbones.base import (
    DEFAULTS,
    BackboneConfig,
    BlockBackbone,
    BuildOptions,
    Convention,
    RunBlock,
    Stage,
    stages_of,
)
from dynpix_jax.core.typing import Array
from dynpix_jax.nn.conv import Conv
from dynpix_jax.nn.norm import BatchNorm
from dynpix_jax.nn.residual import BasicBlock, Block, Bottleneck, ResidualSpec

_STAGES = ("res2", "res3", "res4", "res5")
_BLOCKS = {18: (2, 2, 2, 2), 26: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
_BASIC = (18, 34)


@dataclass(frozen=True)
class ResNetConfig(BackboneConfig):
    """Section ``model.backbone`` of a ResNet.

    Attributes:
        depth: 18, 26, 34, 50 or 101.
        width: Channels of the stem (64 in the published networks).
        output_stride: 8, 16 or 32.
        stride_in_1x1: A bottleneck's stride is on its first 1x1 (Caffe), otherwise on its 3x3 (torchvision).
        frozen_norm: Norms use their stored moments in training too.
        preprocessing: Convention of the pretrained weights: ``caffe`` (BGR minus mean), ``torch`` (RGB, mean,
            std) or ``none`` (raw RGB, as ASTMT's released networks).
        se: Squeeze-and-excitation in every bottleneck (SE-ResNet).
        deep_stem: Three 3x3 convolutions, the last of 2 * width channels, in place of the 7x7: PSPNet's
            ResNet, which PAG's is, too. At output stride 8 it adds 7 % to the MACs of a ResNet-50.
    """

    depth: int = 50
    width: int = 64
    output_stride: int = 8
    stride_in_1x1: bool = True
    frozen_norm: bool = True
    preprocessing: Convention = "caffe"
    se: bool = False
    deep_stem: bool = False
    name: str = field(default="resnet", kw_only=True)

    def unread(self) -> Mapping[str, str]:
        """Options that are not read, and why."""
        reason = f"a ResNet-{self.depth} has no bottlenecks"
        return {"stride_in_1x1": reason} if self.depth in _BASIC else {}

    def __post_init__(self) -> None:
        if self.depth not in _BLOCKS:
            raise ValueError(f"depth: {self.depth}; expected one of {sorted(_BLOCKS)}")
        if self.width < 1:
            raise ValueError(f"width: {self.width}; expected at least 1")
        if self.output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride: {self.output_stride}; expected 8, 16 or 32")
        if self.se and self.depth in _BASIC:
            raise ValueError(f"se: depth {self.depth} has no bottlenecks; expected depth 26, 50 or 101")

    @property
    def stem_features(self) -> tuple[int, ...]:
        """Channels of the stem's convolutions."""
        return (self.width, self.width, 2 * self.width) if self.deep_stem else (self.width,)

    @property
    def block_specs(self) -> tuple[ResidualSpec, ...]:
        """The blocks of res2 ... res5, in order.

        A stage beyond the output stride keeps its resolution and dilates its 3x3 instead. In its first block,
        the first 3x3 has the stage's dilation if the removed stride was before it (``stride_in_1x1``), and
        the previous stage's if the stride was on it. This keeps the pretrained network's responses exactly,
        and samples them more densely.
        """
        basic = self.depth in _BASIC
        specs: list[ResidualSpec] = []
        in_features, stride, dilation = self.stem_features[-1], 4, 1
        for number, count in enumerate(_BLOCKS[self.depth]):
            features = self.width * 2**number
            out_features = features if basic else 4 * features
            strides, first_dilation = (2, dilation) if number else (1, 1)
            if strides == 2 and stride == self.output_stride:
                strides, dilation = 1, dilation * 2
                if self.stride_in_1x1 and not basic:
                    first_dilation = dilation
            stride *= strides
            for index in range(count):
                own_strides = strides if index == 0 else 1
                specs.append(
                    ResidualSpec(
                        name=f"{_STAGES[number]}_{index + 1}",
                        stage=_STAGES[number],
                        in_features=in_features,
                        features=features,
                        out_features=out_features,
                        strides=own_strides,
                        dilation=first_dilation if index == 0 else dilation,
                        splits=not basic and not self.se and (own_strides == 1 or self.stride_in_1x1),
                        rectified=True,  # by the block below, or by the stem, whose pooling keeps that
                        stage_dilation=dilation,
                        stride_in_1x1=self.stride_in_1x1,
                        frozen_norm=self.frozen_norm,
                        se=self.se,
                    )
                )
                in_features = out_features
        return tuple(specs)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """res2 ... res5."""
        return stages_of(self.block_specs, 4)

    @property
    def per_task(self) -> frozenset[str]:
        """Norms and adapters of bottlenecks, and SE with ``se``."""
        if self.depth in _BASIC:
            return frozenset()
        return frozenset({"norm", "adapters", "se"} if self.se else {"norm", "adapters"})

    def build(self, options: BuildOptions = DEFAULTS) -> ResNet:
        """The network without its classifier."""
        return ResNet(self, options)


class ResNet(BlockBackbone):
    """The network of a ResNetConfig; see BlockBackbone. With ``classes`` it returns "logits" too.

    The stem's layers are ``stem_conv`` and ``stem_bn``; of a deep one also ``stem_conv2``, ``stem_bn2``, ...
    """

    classes: int | None = None

    def setup_stem(self) -> None:
        config = self.config
        layers: list[tuple[Conv, BatchNorm]] = []
        in_features = 3
        for index, features in enumerate(config.stem_features):
            suffix = str(index + 1) if index else ""
            # The first convolution halves the resolution.
            conv = Conv(
                in_features,
                features,
                3 if config.deep_stem else 7,
                1 if index else 2,
                name=f"stem_conv{suffix}",
            )
            norm = partial(BatchNorm, frozen=config.frozen_norm, unbiased=self.options.unbiased)
            layers.append((conv, norm(features, name=f"stem_bn{suffix}")))
            in_features = features
        self.stem_layers = layers
        if self.classes is not None:
            self.fc = nn.Dense(self.classes)

    def stem(self, images: Array, *, train: bool) -> Array:
        x = images
        for conv, norm in self.stem_layers:
            x = jax.nn.relu(norm(conv(x), train=train))
        return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

    def make_block(self, spec: ResidualSpec, **flax: Any) -> Block:  # type: ignore[override]
        if self.config.depth in _BASIC:
            return BasicBlock(spec, unbiased=self.options.unbiased, **flax)
        return Bottleneck(spec, self.options.own, unbiased=self.options.unbiased, **flax)

    def run(
        self, images: Array, run_block: RunBlock, *, train: bool = False
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        features, told = super().run(images, run_block, train=train)
        if self.classes is not None:
            features["logits"] = self.fc(features[_STAGES[-1]].mean((1, 2)))
        return features, told
