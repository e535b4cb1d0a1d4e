"""Monocular depth from a feature map: a class of a few bins, and the logarithm (Kong and Fowlkes, 2018)."""

from __future__ import annotations

import flax.linen as nn
import jax

from dynpix_jax.core.typing import Array
from dynpix_jax.nn.conv import Conv
from dynpix_jax.nn.norm import BatchNorm


class DepthBranch(nn.Module):
    """(B, H, W, in_features) -> (logits of the bins (B, H, W, bins), log depth (B, H, W, 1) or None).

    ``kernel_size`` to features[0], 3x3 to features[1], norm and ReLU after each; from there dropout and 1x1
    to the bins, and without the dropout 3x3 to the log depth (with ``regression``).
    kernel_size: 1 (released for NYU) or 3 (for Cityscapes). Training draws from the stream ``dropout``.
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
        self.bn1 = BatchNorm(first, self.frozen_norm)
        self.conv2 = Conv(first, second, 3)
        self.bn2 = BatchNorm(second, self.frozen_norm)
        self.drop = nn.Dropout(self.dropout)
        # Small at first: all pooling sizes weigh the same, and every pixel is about a metre away.
        small = nn.initializers.normal(0.01)
        self.classes = Conv(second, self.bins, 1, use_bias=True, kernel_init=small)
        if self.regression:
            self.log_depth = Conv(second, 1, 3, use_bias=True, kernel_init=small)

    def __call__(self, x: Array, *, train: bool) -> tuple[Array, Array | None]:
        x = jax.nn.relu(self.bn1(self.conv1(x), train=train))
        x = jax.nn.relu(self.bn2(self.conv2(x), train=train))
        logits = self.classes(self.drop(x, deterministic=not train))
        return logits, self.log_depth(x) if self.regression else None
