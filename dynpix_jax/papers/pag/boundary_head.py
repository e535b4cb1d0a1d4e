"""Side outputs with fusion for boundary detection (HED; PAG section 4.1)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from dynpix_jax.backbones.base import Stage
from dynpix_jax.core.typing import Array
from dynpix_jax.nn.conv import Conv
from dynpix_jax.papers.pag.decoder import DeconvDecoder


class BoundaryHead(nn.Module):
    """One decoder a macro block (Res2 ... Res5) and a 1x1 fusion that starts as their mean.

    ({stage: features}, (H, W)) -> (fused logits (B, H, W, 1), side logits, one (B, H, W, 1) a stage).
    """

    stages: tuple[Stage, ...]
    features: int = 16

    def setup(self) -> None:
        for stage in self.stages:
            setattr(self, stage.name, DeconvDecoder(stage.channels, self.features, 1, stage.stride))
        share = 1.0 / len(self.stages)
        self.fusion = Conv(len(self.stages), 1, 1, use_bias=True, kernel_init=nn.initializers.constant(share))

    def __call__(self, features: dict[str, Array], size: tuple[int, int]) -> tuple[Array, tuple[Array, ...]]:
        sides = tuple(getattr(self, stage.name)(features[stage.name], size) for stage in self.stages)
        return self.fusion(jnp.concatenate(sides, axis=-1)), sides
