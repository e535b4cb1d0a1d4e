"""MobileNetV2 (Sandler et al., CVPR 2018) as a dense feature extractor, with squeeze-and-excitation or not.

Parameter names: ``stem_conv``, ``stem_bn``, ``block_1`` ... ``block_17`` (torchvision's ``features.1`` ...).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax

from dynpix_jax.backbones.resnet import StageInfo
from dynpix_jax.core.typing import Array
from dynpix_jax.nn.conv import Conv, DepthwiseConv
from dynpix_jax.nn.norm import BatchNorm
from dynpix_jax.nn.per_task import SHARED, Modulation, SqueezeExcite, of_task, per_task, task_norm

STEM = 32
# Expansion, channels, blocks, stride of the first (the paper's table 2).
_STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip
LOW = 3
"""The last block at stride 4, whose output is the low-level feature."""
REDUCTION = 4


@dataclass(frozen=True)
class MobileNetConfig:
    """Section ``model.mobilenet``.

    width: channels relative to the published network's. output_stride: 8, 16 or 32. frozen_norm: stored
    moments in training too. se: squeeze-and-excitation after every block (SE-MobileNetV2, which ASTMT
    pretrains); torchvision's weights have none.
    """

    width: float = 1.0
    output_stride: int = 16
    frozen_norm: bool = False
    se: bool = True

    def __post_init__(self) -> None:
        if not self.width > 0.0:
            raise ValueError(f"width: {self.width}; expected a positive number")
        if self.output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride: {self.output_stride}; expected 8, 16 or 32")


@dataclass(frozen=True)
class InvertedSpec:
    """An inverted residual block: ``hidden`` channels between two narrow ends."""

    name: str
    in_features: int
    hidden: int
    features: int
    strides: int
    dilation: int


def block_specs(config: MobileNetConfig) -> tuple[InvertedSpec, ...]:
    """The 17 blocks. Beyond the output stride, depthwise kernels are dilated in place of a stride; the first
    block after a removed stride still has the dilation before it, so that pretrained responses are kept.
    """

    def scaled(channels: int) -> int:
        return max(int(channels * config.width), 1)

    specs: list[InvertedSpec] = []
    in_features, stride, dilation = scaled(STEM), 2, 1
    for expansion, channels, count, first in _STAGES:
        before = dilation
        strides = first
        if first == 2 and stride == config.output_stride:
            strides, dilation = 1, 2 * dilation
        stride *= strides
        for index in range(count):
            specs.append(
                InvertedSpec(
                    f"block_{len(specs) + 1}",
                    in_features,
                    expansion * in_features,
                    scaled(channels),
                    strides if index == 0 else 1,
                    before if index == 0 else dilation,
                )
            )
            in_features = scaled(channels)
    return tuple(specs)


def feature_info(config: MobileNetConfig) -> tuple[StageInfo, StageInfo]:
    """Channels and stride of ``low`` and ``high``."""
    specs = block_specs(config)
    return (
        StageInfo("low", specs[LOW - 1].features, 4),
        StageInfo("high", specs[-1].features, config.output_stride),
    )


class InvertedResidual(nn.Module):
    """1x1 to ``hidden`` (unless it is as wide already), depthwise 3x3, 1x1 to ``features``, each with norm;
    ReLU6 after the first two. SE, then the input is added where the shape stays.
    """

    spec: InvertedSpec
    config: MobileNetConfig
    modulation: Modulation = SHARED

    def setup(self) -> None:
        spec, own = self.spec, self.modulation
        norm = partial(task_norm, own, frozen=self.config.frozen_norm)
        if spec.hidden != spec.in_features:
            self.expand = Conv(spec.in_features, spec.hidden, 1)
            self.expand_bn = norm(spec.hidden)
        self.depthwise = DepthwiseConv(spec.hidden, 3, spec.strides, spec.dilation)
        self.depthwise_bn = norm(spec.hidden)
        self.project = Conv(spec.hidden, spec.features, 1)
        self.project_bn = norm(spec.features)
        if self.config.se:
            excite = partial(SqueezeExcite, spec.features, REDUCTION, jax.nn.relu6)
            self.se = per_task(own.se, own.tasks, excite)

    def __call__(self, x: Array, task: str = "", *, train: bool = False) -> Array:
        y = x
        if self.spec.hidden != self.spec.in_features:
            y = jax.nn.relu6(of_task(self.expand_bn, task)(self.expand(y), train=train))
        y = jax.nn.relu6(of_task(self.depthwise_bn, task)(self.depthwise(y), train=train))
        y = of_task(self.project_bn, task)(self.project(y), train=train)
        if self.config.se:
            y = of_task(self.se, task)(y)
        same = self.spec.strides == 1 and self.spec.in_features == self.spec.features
        return x + y if same else y


class MobileNetV2(nn.Module):
    """Preprocessed images (B, H, W, 3) -> {"low": stride 4, "high": the last block's}.

    The 1x1 convolution to 1280 channels above the blocks is the classifier's and left out.
    """

    config: MobileNetConfig
    modulation: Modulation = SHARED

    def setup(self) -> None:
        specs = block_specs(self.config)
        self.stem_conv = Conv(3, specs[0].in_features, 3, 2)
        self.stem_bn = BatchNorm(specs[0].in_features, self.config.frozen_norm)
        for spec in specs:
            setattr(self, spec.name, InvertedResidual(spec, self.config, self.modulation))

    def __call__(self, images: Array, task: str = "", *, train: bool = False) -> dict[str, Array]:
        x = jax.nn.relu6(self.stem_bn(self.stem_conv(images), train=train))
        features: dict[str, Array] = {}
        for index, spec in enumerate(block_specs(self.config), 1):
            x = getattr(self, spec.name)(x, task, train=train)
            if index == LOW:
                features["low"] = x
        return features | {"high": x}
