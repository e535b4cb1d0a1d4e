"""The contract of a backbone: stages, preprocessing, and blocks that a system may wrap.

``name`` in ``model.backbone = dict(name="resnet", depth=50)`` is a key of `BACKBONES`, or
``package.module:Name`` of a user's class. The class is a `BackboneConfig`: it lists its stages before
anything is built, and builds a network that returns ``{stage name: feature}``. Systems ask for a stage by its
position or stride (the last one, the one at stride 4), never for a backbone by its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

import flax.linen as nn
import jax.numpy as jnp

from dynpix_jax.core.typing import Array
from dynpix_jax.nn.per_task import SHARED, Modulation
from dynpix_jax.nn.remat import remat_unit
from dynpix_jax.nn.residual import Block, BlockSpec

Convention = Literal["caffe", "torch", "none"]
RunBlock = Callable[[nn.Module, Array], tuple[Array, Any]]
"""Calls a block that a hook made: (block, features) -> (features, arrays that it tells beside them)."""

# Means of the original Caffe networks, RGB order, images in 0..255 (reference: He et al.'s released models).
CAFFE_MEAN_RGB = (123.68, 116.779, 103.939)
IMAGENET_MEAN_RGB = (0.485, 0.456, 0.406)
IMAGENET_STD_RGB = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Stage:
    """A feature map that a backbone returns.

    Attributes:
        name: Key of the feature in the network's result.
        channels: Number of channels.
        stride: Stride relative to the image; a side of n pixels has ceil(n / stride) cells.
    """

    name: str
    channels: int
    stride: int


def stages_of(blocks: Sequence[BlockSpec], stride: int) -> tuple[Stage, ...]:
    """The stages of blocks whose input has that stride."""
    found = {}
    for spec in blocks:
        stride *= spec.strides
        found[spec.stage] = Stage(spec.stage, spec.out_features, stride)
    return tuple(found.values())


def at_stride(stages: Sequence[Stage], stride: int) -> Stage:
    """The highest stage with that stride; a ValueError if there is none."""
    found = [stage for stage in stages if stage.stride == stride]
    if not found:
        strides = sorted({stage.stride for stage in stages})
        raise ValueError(f"backbone: no stage has stride {stride}; there are {strides}")
    return found[-1]


def normalize(images: Array, convention: Convention) -> Array:
    """Images as a pretrained network expects them.

    Args:
        images: uint8 or float RGB (B, H, W, 3) in 0..255.
        convention: ``caffe``: BGR minus the mean, no scaling. ``torch``: RGB / 255, ImageNet mean and
            standard deviation. ``none``: unchanged.

    Returns:
        float32 (B, H, W, 3).
    """
    images = images.astype(jnp.float32)
    if convention == "none":
        return images
    if convention == "caffe":
        return (images - jnp.asarray(CAFFE_MEAN_RGB))[..., ::-1]
    return (images / 255.0 - jnp.asarray(IMAGENET_MEAN_RGB)) / jnp.asarray(IMAGENET_STD_RGB)


class BlockHook(Protocol):
    """Makes the module that replaces a block.

    ``make`` makes the plain block from Flax's arguments: ``make(name=spec.name)`` gives it as it is,
    ``make(parent=None)`` gives it for wrapping. A wrapper is named ``spec.name`` and shares the block's scope
    (``nn.share_scope``), so that the parameters of the block keep their names.
    """

    def __call__(self, spec: BlockSpec, make: Callable[..., Block]) -> nn.Module: ...


def plain_block(spec: BlockSpec, make: Callable[..., Block]) -> nn.Module:
    """The hook that leaves blocks as they are."""
    return make(name=spec.name)


@dataclass(frozen=True)
class BuildOptions:
    """What a system asks of the network that a backbone builds.

    Attributes:
        taps: Names of the stages whose features are read; nothing above the highest is built. None: all.
        hook: Makes the blocks; a backbone without blocks never calls it.
        drop_blocks: Number of blocks to leave out at the top; a stage without blocks gives no feature.
        own: Modules that each task has for itself, of those in `BackboneConfig.per_task`.
        unbiased: Norms store the unbiased variance of batches; see nn.norm.BatchNorm.
    """

    taps: tuple[str, ...] | None = None
    hook: BlockHook = plain_block
    drop_blocks: int = 0
    own: Modulation = SHARED
    unbiased: bool = False


DEFAULTS = BuildOptions()
"""Plain blocks, all stages."""


class BackboneConfig(ABC):
    """Base of the sections ``model.backbone``: frozen dataclasses; ``name`` is the key in the registry."""

    name: str
    preprocessing: Convention

    @property
    @abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """The features that the network can return, bottom first."""

    @property
    def block_specs(self) -> tuple[BlockSpec, ...]:
        """The blocks that a hook may wrap, bottom first; () if there are none."""
        return ()

    @property
    def per_task(self) -> frozenset[str]:
        """Which of "se", "norm" and "adapters" `BuildOptions.own` may ask for."""
        return frozenset()

    def preprocess(self, images: Array) -> Array:
        """RGB images (B, H, W, 3) in 0..255 of any dtype -> the network's input, by ``preprocessing``."""
        return normalize(images, self.preprocessing)

    @abstractmethod
    def build(self, options: BuildOptions = DEFAULTS) -> nn.Module:
        """The network: ``(preprocessed images, *, train=False) -> {stage name: feature}``.

        One with blocks is a `BlockBackbone`.
        """


@runtime_checkable
class OnBackbone(Protocol):
    """A ``model`` section with a backbone of the registry."""

    @property
    def backbone(self) -> BackboneConfig: ...


def kept_blocks(config: BackboneConfig, options: BuildOptions) -> tuple[BlockSpec, ...]:
    """The blocks that are built; a ValueError if more are dropped than exist."""
    blocks = config.block_specs
    if options.taps is not None:
        highest = max(i for i, spec in enumerate(blocks) if spec.stage in options.taps)
        blocks = blocks[: highest + 1]
    kept = len(blocks) - options.drop_blocks
    if kept < 1:
        raise ValueError(f"drop_blocks: {options.drop_blocks}; the backbone has only {len(blocks)}")
    return blocks[:kept]


class BlockBackbone(nn.Module):
    """A stem, then blocks one after another: preprocessed images (B, H, W, 3) -> {stage name: feature}.

    The feature of a stage is the output of its last block. A subclass defines `setup_stem`, `stem` and
    `make_block`.
    """

    config: Any
    options: BuildOptions = DEFAULTS

    def setup(self) -> None:
        self.setup_stem()
        self.specs = kept_blocks(self.config, self.options)
        self.blocks = [self.options.hook(spec, partial(self.make_block, spec)) for spec in self.specs]

    def setup_stem(self) -> None:
        """Makes the layers below the blocks."""
        raise NotImplementedError

    def stem(self, images: Array, *, train: bool) -> Array:
        """Preprocessed images -> input of the first block."""
        raise NotImplementedError

    def make_block(self, spec: BlockSpec, **flax: Any) -> Block:
        """The plain block of a spec; ``flax`` holds the arguments of every Flax module."""
        raise NotImplementedError

    def __call__(self, images: Array, *, train: bool = False) -> dict[str, Array]:
        """The features of all stages that are built."""
        return self.run(images, lambda block, x: (block(x, train=train), None), train=train)[0]

    def run(
        self, images: Array, run_block: RunBlock, *, train: bool = False
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """The features, and what blocks tell beside them by their names; ``run_block`` calls them."""
        x = self.stem(images, train=train)
        features: dict[str, Array] = {}
        told: dict[str, Any] = {}
        for name in dict.fromkeys(spec.stage for spec in self.specs):
            x, of_stage = self.stage(name, x, run_block)
            features[name] = x
            told |= of_stage
        return features, told

    @remat_unit("stages")
    def stage(self, name: str, x: Array, run_block: RunBlock) -> tuple[Array, dict[str, Any]]:
        """One stage: its feature from the one below, and what its blocks tell."""
        told: dict[str, Any] = {}
        for spec, block in zip(self.specs, self.blocks, strict=True):
            if spec.stage == name:
                x, told[spec.name] = run_block(block, x)
        return x, told
