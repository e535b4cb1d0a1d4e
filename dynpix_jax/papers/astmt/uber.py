"""The head of UberNet (Kokkinos, CVPR 2017) as in ASTMT's appendix B: 1x1 convolutions, a set a task."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynpix_jax.core.typing import Array
from dynpix_jax.nn.conv import Conv
from dynpix_jax.nn.norm import BatchNorm
from dynpix_jax.ops.resize import resize_bilinear

SMALL = nn.initializers.normal(0.01)
"""Of what predicts: by its fan-out, a single channel would start at 1.4."""


class UberHead(nn.Module):
    """One task's logits from encoder features of two strides, (B, h, w, low) and (B, h', w', high).

    Each is reduced to ``channels`` (1x1, norm, ReLU), the high one is resized to the low one, and a 1x1 reads
    both: (B, h, w, channels).
    """

    low: int
    high: int
    channels: int

    def setup(self) -> None:
        self.low_conv = Conv(self.low, self.channels, 1)
        self.low_bn = BatchNorm(self.channels)
        self.high_conv = Conv(self.high, self.channels, 1)
        self.high_bn = BatchNorm(self.channels)
        self.logits = Conv(2 * self.channels, self.channels, 1, use_bias=True, kernel_init=SMALL)

    def __call__(self, low: Array, high: Array, *, train: bool) -> Array:
        low = jax.nn.relu(self.low_bn(self.low_conv(low), train=train))
        high = jax.nn.relu(self.high_bn(self.high_conv(high), train=train))
        high = resize_bilinear(high, (low.shape[1], low.shape[2]))
        return self.logits(jnp.concatenate([low, high], axis=-1))
