"""A gate of one's own, for PAG and for the anytime system: it computes at a fixed share of the positions.

    model.gate = dict(kind="my_gates:TopK", weight=0.0, options=dict(share=0.5))   # PAG
    model.adaptivity = dict(kind="my_gates:TopK", options=dict(share=0.5))         # anytime

In front of a block a 1x1 convolution learns which positions matter; after an exit those matter whose two
likeliest classes are closest.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax

from dynpix_jax.core.routing import Routing
from dynpix_jax.core.typing import Array, Mask
from dynpix_jax.nn.conv import Conv
from dynpix_jax.nn.gates import Decision, Gate, GateOptions, Reads
from dynpix_jax.ops.confidence import top_share


@dataclass(frozen=True)
class TopK(GateOptions):
    """What a config may say: the share of positions that compute."""

    share: float = 0.5

    def build(self, reads: Reads, features: int, strides: int = 1) -> TopKGate:
        return TopKGate(self.share, reads, features, strides)


class TopKGate(Gate):
    """Decides for a map (B, H, W, features)."""

    share: float
    reads: Reads
    features: int
    strides: int

    def setup(self) -> None:
        if self.reads == "features":
            self.score = Conv(self.features, 1, kernel_size=1, strides=self.strides)

    def __call__(self, x: Array, routing: Routing, *, before: Mask | None = None) -> Decision:
        if self.reads == "features":
            score = self.score(x)[..., 0]
        else:
            best = jax.lax.top_k(jax.lax.stop_gradient(x), 2)[0]
            score = best[..., 1] - best[..., 0]
        probability = jax.nn.sigmoid(score)
        mask = top_share(score, self.share, before).astype(score.dtype)
        # Straight-through: the mask forwards, the gradient of the probability backwards.
        return Decision(mask + (probability - jax.lax.stop_gradient(probability)), probability)
