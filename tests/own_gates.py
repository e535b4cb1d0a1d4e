"""Gates of a user, named in configs as ``tests.own_gates:Leaning``: nothing in the library knows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynpix_jax.core.routing import Routing
from dynpix_jax.core.typing import Array, Mask
from dynpix_jax.nn.gates import COMPUTE, MARGIN, SKIP, Decision, Gate, GateOptions, Reads, choose


@dataclass(frozen=True)
class Leaning(GateOptions):
    """Per pixel: brightness among the features, and a bias under a name of its own."""

    reads: ClassVar[tuple[Reads, ...]] = ("features",)
    bias: ClassVar[str] = "lean"

    def build(self, reads: Reads, features: int, strides: int = 1) -> LeaningGate:
        return LeaningGate(strides)


class LeaningGate(Gate):
    strides: int

    def setup(self) -> None:
        self.lean = self.param("lean", nn.initializers.zeros_init(), (2,))

    def __call__(self, x: Array, routing: Routing, *, before: Mask | None = None) -> Decision:
        seen = x[:, :: self.strides, :: self.strides].mean(-1, keepdims=True)
        logits = jnp.concatenate([-seen, seen], -1) + self.lean
        self.sow("intermediates", MARGIN, logits[..., COMPUTE] - logits[..., SKIP])
        return Decision(choose(self, logits, routing)[..., COMPUTE], jax.nn.softmax(logits)[..., COMPUTE])


@dataclass(frozen=True)
class Brightness(GateOptions):
    """Per image: a threshold of its mean feature."""

    reads: ClassVar[tuple[Reads, ...]] = ("features",)
    whole_images: ClassVar[bool] = True

    def build(self, reads: Reads, features: int, strides: int = 1) -> BrightnessGate:
        return BrightnessGate()


class BrightnessGate(Gate):
    @nn.compact
    def __call__(self, x: Array, routing: Routing, *, before: Mask | None = None) -> Decision:
        lead = jnp.tanh(x.mean((1, 2, 3))) - self.param("threshold", nn.initializers.zeros_init(), ())
        logits = jnp.concatenate([-lead[:, None], lead[:, None]], -1)
        return Decision(choose(self, logits, routing)[:, COMPUTE], jax.nn.softmax(logits)[:, COMPUTE])
