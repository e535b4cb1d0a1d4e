"""Res6: the additional convolutions above a ResNet (PAG section 5.2, table 1), with a MultiPool or not."""

from __future__ import annotations

import flax.linen as nn
import jax

from dynpix_jax.core.routing import Routing
from dynpix_jax.core.typing import Array
from dynpix_jax.nn.conv import Conv
from dynpix_jax.nn.norm import BatchNorm
from dynpix_jax.papers.pag.multipool import MultiPool, Selection


class Res6(nn.Module):
    """Two 3x3 convolutions with norm and ReLU: (B, H, W, in_features) -> ((B, H, W, features), selection).

    With ``pooled`` the second is a MultiPool and the selection is (B, H, W, P); else it is None. No
    pretrained network has these layers, so their norms learn moments even where the backbone's are frozen.
    """

    in_features: int
    features: int
    pooled: bool = False
    dilations: tuple[int, ...] = (0, 1, 2, 4, 6, 8, 10)
    selection: Selection = "pag"
    original_bias: float = 0.0

    def setup(self) -> None:
        self.conv1 = Conv(self.in_features, self.features, 3)
        self.bn1 = BatchNorm(self.features)
        if self.pooled:
            self.multipool = MultiPool(
                self.features,
                dilations=self.dilations,
                selection=self.selection,
                frozen_norm=False,
                original_bias=self.original_bias,
            )
        else:
            self.conv2 = Conv(self.features, self.features, 3)
            self.bn2 = BatchNorm(self.features)

    def __call__(self, x: Array, routing: Routing) -> tuple[Array, Array | None]:
        train = routing.train
        x = jax.nn.relu(self.bn1(self.conv1(x), train=train))
        if self.pooled:
            pooled, selection = self.multipool(x, routing)
            return pooled, selection
        return jax.nn.relu(self.bn2(self.conv2(x), train=train)), None
