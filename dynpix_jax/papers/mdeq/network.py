"""The network of MDEQ (Bai, Koltun and Kolter, NeurIPS 2020): stem, the cell f(z; x), head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynpix_jax.backbones.base import normalize
from dynpix_jax.core.typing import Array
from dynpix_jax.nn.conv import Conv
from dynpix_jax.nn.norm import BatchNorm
from dynpix_jax.nn.remat import remat_unit
from dynpix_jax.ops.resize import resize_bilinear, resize_nearest
from dynpix_jax.papers.mdeq.config import CellConfig, MdeqConfig
from dynpix_jax.papers.mdeq.weight_norm import WeightNormConv

Maps = tuple[Array, ...]
"""One (B, h, w, C) per branch, each half the size of the previous one, rounded up."""

_normal = nn.initializers.normal(0.01)


class GroupNorm(nn.GroupNorm):
    """Group norm, computed in float32, in the dtype of its input."""

    def __call__(self, x: Array) -> Array:  # type: ignore[override]
        y: Array = super().__call__(x)
        return y.astype(x.dtype)


def _norm(groups: int) -> GroupNorm:
    # Not the fast variance: z starts at 0, and for almost constant maps it cancels.
    return GroupNorm(groups, epsilon=1e-5, use_fast_variance=False)


class Stem(nn.Module):
    """Two 3x3 convolutions of stride 2 and a 1x1, each with norm and ReLU: (B, H, W, 3) -> (B, H/4, W/4, C).

    The output is the injection x, which the cell adds in every iteration.
    """

    features: int
    momentum: float
    unbiased: bool = False

    def setup(self) -> None:
        norm = partial(BatchNorm, self.features, momentum=self.momentum, unbiased=self.unbiased)
        self.conv1 = Conv(3, self.features, 3, 2, kernel_init=_normal)
        self.bn1 = norm()
        self.conv2 = Conv(self.features, self.features, 3, 2, kernel_init=_normal)
        self.bn2 = norm()
        self.conv3 = Conv(self.features, self.features, 1, kernel_init=_normal)
        self.bn3 = norm()

    def __call__(self, x: Array, *, train: bool) -> Array:
        x = jax.nn.relu(self.bn1(self.conv1(x), train=train))
        x = jax.nn.relu(self.bn2(self.conv2(x), train=train))
        return jax.nn.relu(self.bn3(self.conv3(x), train=train))


class Block(nn.Module):
    """The residual block of a branch of f, (B, h, w, features) -> the same."""

    features: int
    cell: CellConfig

    def setup(self) -> None:
        wide, groups = self.cell.expansion * self.features, self.cell.groups
        conv = WeightNormConv if self.cell.weight_norm else Conv
        self.conv1 = conv(self.features, wide, 3, kernel_init=_normal)
        self.gn1 = _norm(groups)
        self.conv2 = conv(wide, self.features, 3, kernel_init=_normal)
        self.gn2 = _norm(groups)
        self.gn3 = _norm(groups)

    def __call__(self, z: Array, injection: Array | None, dropout: Array | None) -> Array:
        y = self.conv2(jax.nn.relu(self.gn1(self.conv1(z))))
        if dropout is not None:
            y = y * dropout
        if injection is not None:
            y = y + injection
        return self.gn3(jax.nn.relu(self.gn2(y) + z))


class Down(nn.Module):
    """From a branch to one ``levels`` lower: 3x3 convolutions of stride 2 with norms, ReLU between."""

    in_features: int
    features: int
    levels: int
    groups: int

    def setup(self) -> None:
        widths = [*[self.in_features] * (self.levels - 1), self.features]
        self.conv = [Conv(self.in_features, width, 3, 2, kernel_init=_normal) for width in widths]
        self.gn = [_norm(self.groups) for _ in widths]

    def __call__(self, x: Array) -> Array:
        for level, (conv, norm) in enumerate(zip(self.conv, self.gn, strict=True), 1):
            x = norm(conv(x))
            if level < self.levels:
                x = jax.nn.relu(x)
        return x


class Up(nn.Module):
    """From a branch to a higher one: 1x1 convolution, norm, nearest-neighbour enlargement."""

    in_features: int
    features: int
    groups: int

    def setup(self) -> None:
        self.conv = Conv(self.in_features, self.features, 1, kernel_init=_normal)
        self.gn = _norm(self.groups)

    def __call__(self, x: Array, size: tuple[int, int]) -> Array:
        return resize_nearest(self.gn(self.conv(x)), size)


class Cell(nn.Module):
    """f(z; x): a residual block per branch, fusion by sums over all branches (as in HRNet), ReLU, 1x1, norm.

    With weight norm, give it the parameters that `weight_normed` returns.
    """

    config: CellConfig

    def setup(self) -> None:
        cell, widths = self.config, self.config.channels
        self.branch = [Block(width, cell) for width in widths]
        for i, width in enumerate(widths):
            for j, other in enumerate(widths):
                if j != i:
                    layer = Up(other, width, cell.groups) if j > i else Down(other, width, i - j, cell.groups)
                    setattr(self, f"fuse_{j}_to_{i}", layer)
        conv = WeightNormConv if cell.weight_norm else Conv
        self.post_conv = [conv(width, width, 1, kernel_init=_normal) for width in widths]
        self.post_gn = [_norm(cell.groups // 2) for _ in widths]

    @remat_unit("stages", "blocks")
    def __call__(self, z: Maps, x: Array, dropout: Maps | None = None) -> Maps:
        """The new branches.

        Args:
            z: The branches.
            x: The injection, of the shape of z[0].
            dropout: Factors (B, 1, 1, C) per branch.
        """
        y = [
            block(z[i], x if i == 0 else None, None if dropout is None else dropout[i])
            for i, block in enumerate(self.branch)
        ]
        return tuple(self.post_gn[i](self.post_conv[i](jax.nn.relu(self._fuse(y, i)))) for i in range(len(y)))

    def _fuse(self, y: Sequence[Array], i: int) -> Array:
        total = y[i]
        for j, other in enumerate(y):
            if j < i:
                total = total + getattr(self, f"fuse_{j}_to_{i}")(other)
            elif j > i:
                total = total + getattr(self, f"fuse_{j}_to_{i}")(other, y[i].shape[1:3])
        return total


class Head(nn.Module):
    """Enlarges all branches to the first one's size; two 1x1 convolutions -> (B, h, w, channels)."""

    features: int
    channels: int
    momentum: float
    unbiased: bool = False

    def setup(self) -> None:
        self.conv1 = Conv(self.features, self.features, 1, use_bias=True, kernel_init=_normal)
        self.bn1 = BatchNorm(self.features, momentum=self.momentum, unbiased=self.unbiased)
        self.conv2 = Conv(self.features, self.channels, 1, use_bias=True, kernel_init=_normal)

    def __call__(self, z: Maps, *, train: bool) -> Array:
        size = (z[0].shape[1], z[0].shape[2])
        y = jnp.concatenate([z[0], *(resize_bilinear(low, size, align_corners=True) for low in z[1:])], -1)
        return self.conv2(jax.nn.relu(self.bn1(self.conv1(y), train=train)))


class MdeqNetwork(nn.Module):
    """The network of an MdeqConfig with ``channels`` outputs; the system seeks the fixed point."""

    config: MdeqConfig
    channels: int

    def setup(self) -> None:
        cell, momentum = self.config.cell, self.config.norm_momentum
        unbiased = self.config.running_variance == "unbiased"
        self.stem = Stem(cell.channels[0], momentum, unbiased)
        self.cell = Cell(cell)
        self.head = Head(sum(cell.channels), self.channels, momentum, unbiased)

    def inject(self, images: Array, *, train: bool = False) -> Array:
        """The injection (B, h, w, C) of (B, H, W, 3) RGB images in 0..255."""
        return self.stem(normalize(images, "torch"), train=train)

    def decode(self, z: Maps, *, train: bool = False) -> Array:
        """Logits (B, h, w, channels) at a quarter of the images' size."""
        return self.head(z, train=train)

    def __call__(self, images: Array) -> Array:
        """One application of f to 0, decoded; creates all parameters."""
        x = self.inject(images)
        zeros = tuple(jnp.zeros(like.shape, like.dtype) for like in map_shapes(self.config.cell, x))
        return self.decode(self.cell(zeros, x))


def map_shapes(cell: CellConfig, x: Array) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shape and dtype of each branch of z for an injection x (B, h, w, C)."""
    batch, height, width, _ = x.shape
    return tuple(
        jax.ShapeDtypeStruct((batch, math.ceil(height / 2**i), math.ceil(width / 2**i), channels), x.dtype)
        for i, channels in enumerate(cell.channels)
    )
