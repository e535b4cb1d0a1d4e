"""Config section of the anytime system."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from dynpix_jax.backbones.hrnet import HRNetConfig
from dynpix_jax.core.sections import BESIDE, OneOf
from dynpix_jax.core.system import NetworkConfig
from dynpix_jax.nn.gates import GATES, GateOptions
from dynpix_jax.ops.interpolation import Normalize
from dynpix_jax.tasks import TASKS, task_class


@dataclass(frozen=True)
class AdaptivityConfig:
    """Section ``model.adaptivity``: the gate of later stages, and the interpolation (section 3.4).

    Attributes:
        kind: A gate of `nn.gates.GATES` that reads logits: ``confidence``, ``top_k``, ``random``, or your
            own. It decides by each exit's prediction; skipped positions stay skipped.
        start: Share of a stage's training steps before positions are skipped.
        radius: Radius of the interpolation, see ops.interpolate_masked.
        normalize: Normalisation of the interpolation.
        options: Options of the gate's kind.
    """

    kind: str = "confidence"
    start: float = 0.0
    radius: int = 3
    normalize: Normalize = "full"
    options: Annotated[GateOptions, OneOf(GATES, key="kind", beside=True)] = BESIDE

    def __post_init__(self) -> None:
        if self.options is BESIDE:
            object.__setattr__(self, "options", GATES.resolve(self.kind, "kind")())
        if "logits" not in self.options.reads or self.options.whole_images:
            raise ValueError(f"kind: {self.kind!r} does not decide on predictions, position by position")
        if not 0 <= self.start <= 1:
            raise ValueError(f"start: {self.start}; expected a share of the steps in [0, 1]")
        if self.radius < 1:
            raise ValueError(f"radius: {self.radius}; expected at least 1")


@dataclass(frozen=True)
class HeadConfig:
    """Section ``model.heads``.

    Attributes:
        kind: Kind of the exits before stage 4: ``plain`` (early exiting, EE) or ``redesigned`` (RH: small
            encoder-decoders, section 3.3). The exit after stage 4 is always plain.
        plain: ``two_layers`` (1x1 convolution, norm, ReLU, 1x1 convolution) or ``single`` (pose).
        inputs: Input of a head: all branches enlarged to the highest and joined (``concat``), or the
            ``highest`` alone. The paper's pose rows are EE on the highest, RH on all.
        features: Width of redesigned heads.
        downsampling: D of section 3.3, for the exits after stages 1, 2 and 3.
        sides: What becomes of sides that pooling by 2 does not divide: ``restored`` enlarges them to what
            they were; ``floored``, as released, doubles what pooling has left, so that logits are smaller
            than masks.
    """

    kind: Literal["plain", "redesigned"] = "redesigned"
    plain: Literal["two_layers", "single"] = "two_layers"
    inputs: Literal["concat", "highest"] = "concat"
    features: int = 128
    downsampling: tuple[int, int, int] = (3, 2, 1)
    sides: Literal["restored", "floored"] = "restored"

    def __post_init__(self) -> None:
        if self.features < 1:
            raise ValueError(f"features: {self.features}; expected at least 1")
        if min(self.downsampling) < 1:
            raise ValueError(f"downsampling: {self.downsampling}; expected numbers >= 1")

    def unread(self) -> Mapping[str, str]:
        """Options that are not read, and why."""
        names = () if self.kind == "redesigned" else ("features", "downsampling", "sides")
        return dict.fromkeys(names, "they are of redesigned heads; set model.heads.kind")


@dataclass(frozen=True)
class AnytimeConfig(NetworkConfig):
    """Section ``model`` of an anytime config.

    Attributes:
        task: Name of the task in ``tasks.TASKS``; the paper's are ``segmentation`` and ``pose``.
        task_options: Fields of that task's class.
        backbone: An HRNet, no other: the paper's exits stand between its stages, each of which has a map at a
            quarter of the image's resolution, where predictions and masks are.
        exits: Stages that are followed by an exit, ascending and ending with 4; (4,) is plain HRNet.
        weights: Weights of the exits' losses.
        heads: Heads of the exits.
        adaptivity: None computes all positions.
        running_variance: What norms store of a batch: its ``unbiased`` variance, as released (PyTorch), or
            the ``biased`` one that it is normalised by.
    """

    system: str
    task: str
    task_options: Annotated[Any, OneOf(TASKS, key="task", beside=True)] = BESIDE
    backbone: HRNetConfig = field(default_factory=HRNetConfig)
    exits: tuple[int, ...] = (1, 2, 3, 4)
    weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    heads: HeadConfig = field(default_factory=HeadConfig)
    adaptivity: AdaptivityConfig | None = None
    running_variance: Literal["unbiased", "biased"] = "unbiased"

    def __post_init__(self) -> None:
        super().__post_init__()
        task_class(self.task)
        if not self.exits or self.exits[-1] != 4 or not set(self.exits) <= {1, 2, 3, 4}:
            raise ValueError(f"exits: {self.exits}; expected stages of 1 to 4, ending with 4")
        if list(self.exits) != sorted(set(self.exits)):
            raise ValueError(f"exits: {self.exits}; expected them ascending")
        if len(self.weights) != len(self.exits) or min(self.weights) < 0:
            raise ValueError(f"weights: {self.weights}; expected {len(self.exits)} numbers >= 0")
        if self.adaptivity is not None:
            if len(self.exits) == 1:
                raise ValueError("adaptivity: needs an exit before the last one")
            if self.heads.kind == "redesigned" and self.heads.sides == "floored":
                raise ValueError(
                    "heads.sides: 'floored' gives logits that no mask fits; expected 'restored' with "
                    "adaptivity (the same where 4 * 2**D divides the sides)"
                )

    def unread(self) -> Mapping[str, str]:
        """Options that are not read, and why."""
        unread = {}
        if self.backbone.frozen_norm:
            unread["running_variance"] = "model.backbone.frozen_norm: nothing is stored"
            unread["norm_group"] = "all norms are frozen"
        if len(self.exits) == 1:
            names = ("kind", "features", "downsampling", "sides")
            unread |= {f"heads.{name}": "there is no exit before stage 4; set model.exits" for name in names}
        if len(self.backbone.branch_channels(4)) == len(self.exits) == 1:
            unread["heads.inputs"] = "the only exit has one branch in front of it"
        return unread
