"""The deconvolution decoder of PAG (section 4): deconvolution first, then convolutions at full resolution."""

from __future__ import annotations

import flax.linen as nn
import jax

from dynpix_jax.backbones.base import Stage
from dynpix_jax.core.typing import Array
from dynpix_jax.nn.conv import Conv
from dynpix_jax.papers.pag.deconv import Deconv


class DeconvDecoder(nn.Module):
    """(B, h, w, in_features) at ``stride`` -> (B, H, W, out_features) logits.

    1x1 reduction to ``features`` with ReLU, deconvolution by ``stride``, 3x3 convolution with ReLU, 3x3
    convolution
    to the logits: two convolutions after the up-sampling, so that they see the fine details.
    """

    in_features: int
    features: int
    out_features: int
    stride: int

    def setup(self) -> None:
        self.reduce = Conv(self.in_features, self.features, 1, use_bias=True)
        self.deconv = Deconv(self.features, self.stride)
        self.conv = Conv(self.features, self.features, 3, use_bias=True)
        self.logits = Conv(
            self.features, self.out_features, 3, use_bias=True, kernel_init=nn.initializers.normal(0.01)
        )

    def __call__(self, x: Array, size: tuple[int, int]) -> Array:
        x = self.deconv(jax.nn.relu(self.reduce(x)), size)
        return self.logits(jax.nn.relu(self.conv(x)))


class TopHead(nn.Module):
    """One decoder above the last stage, without side outputs.

    ({stage: features}, (H, W)) -> (logits (B, H, W, out_features), ()).
    """

    stage: Stage
    features: int
    out_features: int

    def setup(self) -> None:
        stage = self.stage
        self.decoder = DeconvDecoder(stage.channels, self.features, self.out_features, stage.stride)

    def __call__(self, features: dict[str, Array], size: tuple[int, int]) -> tuple[Array, tuple[Array, ...]]:
        return self.decoder(features[self.stage.name], size), ()
