"""Gated modules of recurrent scene parsing: the one of the feed-forward pass, and the one that loops."""

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
from dynpix_jax.ops.gumbel import argmax_one_hot
from dynpix_jax.papers.perspective.depth_branch import DepthBranch
from dynpix_jax.papers.perspective.gated_pooling import GatedPooling, MultiScalePooling


@flax.struct.dataclass
class Step:
    """What the feed-forward pass or a loop makes, at the resolution of the network's map.

    feature: (B, h, w, features), input of the next loop. classes: logits (B, h, w, K). bins: logits
    (B, h, w, P) of the gate's branch. log_depth: (B, h, w, 1). weights: (B, h, w, P) of the pooling sizes, as
    they were applied. None: not part of this network.
    """

    feature: Array
    classes: Array | None
    bins: Array | None
    log_depth: Array | None
    weights: Array | None


class Pass(nn.Module):
    """Gated pooling and classes: the feed-forward pass, or a loop with the convolutions around it.

    Feed-forward: (B, H, W, features) -> pooling, weighted by what ``weigh`` finds -> dropout -> classes.
    Loop (``recurrent``): the map joined with the previous feature, 3x3 to ``features`` -> the same -> 1x1 ->
    dropout -> classes. Calling it again is the next loop: same parameters, same moments.

    signal: "none", "average", "gt_depth", "attention" or "pred_depth". pooling, branch: make the modules;
    None for a signal without a depth branch. classes: 0 for none.
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
            self.bn1 = BatchNorm(width, frozen)
            self.conv3 = Conv(width, width, 1)
            self.bn3 = BatchNorm(width, frozen)
        if self.branch is not None:
            self.depth = self.branch()
        self.pool = self.pooling()
        self.drop = nn.Dropout(self.dropout)
        if self.classes:
            small = nn.initializers.normal(0.01)
            self.scores = Conv(width, self.classes, 1, use_bias=True, kernel_init=small)

    def __call__(
        self,
        maps: tuple[Array, ...],
        routing: Routing,
        *,
        previous: Array | None = None,
        truth: Array | None = None,
        one_hot: bool = False,
    ) -> Step:
        """A step. ``maps``: one, or those of MultiScalePooling, of which the first gates.

        Args:
          previous: the feature of the step before (a loop's).
          truth: (B, H, W, P), weights by a depth that is given (signal "gt_depth").
          one_hot: the largest weight becomes 1, the others 0; of equal ones the first stays (the smallest
            pooling size).
        """
        train, x = routing.train, maps[0]
        if self.recurrent:
            assert previous is not None  # whoever calls a loop has it
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
        return Step(x, self.scores(x) if self.classes else None, bins, log_depth, weights)
