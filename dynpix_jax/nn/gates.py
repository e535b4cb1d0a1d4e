"""Gates: small networks that decide where, or whether, a block computes (PAG sections 3.1 and 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

from dynpix_jax.core.routing import Routing
from dynpix_jax.core.typing import Array
from dynpix_jax.nn.conv import Conv
from dynpix_jax.nn.norm import BatchNorm
from dynpix_jax.ops.gumbel import argmax_one_hot, gumbel_softmax, gumbel_softmax_st

SKIP, COMPUTE = 0, 1


def constants(*values: float) -> Initializer:
    """Initializer of a bias with these values."""

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32, out_sharding: Any = None) -> Array:
        return jnp.asarray(values, dtype).reshape(shape)

    return init


def choose(module: nn.Module, logits: Array, routing: Routing) -> Array:
    """One choice per position from logits (..., K), as one-hot (..., K).

    Training draws it by Gumbel arg-max (eq. 3) with the gradient of the relaxation (eq. 4); evaluation takes
    the arg-max without noise.
    """
    if not routing.train:
        return argmax_one_hot(logits)
    sample = gumbel_softmax if routing.soft else gumbel_softmax_st
    return sample(module.make_rng("gumbel"), logits, routing.temperature)


def hand_out(gate: nn.Module, probability: Array) -> None:
    """Leave a gate's probability of computing in the collection ``intermediates`` for the losses."""

    def latest(_: Any, new: Array) -> Array:
        return new

    gate.sow("intermediates", "probability", probability, reduce_fn=latest, init_fn=lambda: None)


class PixelGate(nn.Module):
    """Per-pixel gate: one 1x1 convolution with bias to two logits (as released: no norm, no hidden layer).

    (B, H, W, in_features) -> float mask (B, ceil(H / strides), ceil(W / strides)), 1 = compute.
    ``blur`` averages the logits over 3x3 pixels first (an option of the released code).
    ``open_bias`` is the initial logit in favour of computing. Hands out the probability (B, h, w) of 1.
    """

    in_features: int
    strides: int = 1
    blur: bool = False
    init_std: float = 1.0
    open_bias: float = 0.0

    def setup(self) -> None:
        self.logits = Conv(
            self.in_features,
            2,
            1,
            self.strides,
            use_bias=True,
            kernel_init=nn.initializers.normal(self.init_std),
            bias_init=constants(0.0, self.open_bias),
        )

    def __call__(self, x: Array, routing: Routing) -> Array:
        logits = self.logits(x)
        if self.blur:
            logits = nn.avg_pool(logits, (3, 3), (1, 1), ((1, 1), (1, 1)))
        hand_out(self, jax.nn.softmax(logits)[..., COMPUTE])
        return choose(self, logits, routing)[..., COMPUTE]


class LayerGate(nn.Module):
    """Per-image gate of the layer-skipping baseline (Veit and Belongie, ECCV 2018, as PAG compares with it).

    Global average pool, 1x1 to 16, norm, ReLU, 1x1 to two logits; the last bias starts at (0.1, 2), so that
    most blocks start open. (B, H, W, in_features) -> float mask (B,), 1 = compute. Arg-max in evaluation.

    Hands out the relaxed decision (B,), softmax(logits / temperature): as the temperature falls it becomes
    the arg-max, which is what evaluation pays for. ``rate`` (with the moments in ``batch_stats``, 1 at first)
    is its moving average over training images; see layer_rate_loss.
    """

    in_features: int
    hidden: int = 16
    momentum: float = 0.99

    def setup(self) -> None:
        # Pooled to one position, a batch of one has no variance: the moments are the stored ones.
        self.conv1 = Conv(self.in_features, self.hidden, 1)
        self.bn1 = BatchNorm(self.hidden, frozen=True)
        self.conv2 = Conv(
            self.hidden,
            2,
            1,
            use_bias=True,
            kernel_init=nn.initializers.normal(0.001),
            bias_init=constants(0.1, 2.0),
        )
        self.rate = self.variable("batch_stats", "rate", jnp.ones, (), jnp.float32)

    def __call__(self, x: Array, routing: Routing) -> Array:
        pooled = x.mean((1, 2), keepdims=True)
        logits = self.conv2(jax.nn.relu(self.bn1(self.conv1(pooled))))[:, 0, 0]
        relaxed = jax.nn.softmax(logits / routing.temperature)[:, COMPUTE]
        hand_out(self, relaxed)
        if routing.train and not self.is_initializing():
            now = jax.lax.stop_gradient(relaxed.mean())
            self.rate.value = self.momentum * self.rate.value + (1 - self.momentum) * now
        return choose(self, logits, routing)[:, COMPUTE]


def layer_rate_loss(
    rates: Sequence[Array], relaxed: Sequence[Array], rho: Array, *, valid: Array, in_force: Array
) -> Array:
    """Target of the layer-skipping baseline: mean over layers of (rho - share of images that run it)**2.

    Eq. 5 does not fit it: an image either runs a layer or not, and KL(rho || 0 or 1) is infinite. Nor does
    the share within the batch, which the baseline's authors take (of 256 images): with one image it is 0 or
    1, the expected loss is linear in the gate's probability, and for rho above a half every gate is driven
    open. So the share is that among the last images (a hundred or so), with the gradient of this batch's
    part in it: a gate may run some images for sure and skip others for sure.

    Args:
        rates: one scalar a layer, the moving average of ``relaxed``. relaxed: (B,) a layer, what a LayerGate
            hands out. rho: target in [0, 1].
        valid: bool (B,). in_force: bool (L,); layers whose gate is not inserted yet (False) do not count.
    """
    now = jnp.stack(list(relaxed)) @ (valid / jnp.maximum(valid.sum(), 1))
    shares = now + jax.lax.stop_gradient(jnp.stack(list(rates)) - now)
    return jnp.sum((rho - shares) ** 2 * in_force) / jnp.maximum(in_force.sum(), 1)
