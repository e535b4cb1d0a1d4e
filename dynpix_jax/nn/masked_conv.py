"""Convolutions that skip what is already certain (Liu et al., section 3.4): layers between two exits."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynpix_jax.core.routing import Mode
from dynpix_jax.core.typing import Array, Mask
from dynpix_jax.nn.conv import Conv
from dynpix_jax.nn.norm import BatchNorm
from dynpix_jax.ops.conv import conv
from dynpix_jax.ops.interpolation import Normalize, interpolate_masked
from dynpix_jax.ops.resize import resize_nearest
from dynpix_jax.ops.sparse import perforated_conv
from dynpix_jax.ops.sparse.active import ActiveSet, active_set, map_active
from dynpix_jax.ops.sparse.rows import ActiveRows, Layer, active_rows, fill_rows, residual_blocks

LAMBDA = 3.0
"""Initial value of every interpolation's lam (released code)."""


class Masking:
    """Where the convolutions between two exits compute, and how the other positions are filled.

    Made inside of the program that uses it: what its layers share (the mask at each resolution, lists of
    positions) is found once, by the first that asks.

    In sparse mode positions are right that somebody reads: the active ones, those around them, and at lower
    resolutions what is enlarged into these. Others hold anything finite. So a mask may only cover what the
    mask before it in the network did.

    Args:
      mask: bool (B, h, w) at the resolution of the exits, True = compute.
      radius, normalize: see ops.interpolate_masked.
      mode: "dense" computes everywhere, "sparse" at active positions only.
    """

    def __init__(
        self,
        mask: Mask,
        radius: int = 3,
        normalize: Normalize = "full",
        mode: Mode = "dense",
    ):
        self.mask, self.radius, self.normalize, self.mode = mask, radius, normalize, mode
        self._active: dict[tuple[int, int], ActiveSet] = {}
        self._rows: dict[tuple[int, int], ActiveRows] = {}
        # Before any layer asks, which may be inside of a branch of the program, whose values stay there.
        self.needed = _needed(mask) if mode == "sparse" else {}

    def at(self, size: tuple[int, int]) -> Mask:
        """The mask at another resolution: of every cell of positions the one at the top left."""
        return resize_nearest(self.mask, size)

    def fill(self, y: Array, lam: Array) -> Array:
        """What a convolution gives, (B, H, W, C), with the skipped positions interpolated (section 3.4)."""
        size = (y.shape[1], y.shape[2])
        if self.mode == "sparse" and size in self.needed:
            return fill_rows(y, self._rows_of(size, y.shape[-1]), lam, normalize=self.normalize)
        return interpolate_masked(y, self.at(size), lam, radius=self.radius, normalize=self.normalize)

    def conv(self, x: Array, conv: Conv) -> Array:
        """A convolution at active positions only, zero elsewhere."""
        size = (-(-x.shape[1] // conv.strides), -(-x.shape[2] // conv.strides))
        return perforated_conv(
            x,
            conv.kernel.astype(x.dtype),
            self.at(size),
            bias=conv.bias,
            strides=(conv.strides, conv.strides),
            active=self._active_at(size),
        )

    def pointwise(self, x: Array, fn: Callable[[Array], Array], features: int) -> Array:
        """``fn``, of rows (n, C) each on its own, at the active positions of (B, H, W, C); zero elsewhere."""
        size = (x.shape[1], x.shape[2])
        init = jnp.zeros((*x.shape[:3], features), x.dtype)
        active = self._active_at(size)
        return map_active(lambda rows: fn(rows.reshape(len(rows), -1)), x, active, window=(1, 1), init=init)

    def residual_blocks(self, x: Array, blocks: list[tuple[Layer, Layer]]) -> Array:
        """Blocks ReLU(x + N2(C2(ReLU(N1(C1(x)))))) in sparse mode, by rows where that pays."""
        rows = self._rows_of((x.shape[1], x.shape[2]), x.shape[-1])

        def everywhere() -> Array:
            out = x
            for first, second in blocks:
                y = jax.nn.relu(self._dense_layer(out, first, rows))
                out = jax.nn.relu(out + self._dense_layer(y, second, rows))
            return out

        active, ring = row_costs(x.shape[-1])
        cost = active * rows.active + ring * (rows.end - rows.ring)
        return jax.lax.cond(
            cost <= x.shape[0] * x.shape[1] * x.shape[2],
            lambda: residual_blocks(x, blocks, rows, normalize=self.normalize),
            everywhere,
        )

    def _dense_layer(self, x: Array, layer: Layer, rows: ActiveRows) -> Array:
        multiplier, offset = layer.affine
        y = fill_rows(conv(x, layer.kernel), rows, layer.lam, normalize=self.normalize)
        return y * multiplier + offset

    def _active_at(self, size: tuple[int, int]) -> ActiveSet:
        if size not in self._active:
            self._active[size] = active_set(self.at(size))
        return self._active[size]

    def _rows_of(self, size: tuple[int, int], channels: int) -> ActiveRows:
        if size not in self._rows:
            self._rows[size] = active_rows(self.at(size), self.needed[size], channels, radius=self.radius)
        return self._rows[size]


def row_costs(channels: int) -> tuple[float, float]:
    """What an active and an interpolated row of a block cost on a CPU, of the dense cost a position."""
    return next((cost for limit, cost in _ROW_COSTS if channels < limit), (1.05, 0.25))


_ROW_COSTS = ((72, (1.7, 0.5)), (128, (1.2, 0.25)), (256, (1.1, 0.2)))


def _needed(mask: Mask) -> dict[tuple[int, int], Mask]:
    """The positions that somebody reads, at the exits' resolution and each half of the one before it."""
    sizes = [(mask.shape[1], mask.shape[2])]
    while min(sizes[-1]) > 1 and len(sizes) < 4:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    active = [resize_nearest(mask, size) for size in sizes]
    needed: dict[tuple[int, int], Mask] = {}
    cells: Mask | None = None
    for level, size in enumerate(sizes):
        at = active[level]
        if level + 1 < len(sizes):
            # A convolution of stride 2 reads around position 2 i for i. Where a side is odd, the mask's
            # position for i is another one.
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
    """`Conv` that computes where a mask says so and interpolates elsewhere, with a trainable ``lam``.

    Without ``adaptive`` there is no ``lam``, and masks are not taken. Not ``interpolated``: what it gives at
    skipped positions means nothing, since nobody reads it.
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
            self.lam = self.param("lam", nn.initializers.constant(LAMBDA), (), jnp.float32)

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

    def setup(self) -> None:
        self.conv = MaskedConv(
            self.in_features, self.features, self.kernel_size, self.strides, self.use_bias, self.adaptive
        )
        self.bn = BatchNorm(self.features, self.frozen_norm, self.momentum)

    def layer(self) -> Layer:
        """What ops.active_rows takes of it."""
        return Layer(self.conv.conv.kernel, self.bn.affine(), self.conv.lam)

    def __call__(self, x: Array, masking: Masking | None = None, *, train: bool = False) -> Array:
        y = self.bn(self.conv(x, masking), train=train)
        return jax.nn.relu(y) if self.relu else y
