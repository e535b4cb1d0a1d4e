"""Heads of exits (Liu et al., section 3.3): plain ones, and small encoder-decoders for early stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import flax.linen as nn

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.typing import Array
from dynpix_jax.nn.masked_conv import ConvNorm, MaskedConv, Masking
from dynpix_jax.ops.resize import resize_bilinear
from dynpix_jax.ops.sparse import Relu


def _classifier(in_features: int, channels: int, *, adaptive: bool) -> MaskedConv:
    """The 1x1 convolution to the logits; its values at skipped positions are not read."""
    return MaskedConv(
        in_features, channels, kernel_size=1, use_bias=True, adaptive=adaptive, interpolated=False
    )


class PlainHead(nn.Module):
    """1x1 convolution, norm, ReLU (unless ``single``), 1x1 convolution: (B, h, w, C) -> (B, h, w, channels).

    Under a mask the result is undefined where the mask is False.

    Attributes:
        make_unit: Makes a 1x1 convolution with norm and ReLU.
        adaptive: Whether it takes masks.
    """

    in_features: int
    channels: int
    make_unit: Callable[..., ConvNorm]
    single: bool = False
    adaptive: bool = False

    def setup(self) -> None:
        if not self.single:
            self.unit = self.make_unit(self.in_features, self.in_features)
        self.classify = _classifier(self.in_features, self.channels, adaptive=self.adaptive)

    def __call__(self, x: Array, masking: Masking | None = None, *, train: bool = False) -> Array:
        if masking is not None and masking.mode == "sparse":
            # Each position on its own: no skipped position is read.
            inside = () if self.single else (self.unit.conv.conv.layer(), self.unit.bn.layer(), Relu())
            return masking.pointwise(x, (*inside, self.classify.conv.layer()))
        if not self.single:
            x = self.unit(x, masking, train=train)
        return self.classify(x, masking)


class RedesignedHead(nn.Module):
    """``depth`` times average pooling by 2 and a 1x1 convolution, then ``depth`` times enlarging and one.

    All but the last convolution have ``features`` channels, and are followed by norm and ReLU.

    Attributes:
        make_unit: Makes a 1x1 convolution with norm and ReLU.
        sides: See HeadConfig.
        adaptive: Whether it takes masks.
    """

    in_features: int
    channels: int
    make_unit: Callable[..., ConvNorm]
    features: int
    depth: int
    sides: Literal["restored", "floored"] = "restored"
    adaptive: bool = False

    def setup(self) -> None:
        m = self.features
        self.down = [self.make_unit(m if step else self.in_features, m) for step in range(self.depth)]
        self.up = [self.make_unit(m, m) for _ in range(self.depth - 1)]
        self.classify = _classifier(m, self.channels, adaptive=self.adaptive)

    def __call__(self, x: Array, masking: Masking | None = None, *, train: bool = False) -> Array:
        cells = (x.shape[1], x.shape[2])
        if min(cells) < 2**self.depth:
            raise UserError(
                f"images too small: the map of {cells[0]}x{cells[1]} cells that an exit reads is halved "
                f"{self.depth} times (model.heads.downsampling)"
            )
        sizes = []
        for unit in self.down:
            sizes.append((x.shape[1], x.shape[2]))
            x = unit(nn.avg_pool(x, (2, 2), (2, 2)), masking, train=train)
        for unit in self.up:
            x = unit(self._enlarged(x, sizes.pop()), masking, train=train)
        return self.classify(self._enlarged(x, sizes.pop()), masking)

    def _enlarged(self, x: Array, before: tuple[int, int]) -> Array:
        """A map at the size from ``before`` its pooling, or at twice its own."""
        doubled = (2 * x.shape[1], 2 * x.shape[2])
        return resize_bilinear(x, before if self.sides == "restored" else doubled)
