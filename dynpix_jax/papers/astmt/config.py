"""Config section of the ASTMT system: its tasks, and the modules that each task has for itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from dynpix_jax.backbones import BACKBONES
from dynpix_jax.backbones.base import BackboneConfig, Stage, at_stride
from dynpix_jax.backbones.resnet import ResNetConfig
from dynpix_jax.core.errors import suggest
from dynpix_jax.core.sections import OneOf
from dynpix_jax.core.system import NetworkConfig
from dynpix_jax.tasks import TASKS, build


@dataclass(frozen=True)
class EncoderConfig:
    """Section ``model.encoder``: the modules that every task has for itself.

    Attributes:
        se: Squeeze-and-excitation ("seenc"); otherwise all tasks share it, if the backbone has it.
        norm: Batch norms, except the stem's.
        adapters: 1x1 convolutions parallel to the 3x3 ones, initially zero (ResNets only).
    """

    se: bool = False
    norm: bool = False
    adapters: bool = False


@dataclass(frozen=True)
class DecoderConfig:
    """Section ``model.decoder``.

    Attributes:
        kind: ``deeplab``, one decoder that all tasks share but for the last 1x1 convolution, or ``uber``, a
            head of 1x1 convolutions for each task, which reads no other field.
        features: Width of the decoder.
        rates: Dilations of the ASPP, for output stride 16; twice that at 8.
        separable: Depthwise separable convolutions and ReLU6, as MobileNet has them; no adapters then.
        se: Each task's own SE; otherwise the decoder has none.
        norm: Each task's own norms.
        adapters: Each task's own adapters.
        reduction: Reduction of the SE; 4 where low-level features are narrowed.
    """

    kind: Literal["deeplab", "uber"] = "deeplab"
    features: int = 64
    rates: tuple[int, ...] = (6, 12, 18)
    separable: bool = False
    se: bool = False
    norm: bool = False
    adapters: bool = False
    reduction: int = 16

    def __post_init__(self) -> None:
        if self.reduction < 1:
            raise ValueError(f"reduction: {self.reduction}; expected at least 1")
        if self.features < 1:
            raise ValueError(f"features: {self.features}; expected at least 1")
        if min(self.rates, default=1) < 1:
            raise ValueError(f"rates: {self.rates}; expected integers >= 1")

    def unread(self) -> Mapping[str, str]:
        """Options that are not read, and why."""
        if self.kind == "uber":
            names = (entry.name for entry in fields(self) if entry.name != "kind")
            return dict.fromkeys(names, "model.decoder.kind is 'uber', a head for each task")
        unread = {} if self.se else {"reduction": "there is no SE in the decoder; set model.decoder.se"}
        return unread | ({"adapters": "separable convolutions have none"} if self.separable else {})


@dataclass(frozen=True)
class AdversarialConfig:
    """Section ``model.adversarial``: a discriminator that classifies tasks by their gradients.

    Attributes:
        weight: w_d of the appendix's eq. 1; 0 leaves the discriminator out of the loss.
        epochs: Number of steps in which the reversal grows, see reversal_strength.
        kernel: Kernel size of its two convolutions, 1 in the paper; the code released for NYUD has 3.
    """

    weight: float = 0.1
    epochs: int = 60
    kernel: int = 1

    def __post_init__(self) -> None:
        if not 0.0 <= self.weight < 1.0:
            raise ValueError(f"weight: {self.weight}; expected a share in [0, 1)")
        if self.epochs < 1:
            raise ValueError(f"epochs: {self.epochs}; expected at least 1")
        if self.kernel not in (1, 3):
            raise ValueError(f"kernel: {self.kernel}; expected 1 or 3")


@dataclass(frozen=True)
class AstmtConfig(NetworkConfig):
    """Section ``model`` of an ASTMT config.

    Attributes:
        tasks: Names of the tasks in the order of the updates; with a single task no module is a task's own.
        task_options: The tasks. In a file: fields of their classes, where they are no defaults.
        task_weights: w_t of eq. 1; 1 where it is not given.
        backbone: See backbones; the paper has SE-ResNets and MobileNetV2.
        encoder: Modules of the backbone that each task has for itself.
        decoder: The decoder above the backbone.
        adversarial: The discriminator; None trains without one.
        running_variance: What norms store of a batch: its ``unbiased`` variance, as released (PyTorch), or
            the ``biased`` one that it is normalised by, which is 7/8 of it for the pooled branch of 8 images.
    """

    system: str
    tasks: tuple[str, ...]
    task_options: dict[str, Annotated[Any, OneOf(TASKS, key=None)]] = field(default_factory=dict)
    task_weights: dict[str, float] = field(default_factory=dict)
    backbone: Annotated[BackboneConfig, OneOf(BACKBONES, default="resnet")] = field(
        default_factory=lambda: ResNetConfig(se=True)
    )
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    adversarial: AdversarialConfig | None = None
    running_variance: Literal["unbiased", "biased"] = "unbiased"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"tasks: {self.tasks}; expected at least one, each once")
        sections: tuple[tuple[str, Mapping[str, Any]], ...] = (
            ("task_options", self.task_options),
            ("task_weights", self.task_weights),
        )
        for name, section in sections:
            for task in section:
                if task not in self.tasks:
                    raise ValueError(f"{name}.{task}: not one of tasks; {suggest(task, self.tasks)}")
        for task, weight in self.task_weights.items():
            if not weight > 0.0:
                raise ValueError(f"task_weights.{task}: {weight}; expected a positive number")
        # Defaults as if they were written out: the same run.
        options = {
            task: build(task, self.task_options.get(task, {}), f"config.model.task_options.{task}")
            for task in self.tasks
        }
        object.__setattr__(self, "task_options", options)
        weights = {task: self.task_weights.get(task, 1.0) for task in self.tasks}
        object.__setattr__(self, "task_weights", weights)
        if self.adversarial is not None and len(self.tasks) == 1:
            raise ValueError("adversarial: of one task there is nothing to tell it from; expected None")
        self.low  # noqa: B018  # raises ValueError if there is none

    def unread(self) -> Mapping[str, str]:
        """Options that are not read, and why."""
        own = ("se", "norm", "adapters")
        without = [name for name in own if name not in self.backbone.per_task]
        reason = f"this {self.backbone.name} has none that tasks could have"
        unread = {f"encoder.{name}": reason for name in without}
        if len(self.tasks) == 1:
            names = (*(f"encoder.{name}" for name in own), "decoder.norm", "decoder.adapters")
            unread |= dict.fromkeys(names, "a single task has nothing of its own; set model.tasks")
        if self.adversarial is not None and not self.adversarial.weight:
            unread["adversarial.epochs"] = "model.adversarial.weight is 0"
        return unread

    @property
    def low(self) -> Stage:
        """The stage of the low-level map, at stride 4."""
        return at_stride(self.backbone.stages, 4)

    @property
    def high(self) -> Stage:
        """The stage of the last map."""
        return self.backbone.stages[-1]

    @property
    def rates(self) -> tuple[int, ...]:
        """Dilations of the ASPP at that map's stride, which have the same reach in the image."""
        return tuple(2 * rate if self.high.stride == 8 else rate for rate in self.decoder.rates)
