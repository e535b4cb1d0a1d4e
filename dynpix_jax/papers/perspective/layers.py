"""Layers of recurrent scene parsing (CVPR 2018): the depth branch, gated pooling, gated modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from dynpix_jax.core.routing import Routing
from dynpix_jax.core.typing import Array
from dynpix_jax.nn.conv import Conv
from dynpix_jax.nn.norm import BatchNorm
from dynpix_jax.nn.pooling import DilatedBranch, pool_dilated, weighted_sum
from dynpix_jax.nn.remat import remat_unit
from dynpix_jax.ops.gumbel import argmax_one_hot
from dynpix_jax.ops.resize import resize_bilinear


class DepthBranch(nn.Module):
    """(B, H, W, in_features) -> (logits of the bins (B, H, W, bins), log depth (B, H, W, 1) or None).

    ``kernel_size`` to features[0], 3x3 to features[1], norm and ReLU after each; from there dropout and 1x1
    to the bins, and without the dropout 3x3 to the log depth (with ``regression``).
    Training draws from the stream ``dropout``.

    Attributes:
        kernel_size: 1 (released for NYU) or 3 (for Cityscapes).
    """

    in_features: int
    bins: int = 5
    features: tuple[int, int] = (128, 32)
    kernel_size: int = 1
    regression: bool = True
    dropout: float = 0.1
    frozen_norm: bool = False

    def setup(self) -> None:
        first, second = self.features
        self.conv1 = Conv(self.in_features, first, self.kernel_size)
        self.bn1 = BatchNorm(first, frozen=self.frozen_norm)
        self.conv2 = Conv(first, second, 3)
        self.bn2 = BatchNorm(second, frozen=self.frozen_norm)
        self.drop = nn.Dropout(self.dropout)
        # Initially small: all pooling sizes have equal weights, and every pixel is about a metre away.
        small = nn.initializers.normal(0.01)
        self.classes = Conv(second, self.bins, 1, use_bias=True, kernel_init=small)
        if self.regression:
            self.log_depth = Conv(second, 1, 3, use_bias=True, kernel_init=small)

    def __call__(self, x: Array, *, train: bool) -> tuple[Array, Array | None]:
        x = jax.nn.relu(self.bn1(self.conv1(x), train=train))
        x = jax.nn.relu(self.bn2(self.conv2(x), train=train))
        logits = self.classes(self.drop(x, deterministic=not train))
        return logits, self.log_depth(x) if self.regression else None


def _branch(pooling: GatedPooling | MultiScalePooling, name: str) -> DilatedBranch:
    width = pooling.features
    return DilatedBranch(width, width, frozen_norm=pooling.frozen_norm, name=name)


class GatedPooling(nn.Module):
    """O = sum_i W_i M_i over pooling sizes M_i, a dilated 3x3 convolution with norm and ReLU each.

    (B, H, W, features), W of (B, H, W, P) or None -> (B, H, W, features), for P dilations in the order of the
    weights' channels. None: equal weights. ``tied``: all dilations use one kernel and norm (``shared``)
    instead of one each (``dilation_1``, ...).

    In sparse mode, with ``one_hot`` weights, a pixel runs in its own branch only; otherwise every branch runs
    everywhere.
    """

    features: int
    dilations: tuple[int, ...] = (1, 2, 4, 8, 16)
    tied: bool = False
    frozen_norm: bool = False

    def setup(self) -> None:
        names = ["shared"] if self.tied else [f"dilation_{d}" for d in self.dilations]
        self.branches = [_branch(self, name) for name in names]

    def __call__(self, x: Array, weights: Array | None, routing: Routing, *, one_hot: bool = False) -> Array:
        return pool_dilated(x, weights, self.dilations, self._of, routing, one_hot=one_hot)

    def _of(self, dilation: int) -> DilatedBranch:
        return self.branches[0 if self.tied else self.dilations.index(dilation)]


class MultiScalePooling(nn.Module):
    """Weighted pooling over maps of the image at several sizes, resized to the first (Chen et al., 2016).

    (P maps (B, h_i, w_i, features), W (B, h_0, w_0, P) or None) -> (B, h_0, w_0, features). A 3x3
    convolution, norm and ReLU on each: ``shared`` by all if ``tied``, else ``scale_0``, ``scale_1``, ...
    """

    features: int
    count: int
    tied: bool = False
    frozen_norm: bool = False

    def setup(self) -> None:
        names = ["shared"] if self.tied else [f"scale_{i}" for i in range(self.count)]
        self.branches = [_branch(self, name) for name in names]

    def __call__(
        self, x: tuple[Array, ...], weights: Array | None, routing: Routing, *, one_hot: bool = False
    ) -> Array:
        size = (x[0].shape[1], x[0].shape[2])
        pooled = (
            resize_bilinear(self.branches[0 if self.tied else i](scaled, 1, train=routing.train), size)
            for i, scaled in enumerate(x)
        )
        return weighted_sum(pooled, weights, self.count)


@flax.struct.dataclass
class PassOutput:
    """Outputs of the feed-forward pass or a loop, at the resolution of the network's map.

    None: the network has no such output.

    Attributes:
        feature: (B, h, w, features), input of the next loop.
        classes: Logits (B, h, w, K).
        bins: Logits (B, h, w, P) of the gate's branch.
        log_depth: (B, h, w, 1).
        weights: (B, h, w, P), the applied weights of the pooling sizes.
    """

    feature: Array
    classes: Array | None
    bins: Array | None
    log_depth: Array | None
    weights: Array | None


class Pass(nn.Module):
    """Gated pooling and classes: the feed-forward pass, or a loop with the convolutions around it.

    Feed-forward: (B, H, W, features) -> pooling, weighted by ``weigh`` -> dropout -> classes.
    Loop (``recurrent``): the map joined with the previous feature, 3x3 to ``features`` -> the same -> 1x1 ->
    dropout -> classes. Another call is the next loop, with the same parameters and moments.

    Attributes:
        classes: Number of classes of the segmentation, 0 for none.
        signal: "none", "average", "gt_depth", "attention" or "pred_depth".
        pooling: Makes the pooling.
        branch: Makes the depth branch; None for a signal without one.
        recurrent: Whether it is the loop.
    """

    features: int
    classes: int
    signal: str
    pooling: Callable[[], GatedPooling | MultiScalePooling]
    branch: Callable[[], DepthBranch] | None
    recurrent: bool
    dropout: float = 0.1
    frozen_norm: bool = False

    def setup(self) -> None:
        width, frozen = self.features, self.frozen_norm
        if self.recurrent:
            self.conv1 = Conv(2 * width, width, 3)
            self.bn1 = BatchNorm(width, frozen=frozen)
            self.conv3 = Conv(width, width, 1)
            self.bn3 = BatchNorm(width, frozen=frozen)
        if self.branch is not None:
            self.depth = self.branch()
        self.pool = self.pooling()
        self.drop = nn.Dropout(self.dropout)
        if self.classes:
            small = nn.initializers.normal(0.01)
            self.scores = Conv(width, self.classes, 1, use_bias=True, kernel_init=small)

    @remat_unit("stages", "blocks")
    def __call__(
        self,
        maps: tuple[Array, ...],
        routing: Routing,
        *,
        previous: Array | None = None,
        truth: Array | None = None,
        one_hot: bool = False,
    ) -> PassOutput:
        """A step. ``maps``: one, or those of MultiScalePooling, of which the first gates.

        Args:
            previous: The feature of the step before (a loop's).
            truth: (B, H, W, P), weights by a given depth (signal "gt_depth").
            one_hot: The largest weight becomes 1, the others 0; of equal weights the first is kept (the
                smallest pooling size).
        """
        train, x = routing.train, maps[0]
        if self.recurrent:
            assert previous is not None  # every loop has a previous step
            x = jnp.concatenate([x, previous], axis=-1)
            x = jax.nn.relu(self.bn1(self.conv1(x), train=train))
        weights = bins = log_depth = None
        if self.signal == "gt_depth":
            weights = truth
        elif self.branch is not None:
            bins, log_depth = self.depth(x, train=train)
            weights = jax.nn.softmax(bins)
        if weights is not None and one_hot:
            weights = argmax_one_hot(weights)
        pooled: Any = maps if len(maps) > 1 else x
        x = self.pool(pooled, weights, routing, one_hot=one_hot)
        if self.recurrent:
            x = jax.nn.relu(self.bn3(self.conv3(x), train=train))
        x = self.drop(x, deterministic=not train)
        return PassOutput(x, self.scores(x) if self.classes else None, bins, log_depth, weights)
