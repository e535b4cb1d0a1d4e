"""The network of the anytime system: HRNet with an exit after each stage."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax.numpy as jnp

from dynpix_jax.backbones.base import BuildOptions
from dynpix_jax.core.progressive import in_step
from dynpix_jax.core.routing import Routing
from dynpix_jax.core.typing import Array, Mask
from dynpix_jax.nn.masked_conv import ConvNorm, Masking
from dynpix_jax.nn.remat import remat_unit
from dynpix_jax.ops.resize import resize_bilinear
from dynpix_jax.papers.anytime.config import AnytimeConfig
from dynpix_jax.papers.anytime.layers import PlainHead, RedesignedHead

Span = tuple[int, ...]


@flax.struct.dataclass
class Progress:
    """The state after an exit.

    Attributes:
        maps: Maps of its stage.
        logits: (B, h, w, K) at a quarter of the image's resolution; None before the first exit.
        mask: bool (B, h, w), mask of the following stages; None: all positions are computed.
    """

    maps: tuple[Array, ...]
    logits: Any = None
    mask: Mask | None = None


class AnytimeNetwork(nn.Module):
    """The network of an AnytimeConfig whose task has ``channels`` channels."""

    config: AnytimeConfig
    channels: int

    def setup(self) -> None:
        config, heads = self.config, self.config.heads
        adaptive = config.adaptivity is not None
        unbiased = config.running_variance == "unbiased"
        # Before the first exit there is no mask.
        options, first = BuildOptions(unbiased=unbiased), config.exits[0] + 1 if adaptive else 5
        self.backbone = config.backbone.build(options, adaptive_from=first)
        norm = partial(
            ConvNorm,
            frozen_norm=config.backbone.frozen_norm,
            momentum=config.backbone.momentum,
            unbiased=unbiased,
        )
        exits: dict[int, nn.Module] = {}
        for index, stage in enumerate(config.exits):
            branches = config.backbone.branch_channels(stage)
            features = sum(branches) if heads.inputs == "concat" else branches[0]
            adapts = adaptive and index > 0
            unit = partial(norm, kernel_size=1, use_bias=True, adaptive=adapts)
            head: nn.Module
            if stage == 4 or heads.kind == "plain":
                head = PlainHead(
                    features,
                    self.channels,
                    unit,
                    single=heads.plain == "single",
                    adaptive=adapts,
                    name=f"exit{stage}",
                )
            else:
                depth = heads.downsampling[stage - 1]
                head = RedesignedHead(
                    features,
                    self.channels,
                    unit,
                    heads.features,
                    depth,
                    sides=heads.sides,
                    adaptive=adapts,
                    name=f"exit{stage}",
                )
            exits[stage] = head
        self.exits = exits
        if config.adaptivity is not None:
            self.gate = config.adaptivity.options.build("logits", self.channels)

    def stage(
        self, number: int, maps: Sequence[Array], masking: Masking | None = None, *, train: bool = False
    ) -> tuple[Array, ...]:
        """Maps of stage ``number`` (1 to 4) from those of the previous stage; of 1, from RGB in 0..255."""
        if number > 1:
            return self.backbone.stage(number, maps, masking, train=train)
        return self.backbone.first(self.config.backbone.preprocess(maps[0]), train=train)

    @remat_unit("stages", "blocks")
    def exit(
        self, number: int, maps: Sequence[Array], masking: Masking | None = None, *, train: bool = False
    ) -> Array:
        """Logits (B, h, w, channels) of the exit after that stage; undefined at skipped positions."""
        top = maps[0]
        if self.config.heads.inputs == "concat" and len(maps) > 1:
            size, corners = (top.shape[1], top.shape[2]), self.config.backbone.align_corners
            lower = (resize_bilinear(x, size, align_corners=corners) for x in maps[1:])
            top = jnp.concatenate([top, *lower], -1)
        logits: Array = self.exits[number](top, masking, train=train)
        return logits

    def advance(
        self, span: Span, progress: Progress, routing: Routing, *, adapt_now: Array | bool = True
    ) -> Progress:
        """Runs the stages of ``span`` and the exit after them; skipped positions keep their logits.

        Args:
            span: The stages.
            progress: The state before them.
            routing: How to run the pass.
            adapt_now: Scalar; whether the gate may skip positions. Given masks always do.
        """
        config, maps, masking = self.config, progress.maps, None
        if progress.mask is not None and config.adaptivity is not None:
            fill = config.adaptivity
            masking = Masking(
                progress.mask, fill.radius, fill.normalize, routing.mode, routing.implementation
            )
        for number in span:
            maps = self.stage(number, maps, masking, train=routing.train)
        logits = self.exit(span[-1], maps, masking, train=routing.train)
        if masking is not None:  # eq. 4
            logits = jnp.where(masking.mask[..., None], logits, progress.logits)
        mask = None
        if config.adaptivity is not None and span[-1] != 4:
            mask, before = routing.masks.get(f"stage{span[-1] + 1}"), progress.mask
            if mask is None:
                mask = (self.gate(logits, routing, before=before).mask > 0.5) | ~jnp.asarray(adapt_now)
            elif before is not None:
                mask = mask & before
        return Progress(maps, logits, mask)

    def __call__(
        self, images: Array, routing: Routing = Routing(), *, adapt_now: Array | bool = True
    ) -> tuple[Progress, ...]:
        """(B, H, W, 3) RGB in 0..255 -> the state after each exit; ``adapt_now`` as in `advance`."""
        after = [Progress((images,))]
        for index, span in enumerate(spans(self.config.exits)):
            with in_step(index):
                after.append(self.advance(span, after[-1], routing, adapt_now=adapt_now))
        return tuple(after[1:])


def spans(exits: Sequence[int]) -> tuple[Span, ...]:
    """The stages between exits: (1, 3, 4) -> (1,), (2, 3), (4,)."""
    starts = (0, *exits)
    return tuple(tuple(range(a + 1, b + 1)) for a, b in zip(starts, exits, strict=False))
