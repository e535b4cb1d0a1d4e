"""What every system is: a paper's network with its losses, pure functions of arrays, parameters, keys."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from dynpix_jax.core.errors import suggest
from dynpix_jax.core.routing import Mode
from dynpix_jax.core.task import Task
from dynpix_jax.core.typing import Array, PRNGKey, Variables

Inputs = Mapping[str, Any]
"""What comes beside a batch of images, by name: arrays (B, H, W)."""


@flax.struct.dataclass
class Outputs:
    """What a forward pass gives.

    predictions: task -> logits (B, H, W, C) at the images' resolution.
    gates: gate -> float mask (B, h, w), 1 where the gated layer computed; straight-through gradients.
    selections: MultiPool -> (B, h, w, P), the weight of every pooling size.
    exits: earlier predictions, in the order in which the network makes them (side outputs, exits, loops).
    updates: new values of the mutable collections (``batch_stats``); empty unless training moves them.
    probabilities: gate -> its probability of computing, in [0, 1]: what training drew its sample from, or
    what it would have decided on where masks were given. Empty otherwise.
    measures: further numbers of each image (B,) float, by name: what a solver needed, say.
    """

    predictions: dict[str, Array]
    gates: dict[str, Array]
    selections: dict[str, Array]
    exits: tuple[dict[str, Array], ...] = ()
    updates: dict[str, Any] = flax.struct.field(default_factory=dict)
    probabilities: dict[str, Array] = flax.struct.field(default_factory=dict)
    measures: dict[str, Array] = flax.struct.field(default_factory=dict)


def check_masks(masks: Mapping[str, Array] | None, gates: Collection[str]) -> Mapping[str, Array]:
    """The given masks of System.apply, {} for None.

    Raises:
      ValueError: a name that is none of ``gates``.
    """
    for name in masks or {}:
        if name not in gates:
            raise ValueError(f"masks: there is no gate {name!r}; {suggest(name, gates)}")
    return masks or {}


@flax.struct.dataclass
class LossAux:
    """Named parts of a loss (scalars, already weighted), what else a step reports, new ``batch_stats``."""

    terms: dict[str, Array]
    updates: dict[str, Any]


class System(ABC):
    """Base of the systems. Immutable; all state is in ``variables`` = {"params": ..., "batch_stats": ...}.

    tasks: what it predicts, by name, in the order of its outputs.
    inputs: fields of a batch that ``apply`` takes beside the images, as keyword arguments of their names
    ("depth", (B, H, W) metres). Evaluation reads them from the source and moves them as it does the images.
    supervision: labels that ``loss`` reads beside those of the tasks and the inputs.
    turns: empty, or what a training step takes one after another at the same batch, each with a loss and an
    update of its own (tasks, of single-tasking). ``loss`` of such a system takes ``turn=``.
    nested_gates: whether a gate stays shut where the one before it was: their masks shrink from gate to gate.
    counts_resizing: whether bilinear resizing, a product of matrices, is among its MACs; in the papers of the
    HRNet family it is not.
    """

    name: ClassVar[str]
    tasks: Mapping[str, Task]
    inputs: tuple[str, ...] = ()
    supervision: tuple[str, ...] = ()
    turns: tuple[str, ...] = ()
    counts_resizing: ClassVar[bool] = True
    nested_gates: ClassVar[bool] = False
    network: nn.Module

    def init(self, key: PRNGKey, batch: Mapping[str, Any]) -> Variables:
        """Fresh variables; ``batch["image"]`` (B, H, W, 3) gives the shape only."""
        images = jnp.zeros(batch["image"].shape, jnp.float32)
        params, gumbel = jax.random.split(key)
        variables = self.network.init({"params": params, "gumbel": gumbel}, images)
        return dict(variables)

    @abstractmethod
    def apply(
        self,
        variables: Variables,
        images: Array,
        *,
        train: bool = False,
        rngs: Mapping[str, PRNGKey] | None = None,
        mode: Mode = "dense",
        temperature: float | Array = 1.0,
        masks: Mapping[str, Array] | None = None,
    ) -> Outputs:
        """Forward pass of (B, H, W, 3) RGB images, uint8 or float in 0..255.

        Args:
          train: sample gates, move running averages. rngs: the named streams that training draws from.
          mode: "dense" multiplies by masks, "sparse" executes active positions only.
          temperature: of the relaxation behind the gates' gradients.
          masks: gate -> bool mask of the shape that ``Outputs.gates`` has, True = compute: replaces what the
            gate decides; gates that it does not name decide for themselves. The same masks give the same
            result in both modes.

        Raises:
          ValueError: a mask for a gate that there is not, or of another shape or dtype.
        """

    def dense_predictions(self, variables: Variables, images: Array, **inputs: Any) -> dict[str, Array]:
        """The program on which MACs are counted: `apply`, unless that has loops that depend on the data."""
        return self.apply(variables, images, **inputs).predictions

    @abstractmethod
    def loss(
        self,
        variables: Variables,
        batch: Mapping[str, Array],
        *,
        rngs: Mapping[str, PRNGKey],
        controls: Mapping[str, Array],
    ) -> tuple[Array, LossAux]:
        """Training loss of a batch (labels by task name, ``valid`` (B,) bool)."""

    def controls(self, step: Array, steps: int) -> dict[str, Array]:
        """Scheduled scalars (temperature, rho, ...) at ``step`` (may be traced) of a stage's ``steps``."""
        return {}

    def uses(self, turn: str, path: str) -> bool:
        """Whether the loss of ``turn`` depends on the parameter at ``path`` ("a/b/kernel").

        Those that it does not use are not updated in that turn: no momentum, no decay.
        """
        return True

    def labelled(self, batch: Mapping[str, Array], turn: str) -> Array:
        """Bool (): whether the batch has a label for ``turn``, which is skipped otherwise."""
        return jnp.asarray(True)

    @abstractmethod
    def adapt(self, given: Variables, fresh: Variables) -> Variables:
        """``fresh`` with all that a previous stage, or a pretrained backbone, already knows."""

    @property
    def alternatives(self) -> Mapping[str, System]:
        """Other ways to run the same variables, by name: each a system with the same tasks, inputs and
        parameters (it may leave some out). Such as "argmax" for a network that was trained with soft choices.
        """
        return {}

    def gated_macs(self, size: tuple[int, int]) -> dict[str, float]:
        """MACs of each gated layer for one (H, W) image at density 1: what a skipped share of it saves."""
        return {}

    def executed_shares(self, outputs: Outputs) -> dict[str, Array]:
        """Share of positions (B,) in [0, 1] at which each layer of ``gated_macs`` was executed."""
        return {}

    def prediction_macs(self, size: tuple[int, int], shares: Mapping[str, Any]) -> tuple[Any, ...]:
        """MACs of an (H, W) image up to each exit and the last prediction, layers executed at ``shares``.

        Shares are numbers, or arrays (B,) of several images; so are the results that depend on them. () where
        exits are not made one after another (side outputs of one pass).
        """
        return ()

    def exit_maps(self, outputs: Outputs) -> tuple[tuple[Array, Array | None], ...]:
        """Of each exit and the last prediction: how sure it is, (B, h, w), larger is surer, and where the
        network computes on after it, (B, h, w) in {0, 1} (None: everywhere, or it is the last); () without.
        """
        return ()

    def is_gate(self, name: str) -> bool:
        """Whether that layer of ``gated_macs`` is a gate: it computes or not.

        The others are branches ("res4_2/dilation_2"), of which every pixel takes one.
        """
        return "/" not in name

    @property
    def choices(self) -> tuple[str, ...]:
        """Names of the branches of which pixels choose one (pooling sizes), in their order; () without."""
        return ()

    def choice_maps(self, outputs: Outputs, size: tuple[int, int]) -> dict[str, Array]:
        """Which of ``choices`` weighs most: (B, H, W) int32, for every place where pixels choose."""
        return {}

    def true_choices(self, labels: Mapping[str, Array]) -> Array | None:
        """What they should choose by a batch's labels: (B, H, W) int32, 255 = unknown.

        None where labels do not tell.
        """
        return None

    def ponder_maps(self, outputs: Outputs, size: tuple[int, int]) -> dict[str, Array]:
        """Where gates computed: (B, H, W) shares in [0, 1] a group of layers and ``total``; {} without."""
        return {}
