"""Depth-aware gated pooling (Kong and Fowlkes, CVPR 2018, section 3): a weighted sum of dilated branches."""

from __future__ import annotations

from collections.abc import Iterable

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynpix_jax.core.routing import Routing
from dynpix_jax.core.typing import Array
from dynpix_jax.nn.conv import Conv
from dynpix_jax.nn.norm import SPARSE_NEEDS_FROZEN_NORMS, BatchNorm
from dynpix_jax.ops.conv import conv
from dynpix_jax.ops.resize import resize_bilinear
from dynpix_jax.ops.sparse.active import active_set, map_active


class DilatedBranch(nn.Module):
    """3x3 convolution, norm, ReLU, at the dilation of each call: kernels tied over pooling sizes are one."""

    in_features: int
    features: int
    frozen_norm: bool = False

    def setup(self) -> None:
        self.conv = Conv(self.in_features, self.features, 3)
        self.bn = BatchNorm(self.features, self.frozen_norm)

    def __call__(self, x: Array, dilation: int, *, train: bool) -> Array:
        y = conv(x, self.conv.kernel.astype(x.dtype), dilation=(dilation, dilation))
        return jax.nn.relu(self.bn(y, train=train))

    def on_windows(self, windows: Array) -> Array:
        """The same on gathered windows (n, 3, 3, in_features) -> (n, features), by the stored moments."""
        return jax.nn.relu(self.bn.stored(self.conv.on_windows(windows)))


def weighted_sum(maps: Iterable[Array], weights: Array | None, count: int) -> Array:
    """sum_i W_i M_i of ``count`` maps (B, H, W, C) with weights (B, H, W, P); their mean where None."""
    total: Array | None = None
    for index, pooled in enumerate(maps):
        share = 1.0 / count if weights is None else weights[..., index, None].astype(pooled.dtype)
        total = share * pooled if total is None else total + share * pooled
    assert total is not None  # there is at least one pooling size
    return total


class GatedPooling(nn.Module):
    """O = sum_i W_i M_i over pooling sizes M_i, a dilated 3x3 convolution with norm and ReLU each.

    (B, H, W, features), W of (B, H, W, P) or None -> (B, H, W, features); P dilations, whose order is that of
    the weights' channels. None weighs all alike. ``tied``: all dilations use one kernel and norm (``shared``)
    instead of one each (``dilation_1``, ...).

    In sparse mode, with ``one_hot`` weights, a pixel runs in its own branch only; otherwise every branch runs
    everywhere.
    """

    features: int
    dilations: tuple[int, ...] = (1, 2, 4, 8, 16)
    tied: bool = False
    frozen_norm: bool = False

    def setup(self) -> None:
        for name in ["shared"] if self.tied else [f"dilation_{d}" for d in self.dilations]:
            setattr(self, name, DilatedBranch(self.features, self.features, self.frozen_norm))

    def __call__(self, x: Array, weights: Array | None, routing: Routing, *, one_hot: bool = False) -> Array:
        if weights is not None and one_hot and routing.mode == "sparse":
            return self._sparse(x, weights, routing)
        pooled = (self._branch(d)(x, d, train=routing.train) for d in self.dilations)
        return weighted_sum(pooled, weights, len(self.dilations))

    def _branch(self, dilation: int) -> DilatedBranch:
        branch: DilatedBranch = getattr(self, "shared" if self.tied else f"dilation_{dilation}")
        return branch

    def _sparse(self, x: Array, weights: Array, routing: Routing) -> Array:
        if routing.train and not self.frozen_norm:
            raise ValueError(SPARSE_NEEDS_FROZEN_NORMS)
        out = jnp.zeros_like(x)  # every position is written once
        for index, dilation in enumerate(self.dilations):
            active = active_set(weights[..., index] > 0.5)
            branch = self._branch(dilation).on_windows
            out = map_active(branch, x, active, window=(3, 3), dilation=(dilation, dilation), init=out)
        return out


class MultiScalePooling(nn.Module):
    """The same over maps of the image at several sizes, brought to the size of the first (Chen et al., 2016).

    (P maps (B, h_i, w_i, features), W (B, h_0, w_0, P) or None) -> (B, h_0, w_0, features). A 3x3
    convolution, norm and ReLU on each: ``shared`` by all if ``tied``, else ``scale_0``, ``scale_1``, ...
    """

    features: int
    count: int
    tied: bool = False
    frozen_norm: bool = False

    def setup(self) -> None:
        for name in ["shared"] if self.tied else [f"scale_{i}" for i in range(self.count)]:
            setattr(self, name, DilatedBranch(self.features, self.features, self.frozen_norm))

    def __call__(
        self, x: tuple[Array, ...], weights: Array | None, routing: Routing, *, one_hot: bool = False
    ) -> Array:
        size = (x[0].shape[1], x[0].shape[2])
        pooled = (
            resize_bilinear(
                getattr(self, "shared" if self.tied else f"scale_{i}")(scaled, 1, train=routing.train), size
            )
            for i, scaled in enumerate(x)
        )
        return weighted_sum(pooled, weights, self.count)
