"""ResNet (He et al., CVPR 2016) as a dense feature extractor: output stride 32, 16 or 8 by dilation.

Parameter names: ``stem_conv``, ``stem_bn``, ``res2_1`` ... ``res5_3`` (the papers' names for the blocks),
``fc``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.typing import Array
from dynpix_jax.nn.conv import Conv
from dynpix_jax.nn.norm import BatchNorm
from dynpix_jax.nn.residual import BasicBlock, BlockSpec, Bottleneck

STAGES = ("res2", "res3", "res4", "res5")
_BLOCKS = {18: (2, 2, 2, 2), 26: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
_BASIC = (18, 34)

# Means of the original Caffe networks, RGB order, images in 0..255 (reference: He et al.'s released models).
CAFFE_MEAN_RGB = (123.68, 116.779, 103.939)
IMAGENET_MEAN_RGB = (0.485, 0.456, 0.406)
IMAGENET_STD_RGB = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class StageInfo:
    """One macro block of a backbone: its name, output channels, and stride relative to the image."""

    name: str
    channels: int
    stride: int


@dataclass(frozen=True)
class BackboneConfig:
    """Section ``model.backbone``.

    depth: 18, 26, 34, 50 or 101. width: channels of the stem (64 in the published networks).
    output_stride: 8, 16 or 32. stride_in_1x1: stride on a bottleneck's first 1x1 (Caffe) or its 3x3
    (torchvision). frozen_norm: stored moments in training too.
    preprocessing: what the pretrained weights expect, ``caffe`` (BGR minus mean) or ``torch`` (RGB, mean,
    std); ``none``: raw RGB, as ASTMT's released networks have it.
    """

    depth: int = 50
    width: int = 64
    output_stride: int = 8
    stride_in_1x1: bool = True
    frozen_norm: bool = True
    preprocessing: str = "caffe"

    def __post_init__(self) -> None:
        if self.depth not in _BLOCKS:
            raise ValueError(f"depth: {self.depth}; expected one of {sorted(_BLOCKS)}")
        if self.output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride: {self.output_stride}; expected 8, 16 or 32")
        if self.preprocessing not in ("caffe", "torch", "none"):
            raise ValueError(f"preprocessing: {self.preprocessing!r}; expected 'caffe', 'torch' or 'none'")


def preprocess(images: Array, convention: str) -> Array:
    """uint8 or float RGB (B, H, W, 3) in 0..255 -> float32 input of a pretrained network.

    ``caffe``: BGR minus the mean, no scaling. ``torch``: RGB / 255, ImageNet mean and standard deviation.
    ``none``: as they are.
    """
    images = images.astype(jnp.float32)
    if convention == "none":
        return images
    if convention == "caffe":
        return (images - jnp.asarray(CAFFE_MEAN_RGB))[..., ::-1]
    return (images / 255.0 - jnp.asarray(IMAGENET_MEAN_RGB)) / jnp.asarray(IMAGENET_STD_RGB)


def block_specs(config: BackboneConfig) -> tuple[tuple[BlockSpec, ...], ...]:
    """The blocks of Res2 ... Res5, in order.

    A stage beyond the output stride keeps its resolution and dilates its 3x3 instead. In its first block, the
    first 3x3 is dilated like the rest where the removed stride stood before it (``stride_in_1x1``), and like
    the previous stage where the stride stood on it: so the pretrained network's responses are kept exactly,
    only sampled more densely.
    """
    expansion = 1 if config.depth in _BASIC else 4
    stages = []
    in_features, stride, dilation = config.width, 4, 1
    for number, count in enumerate(_BLOCKS[config.depth]):
        features = config.width * 2**number
        strides, first_dilation = (2, dilation) if number else (1, 1)
        if strides == 2 and stride == config.output_stride:
            strides, dilation = 1, dilation * 2
            if config.stride_in_1x1 and expansion == 4:
                first_dilation = dilation
        stride *= strides
        specs = []
        for index in range(count):
            specs.append(
                BlockSpec(
                    name=f"{STAGES[number]}_{index + 1}",
                    in_features=in_features,
                    features=features,
                    strides=strides if index == 0 else 1,
                    dilation=first_dilation if index == 0 else dilation,
                    stage_dilation=dilation,
                    stride_in_1x1=config.stride_in_1x1,
                    frozen_norm=config.frozen_norm,
                    expansion=expansion,
                    rectified=True,  # by the block below, or by the stem, whose pooling keeps that
                )
            )
            in_features = features * expansion
        stages.append(tuple(specs))
    return tuple(stages)


def feature_info(config: BackboneConfig) -> tuple[StageInfo, ...]:
    """Channels and stride of Res2 ... Res5."""
    stride, infos = 4, []
    for name, specs in zip(STAGES, block_specs(config), strict=True):
        stride *= specs[0].strides
        infos.append(StageInfo(name, specs[-1].out_features, stride))
    return tuple(infos)


def default_block(spec: BlockSpec) -> nn.Module:
    """The plain residual block of a spec."""
    return BasicBlock(spec) if spec.expansion == 1 else Bottleneck(spec)


class ResNet(nn.Module):
    """Preprocessed images (B, H, W, 3) -> features {"res2": ..., "res5": ...}, and "logits" with ``classes``.

    ``make_block`` lets a system replace blocks; ``run_block(block, x)`` in the call lets it pass them more
    than the features. ``drop_blocks`` leaves out that many blocks from the top (PAG's truncated baseline); a
    stage left without blocks gives no feature.
    """

    config: BackboneConfig
    make_block: Callable[[BlockSpec], nn.Module] = default_block
    drop_blocks: int = 0
    classes: int | None = None

    def setup(self) -> None:
        width = self.config.width
        self.stem_conv = Conv(3, width, 7, 2)
        self.stem_bn = BatchNorm(width, self.config.frozen_norm)
        stages = block_specs(self.config)
        keep = sum(len(specs) for specs in stages) - self.drop_blocks
        if keep < 1:
            raise UserError(
                f"model.drop_blocks: {self.drop_blocks}; the backbone has only {keep + self.drop_blocks}"
            )
        for spec in [spec for specs in stages for spec in specs][:keep]:
            setattr(self, spec.name, self.make_block(spec))
        self.kept = keep
        if self.classes is not None:
            self.fc = nn.Dense(self.classes)

    def __call__(
        self,
        images: Array,
        *,
        train: bool = False,
        run_block: Callable[[nn.Module, Array], Array] | None = None,
    ) -> dict[str, Array]:
        run_block = run_block or (lambda block, x: block(x, train=train))
        x = jax.nn.relu(self.stem_bn(self.stem_conv(images), train=train))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        features: dict[str, Array] = {}
        left = self.kept
        for stage, specs in zip(STAGES, block_specs(self.config), strict=True):
            for spec in specs[: max(left, 0)]:
                x = run_block(getattr(self, spec.name), x)
                features[stage] = x
            left -= len(specs)
        if self.classes is not None:
            features["logits"] = self.fc(x.mean((1, 2)))
        return features
