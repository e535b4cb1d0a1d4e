"""Convolutions between two exits that skip confident positions (Liu et al., section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynpix_jax.core.routing import Mode
from dynpix_jax.core.typing import Array, Mask
from dynpix_jax.nn.conv import Conv
from dynpix_jax.nn.norm import BatchNorm
from dynpix_jax.nn.parameters import parameter
from dynpix_jax.ops.interpolation import Normalize, interpolate_masked
from dynpix_jax.ops.resize import resize_nearest
from dynpix_jax.ops.sparse import (
    ActiveRows,
    ActiveSet,
    Interpolation,
    Layer,
    Relu,
    ResidualBlock,
    active_rows,
    active_set,
    interpolate_rows,
    perforated_conv,
    sparse_block,
)

LAMBDA = 3.0
"""Initial value of every interpolation's lam (released code)."""


class Masking:
    """Where the convolutions between two exits compute, and how the other positions are filled.

    Make it inside the program that uses it. What the layers share (the mask at each resolution, lists of
    positions) is computed once, for the first layer that needs it.

    In sparse mode values are correct at the needed positions: the active ones, their neighbours, and at lower
    resolutions the positions that are enlarged into these. Other positions hold arbitrary finite values, so a
    mask must lie within the previous mask of the network.

    Args:
        mask: bool (B, h, w) at the resolution of the exits, True = compute.
        radius: Radius of the interpolation, see ops.interpolate_masked.
        normalize: Normalisation of the interpolation.
        mode: "dense" computes everywhere, "sparse" at active positions only.
        implementation: Implementation of the sparse mode, see ops.sparse_block.
    """

    def __init__(
        self,
        mask: Mask,
        radius: int = 3,
        normalize: Normalize = "full",
        mode: Mode = "dense",
        implementation: str | None = None,
    ):
        self.mask, self.radius, self.normalize, self.mode = mask, radius, normalize, mode
        self.implementation = implementation
        self._active: dict[tuple[int, int], ActiveSet] = {}
        self._rows: dict[tuple[int, int], ActiveRows] = {}
        # Computed here because the first layer may be inside a branch, whose values cannot leave it.
        self.needed = _needed(mask) if mode == "sparse" else {}

    def at(self, size: tuple[int, int]) -> Mask:
        """The mask at another resolution: each cell takes its top left position."""
        return resize_nearest(self.mask, size)

    def fill(self, y: Array, lam: Array) -> Array:
        """The output of a convolution, (B, H, W, C), with skipped positions interpolated (section 3.4)."""
        size = (y.shape[1], y.shape[2])
        if self.mode == "sparse" and size in self.needed:
            return interpolate_rows(y, self._rows_of(size, y.shape[-1]), Interpolation(lam, self.normalize))
        return interpolate_masked(y, self.at(size), lam, radius=self.radius, normalize=self.normalize)

    def conv(self, x: Array, conv: Conv) -> Array:
        """A convolution at active positions only, zero elsewhere."""
        size = (-(-x.shape[1] // conv.strides), -(-x.shape[2] // conv.strides))
        return perforated_conv(
            x,
            conv.kernel.astype(x.dtype),
            self._active_at(size),
            bias=conv.bias,
            strides=(conv.strides, conv.strides),
            implementation=self.implementation,
        )

    def pointwise(self, x: Array, layers: Sequence[Layer]) -> Array:
        """1x1 layers at the active positions of (B, H, W, C); zero elsewhere."""
        active = self._active_at((x.shape[1], x.shape[2]))
        return sparse_block(x, active, layers, implementation=self.implementation)

    def residual_blocks(self, x: Array, blocks: Sequence[tuple[ConvNorm, ConvNorm]]) -> Array:
        """Blocks ReLU(x + F2(ReLU(F1(x)))) in sparse mode."""
        layers = [ResidualBlock((*a.layers(self.normalize), *b.layers(self.normalize))) for a, b in blocks]
        rows = self._rows_of((x.shape[1], x.shape[2]), x.shape[-1])
        return sparse_block(x, rows, layers, implementation=self.implementation)

    def _active_at(self, size: tuple[int, int]) -> ActiveSet:
        if size not in self._active:
            self._active[size] = active_set(self.at(size))
        return self._active[size]

    def _rows_of(self, size: tuple[int, int], channels: int) -> ActiveRows:
        if size not in self._rows:
            self._rows[size] = active_rows(self.at(size), self.needed[size], channels, radius=self.radius)
        return self._rows[size]


def _needed(mask: Mask) -> dict[tuple[int, int], Mask]:
    """The positions whose values are read, at the exits' resolution and at each halved resolution below."""
    sizes = [(mask.shape[1], mask.shape[2])]
    while sizes[-1] != (1, 1) and len(sizes) < 4:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    active = [resize_nearest(mask, size) for size in sizes]
    needed: dict[tuple[int, int], Mask] = {}
    cells: Mask | None = None
    for level, size in enumerate(sizes):
        at = active[level]
        if level + 1 < len(sizes):
            # A convolution of stride 2 reads around position 2 i for output i. For an odd side, the mask has
            # another position for i.
            read = active[level + 1]
            at = at | jnp.zeros_like(at).at[:, ::2, ::2].set(read)
        at = _spread(at if cells is None else at | cells)
        needed[size] = at
        odd = ((0, 0), (0, size[0] % 2), (0, size[1] % 2))
        padded = jnp.pad(at, odd)
        rows = padded[:, ::2] | padded[:, 1::2]
        cells = rows[:, :, ::2] | rows[:, :, 1::2]
    return needed


def _spread(mask: Mask) -> Mask:
    """The mask and its 3x3 neighbourhood."""
    padded = jnp.pad(mask, ((0, 0), (1, 1), (1, 1)))
    rows = padded[:, :-2] | padded[:, 1:-1] | padded[:, 2:]
    return rows[:, :, :-2] | rows[:, :, 1:-1] | rows[:, :, 2:]


class MaskedConv(nn.Module):
    """`Conv` that computes where a mask is True and interpolates elsewhere, with a trainable ``lam``.

    Attributes:
        adaptive: Whether it takes masks and has a ``lam``.
        interpolated: False leaves skipped positions undefined, for layers whose skipped outputs are not read.
    """

    in_features: int
    features: int
    kernel_size: int = 3
    strides: int = 1
    use_bias: bool = False
    adaptive: bool = False
    interpolated: bool = True

    def setup(self) -> None:
        self.conv = Conv(
            self.in_features, self.features, self.kernel_size, self.strides, use_bias=self.use_bias
        )
        if self.adaptive:
            self.lam = parameter(self, "lam", nn.initializers.constant(LAMBDA), ())

    def __call__(self, x: Array, masking: Masking | None = None) -> Array:
        """(B, H, W, in_features) -> (B, H', W', features)."""
        if masking is None:
            return self.conv(x)
        y = masking.conv(x, self.conv) if masking.mode == "sparse" else self.conv(x)
        return masking.fill(y, self.lam) if self.interpolated else y


class ConvNorm(nn.Module):
    """Masked convolution, batch norm, and (``relu``) ReLU."""

    in_features: int
    features: int
    kernel_size: int = 3
    strides: int = 1
    relu: bool = True
    use_bias: bool = False
    frozen_norm: bool = False
    momentum: float = 0.9
    adaptive: bool = False
    unbiased: bool = False

    def setup(self) -> None:
        form = self.in_features, self.features, self.kernel_size, self.strides
        self.conv = MaskedConv(*form, use_bias=self.use_bias, adaptive=self.adaptive)
        self.bn = BatchNorm(
            self.features, frozen=self.frozen_norm, momentum=self.momentum, unbiased=self.unbiased
        )

    def layers(self, normalize: Normalize) -> tuple[Layer, ...]:
        """The module as layers of `ops.sparse_block`, on rows that share a mask."""
        chain = (self.conv.conv.layer(), Interpolation(self.conv.lam, normalize), self.bn.layer())
        return (*chain, Relu()) if self.relu else chain

    def __call__(self, x: Array, masking: Masking | None = None, *, train: bool = False) -> Array:
        y = self.bn(self.conv(x, masking), train=train)
        return jax.nn.relu(y) if self.relu else y
