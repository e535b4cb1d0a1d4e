"""The network of recurrent scene parsing: backbone, Res6, the feed-forward pass, the loop."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynpix_jax.backbones.base import BuildOptions
from dynpix_jax.core.progressive import in_step
from dynpix_jax.core.routing import Routing
from dynpix_jax.core.typing import Array
from dynpix_jax.nn.conv import Conv
from dynpix_jax.nn.norm import BatchNorm
from dynpix_jax.papers.perspective.config import PerspectiveConfig, Signal
from dynpix_jax.papers.perspective.layers import (
    DepthBranch,
    GatedPooling,
    MultiScalePooling,
    Pass,
    PassOutput,
)


class Res6(nn.Module):
    """3x3 convolution, norm, ReLU above the backbone: (B, h, w, in_features) -> (B, h, w, features)."""

    in_features: int
    features: int
    frozen_norm: bool = False

    def setup(self) -> None:
        self.conv = Conv(self.in_features, self.features, 3)
        self.bn = BatchNorm(self.features, frozen=self.frozen_norm)

    def __call__(self, x: Array, *, train: bool) -> Array:
        return jax.nn.relu(self.bn(self.conv(x), train=train))


class PerspectiveNetwork(nn.Module):
    """The network of a PerspectiveConfig with ``classes`` classes (0: no segmentation)."""

    config: PerspectiveConfig
    classes: int

    def setup(self) -> None:
        config = self.config
        self.top = config.backbone.stages[-1]
        options = BuildOptions(taps=(self.top.name,))
        top = self.top.channels
        self.backbone = config.backbone.build(options)
        self.res6 = Res6(top, config.features, frozen_norm=config.frozen_norm)
        if config.pooling.kind == "multiscale" and not config.pooling.tied:
            for index in range(1, len(config.pooling.scales)):
                setattr(self, f"backbone_{index}", config.backbone.build(options))
                setattr(self, f"res6_{index}", Res6(top, config.features, frozen_norm=config.frozen_norm))
        self.feedforward = self._pass(config.signals[0], recurrent=False)
        if config.loops:
            self.loop = self._pass(config.signals[1], recurrent=True)

    def _pass(self, signal: Signal, *, recurrent: bool) -> Pass:
        config, pooling = self.config, self.config.pooling
        make: Any
        if signal == "none":
            make = partial(GatedPooling, config.features, (1,), tied=True, frozen_norm=config.frozen_norm)
        elif pooling.kind == "multipool":
            make = partial(
                GatedPooling,
                config.features,
                pooling.dilations,
                tied=pooling.tied,
                frozen_norm=config.frozen_norm,
            )
        else:
            make = partial(
                MultiScalePooling,
                config.features,
                len(pooling.scales),
                tied=pooling.tied,
                frozen_norm=config.frozen_norm,
            )
        branch = partial(
            DepthBranch,
            config.features,
            len(pooling.sizes),
            config.depth_features,
            config.depth_kernel,
            regression=config.depth is not None,
            dropout=config.dropout,
            frozen_norm=config.frozen_norm,
        )
        return Pass(
            config.features,
            self.classes,
            signal,
            make,
            branch if signal in ("attention", "pred_depth") else None,
            recurrent=recurrent,
            dropout=config.dropout,
            frozen_norm=config.frozen_norm,
        )

    def start(
        self, images: Array, routing: Routing, *, truth: Array | None, one_hot: bool
    ) -> tuple[Array, PassOutput]:
        """(Res6 of (B, H, W, 3) images, the feed-forward pass)."""
        x = self._top(images, routing, "")
        if self.config.pooling.kind == "multipool":
            return x, self.feedforward((x,), routing, truth=truth, one_hot=one_hot)
        maps = [x]
        for index, scale in enumerate(self.config.pooling.scales[1:], 1):
            size = [max(1, round(scale * side)) for side in images.shape[1:3]]
            shape = (images.shape[0], *size, 3)
            scaled = jax.image.resize(images.astype(jnp.float32), shape, "linear", antialias=True)
            maps.append(self._top(scaled, routing, "" if self.config.pooling.tied else f"_{index}"))
        return x, self.feedforward(tuple(maps), routing, truth=truth, one_hot=one_hot)

    def refine(
        self,
        x: Array,
        previous: Array,
        routing: Routing,
        *,
        truth: Array | None = None,
        one_hot: bool = False,
    ) -> PassOutput:
        """One loop, from Res6 and the feature of the previous step."""
        return self.loop((x,), routing, previous=previous, truth=truth, one_hot=one_hot)

    def _top(self, images: Array, routing: Routing, suffix: str) -> Array:
        x = self.config.backbone.preprocess(images)
        x = getattr(self, f"backbone{suffix}")(x, train=routing.train)[self.top.name]
        return cast(Array, getattr(self, f"res6{suffix}")(x, train=routing.train))

    def __call__(
        self,
        images: Array,
        routing: Routing = Routing(),
        *,
        truth: Array | None = None,
        one_hot: bool = False,
    ) -> tuple[PassOutput, ...]:
        """The feed-forward pass and the loops, of (B, H, W, 3) RGB in 0..255."""
        with in_step(0):
            x, step = self.start(images, routing, truth=truth, one_hot=one_hot)
        steps = [step]
        for loop in range(1, self.config.loops + 1):
            with in_step(loop):
                steps.append(self.refine(x, steps[-1].feature, routing, truth=truth, one_hot=one_hot))
        return tuple(steps)
