"""Gates: small networks that decide where, or whether, a block computes (PAG sections 3.1 and 3.2)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynpix_jax.nn.conv import Conv
from dynpix_jax.nn.norm import BatchNorm
from dynpix_jax.nn.routing import Routing
from dynpix_jax.ops.gumbel import argmax_one_hot, gumbel_softmax, gumbel_softmax_st
from dynpix_jax.typing import Array

SKIP, COMPUTE = 0, 1


def choose(module: nn.Module, logits: Array, routing: Routing) -> Array:
    """One choice per position from logits (..., K), as one-hot (..., K).

    Training draws it by Gumbel arg-max (eq. 3) with the gradient of the relaxation (eq. 4); evaluation takes the
    arg-max without noise.
    """
    if not routing.train:
        return argmax_one_hot(logits)
    sample = gumbel_softmax if routing.soft else gumbel_softmax_st
    return sample(module.make_rng("gumbel"), logits, routing.temperature)


class PixelGate(nn.Module):
    """Per-pixel gate: one 1x1 convolution with bias to two logits (as released: no norm, no hidden layer).

    (B, H, W, in_features) -> float mask (B, ceil(H / strides), ceil(W / strides)), 1 = compute.
    ``blur`` averages the logits over 3x3 pixels first (an option of the released code).
    ``open_bias`` is the initial logit in favour of computing.
    """

    in_features: int
    strides: int = 1
    blur: bool = False
    init_std: float = 1.0
    open_bias: float = 0.0

    def setup(self) -> None:
        def bias_init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
            return jnp.zeros(shape, dtype).at[COMPUTE].set(self.open_bias)

        self.logits = Conv(
            self.in_features,
            2,
            1,
            self.strides,
            use_bias=True,
            kernel_init=nn.initializers.normal(self.init_std),
            bias_init=bias_init,
        )

    def __call__(self, x: Array, routing: Routing) -> Array:
        logits = self.logits(x)
        if self.blur:
            logits = nn.avg_pool(logits, (3, 3), (1, 1), ((1, 1), (1, 1)))
        return choose(self, logits, routing)[..., COMPUTE]


class LayerGate(nn.Module):
    """Per-image gate of the layer-skipping baseline (Veit and Belongie, ECCV 2018, as PAG compares with it).

    Global average pool, 1x1 to 16, norm, ReLU, 1x1 to two logits; the last bias starts at (0.1, 2), so that most
    blocks start open. (B, H, W, in_features) -> float mask (B,), 1 = compute. Arg-max in evaluation.
    """

    in_features: int
    hidden: int = 16

    def setup(self) -> None:
        def bias_init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
            return jnp.asarray([0.1, 2.0], dtype)

        # Pooled to one position, a batch of one has no variance: the moments are the stored ones.
        self.conv1 = Conv(self.in_features, self.hidden, 1)
        self.bn1 = BatchNorm(self.hidden, frozen=True)
        self.conv2 = Conv(
            self.hidden, 2, 1, use_bias=True, kernel_init=nn.initializers.normal(0.001), bias_init=bias_init
        )

    def __call__(self, x: Array, routing: Routing) -> Array:
        pooled = x.mean((1, 2), keepdims=True)
        logits = self.conv2(jax.nn.relu(self.bn1(self.conv1(pooled))))
        return choose(self, logits, routing)[:, 0, 0, COMPUTE]
