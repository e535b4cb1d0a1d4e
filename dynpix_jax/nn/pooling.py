"""Pooling by dilated convolutions: every pixel weighs the dilations, or selects one.

PAG's MultiPool (section 3.4) and depth-aware gated pooling (Kong and Fowlkes, CVPR 2018, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import flax.linen as nn
import jax

from dynpix_jax.core.routing import Routing
from dynpix_jax.core.typing import Array
from dynpix_jax.nn.conv import Conv
from dynpix_jax.nn.norm import SPARSE_NEEDS_FROZEN_NORMS, BatchNorm
from dynpix_jax.ops.conv import conv
from dynpix_jax.ops.sparse import Convolution, Layer, Relu, active_set, sparse_block


class DilatedBranch(nn.Module):
    """3x3 convolution, norm, ReLU; each call gives the dilation, so that pooling sizes can share a kernel."""

    in_features: int
    features: int
    frozen_norm: bool = False

    def setup(self) -> None:
        self.conv = Conv(self.in_features, self.features, 3)
        self.bn = BatchNorm(self.features, frozen=self.frozen_norm)

    def __call__(self, x: Array, dilation: int, *, train: bool) -> Array:
        y = conv(x, self.conv.kernel.astype(x.dtype), dilation=(dilation, dilation))
        return jax.nn.relu(self.bn(y, train=train))

    def layers(self, dilation: int) -> tuple[Layer, ...]:
        """The module as layers of `ops.sparse_block`, by its stored moments."""
        return Convolution(self.conv.kernel, dilation=(dilation, dilation)), self.bn.layer(), Relu()


def pool_dilated(
    x: Array,
    weights: Array | None,
    dilations: Sequence[int],
    branch: Callable[[int], DilatedBranch],
    routing: Routing,
    *,
    one_hot: bool,
    mask: Array | None = None,
) -> Array:
    """sum_i W_i M_i over pooling sizes M_i; dilation 0 copies the input.

    Args:
        x: (B, H, W, C).
        weights: (B, H, W, P) for P dilations; None: equal weights.
        dilations: Dilations in the order of the weights.
        branch: The branch of a dilation above 0, C to C channels.
        routing: In sparse mode, with ``one_hot`` weights, a pixel runs in its own branch only.
        one_hot: Whether each pixel has one weight of 1, the others 0.
        mask: (B, H, W) in {0, 1}; in sparse mode, with ``one_hot`` weights, a pixel where it is 0 keeps its
            input. None: 1 everywhere. Other passes do not read it.
    """

    def everywhere(dilation: int) -> Array:
        with jax.named_scope(f"branch_{dilation}"):  # kernels may be tied: it tells their products apart
            return branch(dilation)(x, dilation, train=routing.train)

    if weights is None or not one_hot or routing.mode == "dense":
        pooled = (everywhere(dilation) if dilation else x for dilation in dilations)
        return weighted_sum(pooled, weights, len(dilations))
    # A pixel of the copy branch keeps its input; without a copy branch every position is written once.
    out = x if 0 in dilations or mask is not None else None
    chosen = weights > 0.5 if mask is None else (weights > 0.5) & (mask > 0.5)[..., None]
    for index, dilation in enumerate(dilations):
        if dilation:
            if routing.train and not branch(dilation).frozen_norm:
                raise ValueError(SPARSE_NEEDS_FROZEN_NORMS)
            active = active_set(chosen[..., index])
            layers = branch(dilation).layers(dilation)
            out = sparse_block(x, active, layers, init=out, implementation=routing.implementation)
    return x if out is None else out


def weighted_sum(maps: Iterable[Array], weights: Array | None, count: int) -> Array:
    """sum_i W_i M_i of ``count`` maps (B, H, W, C) with weights (B, H, W, P); their mean if None."""
    total: Array | None = None
    for index, pooled in enumerate(maps):
        share = 1.0 / count if weights is None else weights[..., index, None].astype(pooled.dtype)
        total = share * pooled if total is None else total + share * pooled
    assert total is not None  # there is at least one pooling size
    return total
