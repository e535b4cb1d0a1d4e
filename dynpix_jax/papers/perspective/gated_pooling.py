"""Depth-aware gated pooling (Kong and Fowlkes, CVPR 2018, section 3): a weighted sum of dilated branches."""

from __future__ import annotations

import flax.linen as nn

from dynpix_jax.core.routing import Routing
from dynpix_jax.core.typing import Array
from dynpix_jax.nn.pooling import DilatedBranch, pool_dilated, weighted_sum
from dynpix_jax.ops.resize import resize_bilinear


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
        return pool_dilated(x, weights, self.dilations, self._branch, routing, one_hot=one_hot)

    def _branch(self, dilation: int) -> DilatedBranch:
        branch: DilatedBranch = getattr(self, "shared" if self.tied else f"dilation_{dilation}")
        return branch


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
