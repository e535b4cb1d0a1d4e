"""Residual blocks in parts, so that a system can run parts of them at selected positions (PAG's eq. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax

from dynpix_jax.core.typing import Array
from dynpix_jax.nn.conv import Conv
from dynpix_jax.nn.norm import BatchNorm
from dynpix_jax.nn.per_task import SHARED, Modulation, PerTask, SqueezeExcite, of_task, per_task, task_norm
from dynpix_jax.nn.remat import remat_unit
from dynpix_jax.ops.sparse import Layer, Relu, Shortcut
from dynpix_jax.ops.sparse.layers import cast, everywhere


@dataclass(frozen=True)
class BlockSpec:
    """Description of a backbone's block.

    Attributes:
        name: Name of its module, unique in the network: ``res4_2`` is the second block of the stage ``res4``.
        stage: Name of its stage.
        in_features: Channels of its input.
        features: Channels of its spatial part (X and Y in PAG's eq. 2).
        out_features: Channels of its output.
        strides: Stride of the whole block.
        dilation: Dilation of its spatial part.
        splits: Whether its spatial part keeps the resolution and can run at single positions; see Block.
        rectified: Whether its input comes from a ReLU.
        frozen_norm: Whether its norms use no batch statistics, so that single positions can run in training
            too.
    """

    name: str
    stage: str
    in_features: int
    features: int
    out_features: int
    strides: int = 1
    dilation: int = 1
    splits: bool = True
    rectified: bool = False
    frozen_norm: bool = False

    @property
    def needs_projection(self) -> bool:
        """Whether the shortcut changes the shape."""
        return self.strides != 1 or self.in_features != self.out_features


def frozen(specs: Sequence[BlockSpec]) -> bool:
    """Whether all norms of a backbone of these blocks are frozen."""
    return bool(specs) and all(spec.frozen_norm for spec in specs)


class Block(nn.Module):
    """A residual block in parts: O = join(I, F3(F2(F1(x)))), with F1 `reduce`, F2 `spatial`, F3 `expand`.

    (B, H, W, in_features) -> (B, ceil(H / strides), ceil(W / strides), out_features). If ``spec.splits``, F2
    reads a window around each position of F1's map, and F3 reads single positions; `spatial_layers` and
    `expand_layers` give them as layers of `ops.sparse_block`, by the norms' stored moments. A block whose
    norms use no batch statistics need not define `spatial` and `expand`.

    Attributes:
        relu: Whether a ReLU follows the sum.
    """

    spec: BlockSpec
    relu: ClassVar[bool] = True

    def reduce(self, x: Array, *, train: bool) -> Array:
        """F1: x -> (B, h, w, features) at the block's output resolution."""
        return x

    def spatial(self, x: Array, *, train: bool) -> Array:
        """F2: (B, h, w, features) -> the same shape."""
        return everywhere(cast(self.spatial_layers(), x.dtype), x)

    def expand(self, x: Array, *, train: bool) -> Array:
        """F3: (B, h, w, features) -> (B, h, w, out_features)."""
        return everywhere(cast(self.expand_layers(), x.dtype), x)

    def shortcut(self, x: Array, *, train: bool) -> Array:
        """I: x, projected where the block changes the shape."""
        return x

    def join(self, identity: Array, update: Array) -> Array:
        """O from I and the output of F3."""
        return jax.nn.relu(identity + update) if self.relu else identity + update

    def spatial_layers(self) -> tuple[Layer, ...]:
        """F2; it begins with a convolution."""
        raise NotImplementedError

    def expand_layers(self) -> tuple[Layer, ...]:
        """F3."""
        raise NotImplementedError

    def shortcut_in_parts(self, x: Array, *, train: bool) -> tuple[Array, Shortcut]:
        """A map, and the Shortcut that makes I and O of it at single positions."""
        rectified = self.spec.rectified and not self.spec.needs_projection
        return self.shortcut(x, train=train), Shortcut(relu=self.relu, rectified=rectified)

    @remat_unit("blocks")
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """The whole block."""
        z = self.expand(self.spatial(self.reduce(x, train=train), train=train), train=train)
        return self.join(self.shortcut(x, train=train), z)


@dataclass(frozen=True)
class ResidualSpec(BlockSpec):
    """Description of a ResNet's block (He et al., CVPR 2016).

    Attributes:
        stage_dilation: Dilation of the stage's later layers, and of a BasicBlock's second 3x3.
        stride_in_1x1: A bottleneck's stride is on its first 1x1 (the Caffe networks of the papers), otherwise
            on its 3x3 (torchvision).
        momentum: Momentum of the norms' running averages.
        se: Squeeze-and-excitation after the last norm.
    """

    stage_dilation: int = 1
    stride_in_1x1: bool = True
    momentum: float = 0.9
    se: bool = False


class Bottleneck(Block):
    """1x1 reduce, 3x3, 1x1 expand, each with batch norm; ReLU after the first two and after the sum.

    Each task may have its own SE, its own norms (the shortcut's too), and its own 1x1 adapter parallel to the
    3x3 convolution, which starts at zero (ASTMT, section 3).
    """

    spec: ResidualSpec
    own: Modulation = SHARED
    unbiased: bool = False

    def setup(self) -> None:
        spec, own = self.spec, self.own
        norm = partial(
            task_norm, own, frozen=spec.frozen_norm, momentum=spec.momentum, unbiased=self.unbiased
        )
        first, second = (spec.strides, 1) if spec.stride_in_1x1 else (1, spec.strides)
        self.conv1 = Conv(spec.in_features, spec.features, 1, first)
        self.bn1 = norm(spec.features)
        self.conv2 = Conv(spec.features, spec.features, 3, second, spec.dilation)
        self.adapts = own.adapters and bool(own.tasks)
        if self.adapts:
            zero = nn.initializers.zeros_init()
            self.adapter = PerTask(
                own.tasks, lambda: Conv(spec.features, spec.features, 1, second, kernel_init=zero)
            )
        self.bn2 = norm(spec.features)
        self.conv3 = Conv(spec.features, spec.out_features, 1)
        self.bn3 = norm(spec.out_features)
        if spec.se:
            self.se = per_task(own.tasks, lambda: SqueezeExcite(spec.out_features), own=own.se)
        if spec.needs_projection:
            self.projection = Conv(spec.in_features, spec.out_features, 1, spec.strides)
            self.projection_bn = norm(spec.out_features)

    def reduce(self, x: Array, *, train: bool, task: str = "") -> Array:
        """F1: 1x1 convolution, norm, ReLU."""
        return jax.nn.relu(of_task(self.bn1, task)(self.conv1(x), train=train))

    def spatial(self, x: Array, *, train: bool, task: str = "") -> Array:
        """F2: 3x3 convolution, norm, ReLU."""
        y = self.conv2(x)
        if self.adapts:
            y = y + of_task(self.adapter, task)(x)
        return jax.nn.relu(of_task(self.bn2, task)(y, train=train))

    def expand(self, x: Array, *, train: bool, task: str = "") -> Array:
        """F3: 1x1 convolution, norm, SE."""
        y = of_task(self.bn3, task)(self.conv3(x), train=train)
        return of_task(self.se, task)(y) if self.spec.se else y

    def shortcut(self, x: Array, *, train: bool, task: str = "") -> Array:
        """I, projected where the block changes the shape."""
        if not self.spec.needs_projection:
            return x
        return of_task(self.projection_bn, task)(self.projection(x), train=train)

    def spatial_layers(self) -> tuple[Layer, ...]:
        """F2."""
        return self.conv2.layer(), self.bn2.layer(), Relu()

    def expand_layers(self) -> tuple[Layer, ...]:
        """F3."""
        return self.conv3.layer(), self.bn3.layer()

    def shortcut_in_parts(self, x: Array, *, train: bool) -> tuple[Array, Shortcut]:
        """The projection without its norm, which the Shortcut applies."""
        if not self.spec.needs_projection:
            return super().shortcut_in_parts(x, train=train)
        return self.projection(x), Shortcut(self.projection_bn.layer())

    def __call__(self, x: Array, task: str = "", *, train: bool = False) -> Array:
        """The whole block, with the modules of ``task``."""
        y = self.spatial(self.reduce(x, train=train, task=task), train=train, task=task)
        z = self.expand(y, train=train, task=task)
        return self.join(self.shortcut(x, train=train, task=task), z)


class BasicBlock(Block):
    """O = ReLU(I + F2(F1(I))) with two 3x3 convolutions (ResNet-18 and -34); it does not split."""

    spec: ResidualSpec
    unbiased: bool = False

    def setup(self) -> None:
        spec = self.spec
        norm = partial(
            BatchNorm, spec.features, frozen=spec.frozen_norm, momentum=spec.momentum, unbiased=self.unbiased
        )
        self.conv1 = Conv(spec.in_features, spec.features, 3, spec.strides, spec.dilation)
        self.bn1 = norm()
        self.conv2 = Conv(spec.features, spec.features, 3, 1, spec.stage_dilation)
        self.bn2 = norm()
        if spec.needs_projection:
            self.projection = Conv(spec.in_features, spec.features, 1, spec.strides)
            self.projection_bn = norm()

    def __call__(self, x: Array, *, train: bool = False) -> Array:
        y = jax.nn.relu(self.bn1(self.conv1(x), train=train))
        y = self.bn2(self.conv2(y), train=train)
        if self.spec.needs_projection:
            x = self.projection_bn(self.projection(x), train=train)
        return jax.nn.relu(x + y)
