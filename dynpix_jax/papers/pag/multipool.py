"""PAG MultiPool (Kong and Fowlkes, section 3.4): every pixel picks its own pooling size."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax

from dynpix_jax.core.routing import Routing
from dynpix_jax.core.typing import Array
from dynpix_jax.nn.conv import Conv
from dynpix_jax.nn.gates import choose, constants
from dynpix_jax.nn.norm import BatchNorm
from dynpix_jax.nn.pooling import DilatedBranch, pool_dilated

Selection = Literal["pag", "average"]


class PoolGate(nn.Module):
    """Logits of the pooling sizes: 1x1 to 128, 3x3 to 32, 1x1 to P; norm and ReLU between (as released)."""

    in_features: int
    choices: int
    bias: tuple[float, ...]

    def setup(self) -> None:
        def normal(features: int) -> nn.initializers.Initializer:
            return nn.initializers.normal((2.0 / features) ** 0.5)

        self.conv1 = Conv(self.in_features, 128, 1, kernel_init=normal(128))
        self.bn1 = BatchNorm(128)
        self.conv2 = Conv(128, 32, 3, kernel_init=normal(32))
        self.bn2 = BatchNorm(32)
        self.conv3 = Conv(
            32,
            self.choices,
            1,
            use_bias=True,
            kernel_init=normal(self.choices),
            bias_init=constants(*self.bias),
        )

    def __call__(self, x: Array, *, train: bool) -> Array:
        x = jax.nn.relu(self.bn1(self.conv1(x), train=train))
        x = jax.nn.relu(self.bn2(self.conv2(x), train=train))
        return self.conv3(x)


class MultiPool(nn.Module):
    """O = sum_i W_i M_i over pooling sizes M_i; dilation 0 copies the input.

    (B, H, W, features) -> ((B, H, W, features), W of (B, H, W, P)). ``pag``: W is one-hot (eq. 4 by
    straight-through), so in sparse mode a pixel runs in its own branch only. ``average``: W is a softmax and
    every branch runs everywhere, in both modes ("wAvg", the weighted average the paper compares with).
    ``original_bias``: initial logit in favour of ``original_dilation``, that of the convolution replaced.
    """

    features: int
    dilations: tuple[int, ...] = (0, 1, 2, 4, 6, 8, 10)
    selection: Selection = "pag"
    frozen_norm: bool = True
    original_dilation: int = 1
    original_bias: float = 0.0

    def setup(self) -> None:
        for dilation in filter(None, self.dilations):
            setattr(
                self, f"dilation_{dilation}", DilatedBranch(self.features, self.features, self.frozen_norm)
            )
        bias = tuple(self.original_bias if d == self.original_dilation else 0.0 for d in self.dilations)
        self.gate = PoolGate(self.features, len(self.dilations), bias)

    def __call__(self, x: Array, routing: Routing) -> tuple[Array, Array]:
        logits = self.gate(x, train=routing.train)
        average = self.selection == "average"
        selection = jax.nn.softmax(logits) if average else choose(self, logits, routing)
        pooled = pool_dilated(x, selection, self.dilations, self._branch, routing, one_hot=not average)
        return pooled, selection

    def _branch(self, dilation: int) -> DilatedBranch:
        branch: DilatedBranch = getattr(self, f"dilation_{dilation}")
        return branch
