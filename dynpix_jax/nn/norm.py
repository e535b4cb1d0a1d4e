"""Batch normalisation that can be frozen or turned into an affine map."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynpix_jax.core.statistics import norm_groups
from dynpix_jax.core.typing import Array
from dynpix_jax.nn.parameters import parameter
from dynpix_jax.ops.affine import affine, moments
from dynpix_jax.ops.sparse import Affine

SPARSE_NEEDS_FROZEN_NORMS = (
    "mode: 'sparse' normalises by stored moments; train with frozen norms or mode='dense'"
)


class BatchNorm(nn.Module):
    """Batch normalisation over (B, H, W) of (B, H, W, features).

    ``frozen=True`` uses the stored moments in training too (PAG section 4: constant global moments allow a
    batch of one). Otherwise training normalises by the batch and moves the stored moments by
    ``1 - momentum``, with ``unbiased`` by n / (n - 1) times the variance of the batch's n = B H W values, as
    PyTorch does. The moments live in the collection ``batch_stats``. Under a global-view ``jax.jit`` the
    batch moments are those of the global batch, or of groups of its images (`core.statistics`); then the
    stored moments move by the mean of the groups'. Forward and backward take one sum over the batch each
    (`ops.affine`). Moments and norm are computed in float32, the result is of the dtype of the input.
    """

    features: int
    frozen: bool = False
    momentum: float = 0.9
    epsilon: float = 1e-5
    unbiased: bool = False

    def setup(self) -> None:
        shape = (self.features,)
        self.scale = parameter(self, "scale", nn.initializers.ones_init(), shape)
        self.bias = parameter(self, "bias", nn.initializers.zeros_init(), shape)
        self.mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        self.var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)

    def layer(self) -> Affine:
        """The norm by its stored moments, as a layer of `ops.sparse_block`."""
        return Affine(*self._affine(self.mean.value, self.var.value))

    def _affine(self, mean: Array, var: Array) -> tuple[Array, Array]:
        multiplier = self.scale * jax.lax.rsqrt(var + self.epsilon)
        return multiplier, self.bias - mean * multiplier

    def __call__(self, x: Array, *, train: bool = False) -> Array:
        if self.frozen or not train:
            return self.layer()(x)
        groups = norm_groups(len(x))
        # The stored mean is near to the batch's: little cancels in the variance.
        mean, var = moments(x, self.mean.value, groups)
        if not self.is_initializing():
            self.mean.value = self.momentum * self.mean.value + (1 - self.momentum) * mean.mean(0)
            positions = x.size // self.features // groups
            moved = var * (positions / max(positions - 1, 1)) if self.unbiased else var
            self.var.value = self.momentum * self.var.value + (1 - self.momentum) * moved.mean(0)
        return affine(x, *self._affine(mean, var))
