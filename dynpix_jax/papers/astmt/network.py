"""The network of ASTMT: one forward pass per task, through shared modules and the task's own."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn

from dynpix_jax.backbones.base import BuildOptions
from dynpix_jax.core.precision import widen
from dynpix_jax.core.typing import Array
from dynpix_jax.nn.per_task import Modulation
from dynpix_jax.ops.resize import resize_bilinear
from dynpix_jax.papers.astmt.config import AstmtConfig
from dynpix_jax.papers.astmt.layers import DeepLabDecoder, Discriminator, UberHead, predictor

Features = tuple[Array, Array | None]
"""Input of a task's head: the map whose gradient the discriminator reads, and other maps (UberNet's low)."""


def head_name(task: str) -> str:
    """Name of the task's head."""
    return f"head_{task}"


class AstmtNetwork(nn.Module):
    """The network of an AstmtConfig; ``channels`` of each task's logits."""

    config: AstmtConfig
    channels: Mapping[str, int]

    def setup(self) -> None:
        config = self.config
        # A single task has no modules of its own: its parameters have the plain names.
        tasks = config.tasks if len(config.tasks) > 1 else ()
        encoder, decoder = config.encoder, config.decoder
        self.encoding = Modulation(tasks, se=encoder.se, norm=encoder.norm, adapters=encoder.adapters)
        self.decoding = Modulation(tasks, se=decoder.se, norm=decoder.norm, adapters=decoder.adapters)
        low, high = config.low, config.high
        unbiased = config.running_variance == "unbiased"
        built = BuildOptions(taps=(low.name, high.name), own=self.encoding, unbiased=unbiased)
        self.backbone = config.backbone.build(built)
        if decoder.kind == "deeplab":
            self.decoder = DeepLabDecoder(
                low.channels,
                high.channels,
                decoder.features,
                config.rates,
                self.decoding,
                separable=decoder.separable,
                reduction=decoder.reduction,
                unbiased=unbiased,
            )
        uber = decoder.kind == "uber"
        for task in config.tasks:
            count = self.channels[task]
            head = (
                UberHead(low.channels, high.channels, count, unbiased=unbiased)
                if uber
                else predictor(decoder.features, count)
            )
            setattr(self, head_name(task), head)
        if config.adversarial is not None:
            width = high.channels if uber else decoder.features
            self.discriminator = Discriminator(width, len(config.tasks), config.adversarial.kernel)

    def encode(self, images: Array, task: str, *, train: bool) -> tuple[Array, Array]:
        """(low, high) maps of (B, H, W, 3) RGB in 0..255."""
        config = self.config
        x = config.backbone.preprocess(images)
        if self.encoding.any:
            # Blocks with modules per task need the task.
            features, _ = self.backbone.run(
                x, lambda block, x: (block(x, task, train=train), None), train=train
            )
        else:
            features = self.backbone(x, train=train)
        return features[config.low.name], features[config.high.name]

    def decode(self, low: Array, high: Array, task: str, *, train: bool) -> Features:
        """Features for the task's head."""
        if self.config.decoder.kind == "uber":
            return high, low
        return self.decoder(low, high, task, train=train), None

    def features(self, images: Array, task: str, *, train: bool) -> Features:
        """Features for the task's head, from images."""
        return self.decode(*self.encode(images, task, train=train), task, train=train)

    def read(self, features: Features, task: str, size: tuple[int, int], *, train: bool) -> Array:
        """The task's logits (B, H, W, channels) at ``size`` (H, W)."""
        first, low = features
        head = getattr(self, head_name(task))
        logits = head(first) if low is None else head(low, first, train=train)
        return resize_bilinear(widen(logits), size)

    def discriminate(self, gradient: Array) -> Array:
        """Logits of the task that a gradient belongs to."""
        return self.discriminator(gradient)

    def __call__(self, images: Array, *, train: bool = False) -> dict[str, Array]:
        """All tasks' logits; shared features are computed once."""
        size = (images.shape[1], images.shape[2])
        predictions: dict[str, Array] = {}
        encoded, features = None, None
        for task in self.config.tasks:
            if encoded is None or self.encoding.any:
                encoded, features = self.encode(images, task, train=train), None
            if features is None or self.decoding.any:
                features = self.decode(*encoded, task, train=train)
            predictions[task] = self.read(features, task, size, train=train)
        if self.is_initializing() and self.config.adversarial is not None:
            assert features is not None
            self.discriminate(features[0])
        return predictions
