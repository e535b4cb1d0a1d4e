"""Heads of exits (Liu et al., section 3.3): plain ones, and small encoder-decoders for early stages."""

from __future__ import annotations

import flax.linen as nn

from dynpix_jax.core.typing import Array
from dynpix_jax.nn.masked_conv import ConvNorm, MaskedConv, Masking
from dynpix_jax.ops.resize import resize_bilinear
from dynpix_jax.ops.sparse import Relu


class PlainHead(nn.Module):
    """1x1 convolution, norm, ReLU (unless ``single``), 1x1 convolution: (B, h, w, C) -> (B, h, w, channels).

    Under a mask the result means nothing where the mask is False.
    """

    in_features: int
    channels: int
    single: bool = False
    frozen_norm: bool = False
    momentum: float = 0.9
    adaptive: bool = False

    def setup(self) -> None:
        c = self.in_features
        if not self.single:
            norm = (self.frozen_norm, self.momentum)
            self.unit = ConvNorm(c, c, 1, 1, True, True, *norm, self.adaptive)
        self.classify = MaskedConv(c, self.channels, 1, 1, True, self.adaptive, False)

    def __call__(self, x: Array, masking: Masking | None = None, *, train: bool = False) -> Array:
        if masking is not None and masking.mode == "sparse":
            # Each position on its own: nothing that is skipped is read.
            inside = () if self.single else (self.unit.conv.conv.layer(), self.unit.bn.layer(), Relu())
            return masking.pointwise(x, (*inside, self.classify.conv.layer()))
        if not self.single:
            x = self.unit(x, masking, train=train)
        return self.classify(x, masking)


class RedesignedHead(nn.Module):
    """``depth`` times average pooling by 2 and a 1x1 convolution, then as often enlarging and one.

    All but the last convolution give ``features`` channels and are followed by norm and ReLU. Sides that
    pooling does not divide evenly are enlarged to what they were.
    """

    in_features: int
    channels: int
    features: int
    depth: int
    frozen_norm: bool = False
    momentum: float = 0.9
    adaptive: bool = False

    def setup(self) -> None:
        m, rest = self.features, (1, 1, True, True, self.frozen_norm, self.momentum, self.adaptive)
        self.down = [ConvNorm(self.in_features if step == 0 else m, m, *rest) for step in range(self.depth)]
        self.up = [ConvNorm(m, m, *rest) for _ in range(self.depth - 1)]
        self.classify = MaskedConv(m, self.channels, 1, 1, True, self.adaptive, False)

    def __call__(self, x: Array, masking: Masking | None = None, *, train: bool = False) -> Array:
        sizes = []
        for unit in self.down:
            sizes.append((x.shape[1], x.shape[2]))
            x = unit(nn.avg_pool(x, (2, 2), (2, 2)), masking, train=train)
        for unit in self.up:
            x = unit(resize_bilinear(x, sizes.pop()), masking, train=train)
        return self.classify(resize_bilinear(x, sizes.pop()), masking)
