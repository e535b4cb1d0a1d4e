"""Prediction in steps (loops, exits, iterates of a solver): the protocol of systems that have them.

`evaluation.stepwise` runs the steps one by one within a budget.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import flax.struct
import jax

from dynpix_jax.core.routing import Routing
from dynpix_jax.core.system import Inputs
from dynpix_jax.core.typing import Array, Variables

State = TypeVar("State")

STEP_SCOPE = "at_step_"
"""What the named scope of a step begins with; its index follows."""


def in_step(index: int) -> AbstractContextManager[None]:
    """A named scope, whose MACs are counted for that step (`flops.system_macs`)."""
    return jax.named_scope(f"{STEP_SCOPE}{index}")


@flax.struct.dataclass
class StepResult:
    """The result of a step, on the device; a pytree, so that a jitted function can return it.

    Attributes:
        predictions: Task -> logits (B, H, W, C) at the images' size.
        confidence: (B, h, w) at the resolution at which the system decides, larger is surer; None without.
        gates: Gates of this step, as in Outputs.
        selections: Selections of this step, as in Outputs.
    """

    predictions: dict[str, Array]
    confidence: Array | None = None
    gates: dict[str, Array] = flax.struct.field(default_factory=dict)
    selections: dict[str, Array] = flax.struct.field(default_factory=dict)


def _nothing_skipped(state: Any) -> Mapping[str, float]:
    return {}


@dataclass(frozen=True)
class Step(Generic[State]):
    """One step.

    Attributes:
        run: Maps the state before it to the state after it and its result. A first call with new shapes may
            compile.
        shares: Maps the state before it to the share in [0, 1] (mean over the batch) that it will execute of
            each gated layer, by name; layers without an entry run everywhere.
    """

    run: Callable[[State], tuple[State, StepResult]]
    shares: Callable[[State], Mapping[str, float]] = _nothing_skipped


@runtime_checkable
class Progressive(Protocol):
    """Predicts in steps. Its forward pass runs all of them, each within `in_step`."""

    def steps(
        self, variables: Variables, images: Array, inputs: Inputs, routing: Routing
    ) -> tuple[Sequence[Step[Any]], Any]:
        """The steps for (B, H, W, 3) images, and the state that the first one takes.

        The last step's predictions are those of `apply`; earlier ones are its exits.
        """
