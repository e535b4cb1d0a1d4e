"""Optional abilities of systems, as protocols. Programs ask ``isinstance(system, Gated)``, never a name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, runtime_checkable

from dynpix_jax.core.system import Inputs, LossAux, Outputs, System
from dynpix_jax.core.typing import Array, PRNGKey, Variables


@runtime_checkable
class ReadsInputs(Protocol):
    """Reads fields of a batch beside the images.

    Attributes:
        inputs: Fields that ``apply`` takes ("depth", (B, H, W) metres). Evaluation reads them from the source
            and moves them as it does the images.
        supervision: Labels that ``loss`` reads beside those of the tasks and the inputs.
    """

    inputs: tuple[str, ...]
    supervision: tuple[str, ...]


@runtime_checkable
class TakesTurns(Protocol):
    """A training step takes several turns at one batch, each with a loss and an update of its own.

    Attributes:
        turns: Their names, in order.
    """

    turns: tuple[str, ...]

    def uses(self, turn: str, path: str) -> bool:
        """Whether the loss of ``turn`` depends on the parameter at ``path`` ("a/b/kernel").

        Other parameters are not updated in that turn: no momentum, no decay.
        """

    def labelled(self, batch: Mapping[str, Array], turn: str) -> Array:
        """Bool (): whether the batch has a label for ``turn``, which is skipped otherwise."""

    def turn_loss(
        self,
        variables: Variables,
        batch: Mapping[str, Array],
        turn: str,
        *,
        rngs: Mapping[str, PRNGKey],
        controls: Mapping[str, Array],
    ) -> tuple[Array, LossAux]:
        """The loss of one turn."""


@dataclass(frozen=True)
class GatedLayer:
    """A part of a network that runs at a share of the positions, which depends on the image.

    Attributes:
        scopes: Regexes of module paths and named scopes ("backbone/res4_2/conv2"); skipping saves what they
            compute (`flops.gated_macs`).
        kind: ``gate``: computed or skipped; ``branch``: every pixel takes one of several; ``iterations``: one
            by one.
        choice: The module whose pixels choose the branch ("res4_2"), the same for all its branches.
        skipped: Whether that module has a gate, too: where it is off, no branch is taken.
    """

    scopes: tuple[str, ...]
    kind: Literal["gate", "branch", "iterations"] = "gate"
    choice: str = ""
    skipped: bool = field(default=False, kw_only=True)


@runtime_checkable
class Gated(Protocol):
    """Executes some of its layers at a share of the positions, which depends on the image."""

    @property
    def gated(self) -> Mapping[str, GatedLayer]:
        """The gated layers by name; {} without."""

    def executed_shares(self, outputs: Outputs) -> dict[str, Array]:
        """Executed share of positions of each gated layer, (B,) in [0, 1]."""


@runtime_checkable
class CountedInPart(Protocol):
    """Its paper's tables count a part of the network only.

    Attributes:
        counted_in_paper: Regex of the module paths ("backbone/res4_2/conv2") whose MACs the tables hold.
    """

    counted_in_paper: ClassVar[str]


@runtime_checkable
class TakesMasks(Protocol):
    """Its gates are masks of positions (``Outputs.gates``), which `Routing.masks` may replace.

    Attributes:
        nested_gates: Whether a position that a gate skips is skipped by all later gates.
    """

    nested_gates: ClassVar[bool]

    def ponder_maps(self, outputs: Outputs, size: tuple[int, int]) -> dict[str, Array]:
        """Executed shares (B, H, W) in [0, 1] of each group of layers and ``total``; {} without gates."""


@runtime_checkable
class Chooses(Protocol):
    """Its pixels choose one of several branches, such as pooling sizes."""

    @property
    def choices(self) -> tuple[str, ...]:
        """Names of the branches, in their order; () without."""

    def choice_maps(self, outputs: Outputs, size: tuple[int, int]) -> dict[str, Array]:
        """Index of the choice of largest weight, (B, H, W) int32, for each module whose pixels choose.

        255 where the module is skipped.
        """

    def true_choices(self, labels: Mapping[str, Array]) -> Array | None:
        """The choices that a batch's labels imply: (B, H, W) int32, 255 = unknown.

        None if the labels do not determine them.
        """


@runtime_checkable
class HasGateBiases(Protocol):
    """Has gates whose learned decisions a shift of their biases moves towards computing or skipping."""

    @property
    def gate_biases(self) -> Mapping[str, str]:
        """Gate -> path, within the parameters, of the bias of its two logits; {} if none can be shifted.

        The logits are to skip and to compute (`nn.gates.with_shifted_biases`).
        """


@runtime_checkable
class Calibrates(Protocol):
    """Sets some of its parameters from images at the end of a training stage, without gradients."""

    @property
    def calibration_images(self) -> int:
        """Number of training images that it needs; 0: this stage calibrates nothing."""

    def calibrate(
        self, variables: Variables, image: Callable[[int], Array], count: int
    ) -> tuple[Variables, str]:
        """The calibrated variables, and a line for the log.

        Args:
            variables: At the end of the stage.
            image: Reads an image (1, H, W, 3), as evaluation shows it, by its number.
            count: Number of images.
        """


@runtime_checkable
class StopsEarly(Protocol):
    """Decides at its exits, position by position, where the network computes on."""

    def exit_maps(self, outputs: Outputs) -> tuple[tuple[Array, Array | None], ...]:
        """(confidence, continued) of each exit and the last prediction.

        Confidence is (B, h, w), larger is surer. ``continued`` is 1 where later stages compute, (B, h, w) in
        {0, 1}; None: everywhere, or there is no later stage.
        """


@runtime_checkable
class HasAlternatives(Protocol):
    """Can run the same variables in other ways."""

    @property
    def alternatives(self) -> Mapping[str, System]:
        """The other ways by name, as systems with the same tasks and inputs; they may use fewer parameters.

        For example "argmax", for a network that was trained with soft choices.
        """


@runtime_checkable
class Iterates(Protocol):
    """Has loops whose length depends on the data, so that MACs are counted on another program."""

    def dense_predictions(self, variables: Variables, images: Array, inputs: Inputs) -> dict[str, Array]:
        """The program whose MACs are counted: as many iterations as the limit allows."""


def gated_layers(system: System) -> Mapping[str, GatedLayer]:
    """The system's gated layers; {} without gates."""
    return system.gated if isinstance(system, Gated) else {}


def has_masked_gates(system: System) -> bool:
    """Whether gates decide by position, with masks that others can replace."""
    gates = any(layer.kind == "gate" for layer in gated_layers(system).values())
    return gates and isinstance(system, TakesMasks)


def executed_shares(system: System, outputs: Outputs) -> dict[str, Array]:
    """Executed share of positions (B,) of each of `gated_layers`."""
    return system.executed_shares(outputs) if isinstance(system, Gated) else {}


def density(system: System, shares: Mapping[str, float]) -> float | None:
    """Mean of the shares of gates, each with equal weight; None without gates, or without any shares (a
    prediction within a budget has none)."""
    if not shares:
        return None
    gates = [shares[name] for name, layer in gated_layers(system).items() if layer.kind == "gate"]
    return sum(gates) / len(gates) if gates else None


def inputs_of(system: System) -> tuple[str, ...]:
    """Fields that the system takes beside images; () for most."""
    return system.inputs if isinstance(system, ReadsInputs) else ()


def gate_biases_of(system: System) -> Mapping[str, str]:
    """Gate -> path of the bias of its two logits; {} if no gate can be shifted."""
    return system.gate_biases if isinstance(system, HasGateBiases) else {}


def alternatives_of(system: System) -> Mapping[str, System]:
    """The system's alternatives; {} for most."""
    return system.alternatives if isinstance(system, HasAlternatives) else {}


def choices_of(system: System) -> tuple[str, ...]:
    """Names of the branches among which its pixels choose; () for most."""
    return system.choices if isinstance(system, Chooses) else ()
