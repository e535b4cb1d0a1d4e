"""Config section of the ASTMT system: several tasks, and what of the network is each one's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dynpix_jax.backbones import mobilenet, resnet
from dynpix_jax.backbones.mobilenet import MobileNetConfig
from dynpix_jax.backbones.resnet import BackboneConfig
from dynpix_jax.core.errors import suggest


@dataclass(frozen=True)
class EncoderConfig:
    """Section ``model.encoder``: which of its modules every task has for itself.

    se: squeeze-and-excitation ("seenc"); otherwise all tasks share it. norm: batch norms, but for the stem's.
    adapters: 1x1 convolutions beside the 3x3 ones, zero at first (of ResNets only).
    """

    se: bool = False
    norm: bool = False
    adapters: bool = False


@dataclass(frozen=True)
class DecoderConfig:
    """Section ``model.decoder``.

    kind: ``deeplab``, one decoder that all tasks share up to a 1x1 convolution each, or ``uber``, a head of
    1x1 convolutions for each task, which reads none of the other fields.
    features: its width. rates: dilations of the ASPP, for output stride 16; twice that at 8.
    se, norm, adapters: each task's own, as in the encoder; without ``se`` there is none in the decoder.
    reduction: of that SE; 4 where low-level features are narrowed.
    """

    kind: Literal["deeplab", "uber"] = "deeplab"
    features: int = 64
    rates: tuple[int, ...] = (6, 12, 18)
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
        if self.kind == "uber" and (self.se or self.norm or self.adapters):
            raise ValueError("kind: 'uber' has a head for each task; expected se, norm, adapters False")


@dataclass(frozen=True)
class AdversarialConfig:
    """Section ``model.adversarial``: a discriminator that tells tasks by their gradients.

    weight: w_d of the appendix's eq. 1; 0 leaves the discriminator out of the loss. epochs: steps in which
    the reversal grows, see ops.reversal.reversal_strength. kernel: of its two convolutions, 1 in the paper;
    the code released for NYUD has 3.
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
class AstmtConfig:
    """Section ``model`` of an ASTMT config.

    tasks: what is predicted, in the order of the updates; one alone makes a single-task network, in which
    nothing is a task's own. task_options: fields of each task's class. task_weights: w_t of eq. 1; 1 if not
    given.
    backbone: an SE-ResNet, or mobilenet: a MobileNetV2 in its place, with a decoder of depthwise separable
    convolutions and ReLU6.
    adversarial: None trains without a discriminator.
    """

    system: Literal["astmt"]
    tasks: tuple[str, ...]
    task_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    task_weights: dict[str, float] = field(default_factory=dict)
    backbone: BackboneConfig | None = None
    mobilenet: MobileNetConfig | None = None
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    adversarial: AdversarialConfig | None = None

    def __post_init__(self) -> None:
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
        if self.adversarial is not None and len(self.tasks) == 1:
            raise ValueError("adversarial: of one task there is nothing to tell it from; expected None")
        if (self.backbone is None) == (self.mobilenet is None):
            raise ValueError("backbone: expected either backbone or mobilenet, the other None")
        if self.backbone is not None and self.backbone.depth in (18, 34):
            raise ValueError(f"backbone.depth: {self.backbone.depth}; expected 26, 50 or 101")
        if self.mobilenet is not None:
            self._check_mobilenet(self.mobilenet)

    def _check_mobilenet(self, config: MobileNetConfig) -> None:
        if self.encoder.adapters or self.decoder.adapters:
            raise ValueError("mobilenet: has no adapters; expected encoder.adapters, decoder.adapters False")
        if self.encoder.se and not config.se:
            raise ValueError("encoder.se: without mobilenet.se there is none that tasks could have")

    @property
    def output_stride(self) -> int:
        """Of the last map."""
        return (self.backbone or self.mobilenet).output_stride  # type: ignore[union-attr]

    @property
    def rates(self) -> tuple[int, ...]:
        """Dilations of the ASPP at that stride: they reach equally far in the image."""
        return tuple(2 * rate if self.output_stride == 8 else rate for rate in self.decoder.rates)

    @property
    def channels(self) -> tuple[int, int]:
        """Of the low-level and the last map."""
        if self.mobilenet is not None:
            low, high = mobilenet.feature_info(self.mobilenet)
        else:
            assert self.backbone is not None
            infos = resnet.feature_info(self.backbone)
            low, high = infos[0], infos[-1]
        return low.channels, high.channels
