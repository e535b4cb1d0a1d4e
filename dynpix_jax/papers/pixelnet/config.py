"""Config section of the PixelNet system."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from dynpix_jax.backbones import BACKBONES
from dynpix_jax.backbones.base import BackboneConfig
from dynpix_jax.backbones.vgg import VGGConfig
from dynpix_jax.core.errors import suggest
from dynpix_jax.core.sections import BESIDE, OneOf
from dynpix_jax.core.system import NetworkConfig
from dynpix_jax.tasks import TASKS, task_class


@dataclass(frozen=True)
class HypercolumnConfig:
    """Section ``model.hypercolumn``.

    Attributes:
        layers: Stages of the backbone in a hypercolumn; ``fc7`` is the paper's conv-7. The backbone's ``tap``
            selects the output of a layer's ReLU (as released for boundaries and segmentation) or its input
            (for normals).
        normalize: ``batch`` applies a batch norm over the sampled pixels to each layer, because scales of
            layers differ by orders of magnitude; the paper has none (``none``).
        dropout: Dropout of hypercolumns (0.5 as released for boundaries).
    """

    layers: tuple[str, ...] = ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3")
    normalize: Literal["none", "batch"] = "none"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not self.layers or len(set(self.layers)) != len(self.layers):
            raise ValueError(f"layers: {self.layers}; expected one or more, each once")
        _check_share("dropout", self.dropout)


@dataclass(frozen=True)
class MLPConfig:
    """Section ``model.mlp``.

    Attributes:
        hidden: Widths of the hidden layers: () is the paper's fc-1, (4096,) fc-2, (4096, 4096) fc-3.
        dropout: Dropout rate after each hidden layer.
        init_std: Standard deviation of the kernels' Gaussian initialisation; None: He's.
    """

    hidden: tuple[int, ...] = (4096, 4096)
    dropout: float = 0.5
    init_std: float | None = 1e-3

    def __post_init__(self) -> None:
        if min(self.hidden, default=1) < 1:
            raise ValueError(f"hidden: {self.hidden}; expected positive numbers")
        if self.init_std is not None and not self.init_std > 0:
            raise ValueError(f"init_std: {self.init_std}; expected a positive number, or None")
        _check_share("dropout", self.dropout)

    def unread(self) -> Mapping[str, str]:
        """Options that are not read, and why."""
        return {} if self.hidden else {"dropout": "there are no hidden layers; set model.mlp.hidden"}


@dataclass(frozen=True)
class SamplingConfig:
    """Section ``model.sampling``: the pixels that training sees.

    Attributes:
        pixels: Sampled pixels per image (2000 in the paper); for ``uniform`` their mean.
        strategy: ``stratified`` samples each image; ``uniform`` samples all images together; ``biased``
            samples each image with a fixed share of rare pixels.
        rare_share: Share of rare pixels for ``biased``. Rare are boundaries, or all classes but the first.
    """

    pixels: int = 2000
    strategy: Literal["stratified", "uniform", "biased"] = "stratified"
    rare_share: float = 0.5

    def __post_init__(self) -> None:
        if self.pixels < 2:
            raise ValueError(f"pixels: {self.pixels}; expected at least 2")
        if not 0.0 < self.rare_share < 1.0:
            raise ValueError(f"rare_share: {self.rare_share}; expected a share in (0, 1)")

    def unread(self) -> Mapping[str, str]:
        """Options that are not read, and why."""
        return {} if self.strategy == "biased" else {"rare_share": "it is of strategy 'biased'"}


@dataclass(frozen=True)
class PixelNetConfig(NetworkConfig):
    """Section ``model`` of a PixelNet config.

    Attributes:
        task: Name of the task in ``tasks.TASKS``.
        task_options: Fields of that task's class.
        backbone: See backbones; the paper's is VGG-16.
        hypercolumn: Features of a pixel.
        mlp: The MLP above the hypercolumns.
        sampling: Sampling of pixels in training.
        pad: Pixels of the mean colour around the image, 100 as released for 224 x 224 images.
        chunk: Pixels that dense prediction works on at a time.
    """

    system: str
    task: str
    backbone: Annotated[BackboneConfig, OneOf(BACKBONES, default="vgg16")] = field(default_factory=VGGConfig)
    hypercolumn: HypercolumnConfig = field(default_factory=HypercolumnConfig)
    mlp: MLPConfig = field(default_factory=MLPConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    pad: int = 0
    chunk: int = 4096
    task_options: Annotated[Any, OneOf(TASKS, key="task", beside=True)] = BESIDE

    def unread(self) -> Mapping[str, str]:
        """Options that are not read, and why."""
        if not isinstance(self.backbone, VGGConfig):
            return {}
        reason = "model.hypercolumn.layers has neither fc6 nor fc7"
        layers = self.hypercolumn.layers
        reasons = {} if {"fc6", "fc7"} & set(layers) else {"backbone.fc_features": reason}
        if "fc7" not in layers:  # what is dropped of fc6 only fc7 would read
            reasons["backbone.dropout"] = "model.hypercolumn.layers has no fc7"
        return reasons

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [stage.name for stage in self.backbone.stages]
        for layer in self.hypercolumn.layers:
            if layer not in names:
                hint = suggest(layer, names)
                raise ValueError(f"hypercolumn.layers: {layer!r} is no layer of {self.backbone.name}; {hint}")
        if self.sampling.strategy == "biased" and not task_class(self.task).has_rare:
            raise ValueError(f"sampling.strategy: 'biased', but {self.task} has no rare pixels")
        if self.pad < 0:
            raise ValueError(f"pad: {self.pad}; expected a number >= 0")
        if self.chunk < 1:
            raise ValueError(f"chunk: {self.chunk}; expected at least 1")


def _check_share(name: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name}: {value}; expected a share in [0, 1)")
