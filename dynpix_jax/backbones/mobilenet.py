"""MobileNetV2 (Sandler et al., CVPR 2018) as a dense feature extractor, with or without SE.

Parameter names: ``stem_conv``, ``stem_bn``, ``block_1`` ... ``block_17`` (torchvision's ``features.1`` ...).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

import jax
from jax.nn.initializers import normal
from jax.tree_util import Partial

from dynpix_jax.backbones.base import DEFAULTS, BackboneConfig, BlockBackbone, BuildOptions, Stage, stages_of
from dynpix_jax.core.typing import Array
from dynpix_jax.nn.conv import Conv, DepthwiseConv
from dynpix_jax.nn.norm import BatchNorm
from dynpix_jax.nn.per_task import SHARED, Modulation, SqueezeExcite, of_task, per_task, task_norm
from dynpix_jax.nn.residual import Block, BlockSpec
from dynpix_jax.ops.sparse import Layer

STEM = 32
# Expansion, channels, blocks, stride of the first (the paper's table 2), and the stage of the same stride.
_GROUPS = (
    (1, 16, 1, 1, "stage1"), (6, 24, 2, 2, "stage2"), (6, 32, 3, 2, "stage3"), (6, 64, 4, 2, "stage4"),
    (6, 96, 3, 1, "stage4"), (6, 160, 3, 2, "stage5"), (6, 320, 1, 1, "stage5"),
)  # fmt: skip
REDUCTION = 4
SMALL = normal(0.01)
"""Initializer of the SE's kernels, as released by ASTMT."""


@dataclass(frozen=True)
class MobileNetConfig(BackboneConfig):
    """Section ``model.backbone`` of a MobileNetV2.

    Attributes:
        width: Channels relative to the published network's.
        output_stride: 8, 16 or 32.
        first_dilated: The first block after a removed stride has its stage's dilation already, as ASTMT
            released it. Otherwise it keeps the one before, and with it the responses of pretrained weights.
        frozen_norm: Norms use their stored moments in training too.
        se: Squeeze-and-excitation after every block (SE-MobileNetV2, which ASTMT pretrains); torchvision's
            weights have none.
        preprocessing: Convention of the pretrained weights: ``torch`` (RGB, mean, std) or ``none`` (raw RGB,
            as ASTMT's released networks).
    """

    width: float = 1.0
    output_stride: int = 16
    first_dilated: bool = True
    frozen_norm: bool = False
    se: bool = True
    preprocessing: Literal["torch", "none"] = "torch"
    name: str = field(default="mobilenetv2", kw_only=True)

    def __post_init__(self) -> None:
        if not self.width > 0.0:
            raise ValueError(f"width: {self.width}; expected a positive number")
        if self.output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride: {self.output_stride}; expected 8, 16 or 32")

    def unread(self) -> Mapping[str, str]:
        """Options that are not read, and why."""
        why = "no stride is removed at output_stride 32"
        return {"first_dilated": why} if self.output_stride == 32 else {}

    @property
    def block_specs(self) -> tuple[BlockSpec, ...]:
        """The 17 blocks. Beyond the output stride, depthwise kernels are dilated instead of strided."""
        specs: list[BlockSpec] = []
        in_features, stride, dilation = self._scaled(STEM), 2, 1
        for expansion, channels, count, first, stage in _GROUPS:
            before = dilation
            strides, features = first, self._scaled(channels)
            if first == 2 and stride == self.output_stride:
                strides, dilation = 1, 2 * dilation
            stride *= strides
            for index in range(count):
                own_strides = strides if index == 0 else 1
                specs.append(
                    BlockSpec(
                        name=f"block_{len(specs) + 1}",
                        stage=stage,
                        in_features=in_features,
                        features=expansion * in_features,
                        out_features=features,
                        strides=own_strides,
                        dilation=dilation if index or self.first_dilated else before,
                        splits=not self.se and own_strides == 1 and in_features == features,
                        frozen_norm=self.frozen_norm,
                    )
                )
                in_features = features
        return tuple(specs)

    def _scaled(self, channels: int) -> int:
        return max(int(channels * self.width), 1)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """stage1 ... stage5, at strides 2 to 32 (or the output stride)."""
        return stages_of(self.block_specs, 2)

    @property
    def per_task(self) -> frozenset[str]:
        """Norms, and SE if the blocks have it."""
        return frozenset({"norm", "se"} if self.se else {"norm"})

    def build(self, options: BuildOptions = DEFAULTS) -> MobileNetV2:
        """The network, without the classifier and the 1x1 convolution before it."""
        return MobileNetV2(self, options)


class InvertedResidual(Block):
    """1x1 to ``features`` (unless the input is as wide), depthwise 3x3, 1x1 to ``out_features``, with norms.

    ReLU6 follows the first two. Then SE, and the input is added if the shape is unchanged.
    """

    relu: ClassVar[bool] = False
    excited: bool = False
    own: Modulation = SHARED
    unbiased: bool = False

    def setup(self) -> None:
        spec, own = self.spec, self.own
        norm = partial(task_norm, own, frozen=spec.frozen_norm, unbiased=self.unbiased)
        self.widens = spec.features != spec.in_features
        if self.widens:
            self.expand_conv = Conv(spec.in_features, spec.features, 1, name="expand")
            self.expand_bn = norm(spec.features)
        self.depthwise = DepthwiseConv(spec.features, 3, spec.strides, spec.dilation)
        self.depthwise_bn = norm(spec.features)
        self.project = Conv(spec.features, spec.out_features, 1)
        self.project_bn = norm(spec.out_features)
        if self.excited:
            excite = partial(SqueezeExcite, spec.out_features, REDUCTION, jax.nn.relu6, SMALL)
            self.se = per_task(own.tasks, excite, own=own.se)

    def reduce(self, x: Array, *, train: bool, task: str = "") -> Array:
        """F1: the 1x1 convolution that widens, norm, ReLU6."""
        if not self.widens:
            return x
        return jax.nn.relu6(of_task(self.expand_bn, task)(self.expand_conv(x), train=train))

    def spatial(self, x: Array, *, train: bool, task: str = "") -> Array:
        """F2: depthwise convolution, norm, ReLU6."""
        return jax.nn.relu6(of_task(self.depthwise_bn, task)(self.depthwise(x), train=train))

    def expand(self, x: Array, *, train: bool, task: str = "") -> Array:
        """F3: the 1x1 convolution that narrows, norm, SE."""
        y = of_task(self.project_bn, task)(self.project(x), train=train)
        return of_task(self.se, task)(y) if self.excited else y

    def join(self, identity: Array, update: Array) -> Array:
        """The sum if the block keeps the shape, else the update."""
        return update if self.spec.needs_projection else identity + update

    def spatial_layers(self) -> tuple[Layer, ...]:
        """F2."""
        return self.depthwise.layer(), self.depthwise_bn.layer(), Partial(jax.nn.relu6)

    def expand_layers(self) -> tuple[Layer, ...]:
        """F3."""
        return self.project.layer(), self.project_bn.layer()

    def __call__(self, x: Array, task: str = "", *, train: bool = False) -> Array:
        """The whole block, with the modules of ``task``."""
        y = self.spatial(self.reduce(x, train=train, task=task), train=train, task=task)
        return self.join(x, self.expand(y, train=train, task=task))


class MobileNetV2(BlockBackbone):
    """The network of a MobileNetConfig; see BlockBackbone."""

    def setup_stem(self) -> None:
        width = self.config.block_specs[0].in_features
        self.stem_conv = Conv(3, width, 3, 2)
        self.stem_bn = BatchNorm(width, frozen=self.config.frozen_norm, unbiased=self.options.unbiased)

    def stem(self, images: Array, *, train: bool) -> Array:
        return jax.nn.relu6(self.stem_bn(self.stem_conv(images), train=train))

    def make_block(self, spec: BlockSpec, **flax: Any) -> Block:
        return InvertedResidual(
            spec, excited=self.config.se, own=self.options.own, unbiased=self.options.unbiased, **flax
        )
