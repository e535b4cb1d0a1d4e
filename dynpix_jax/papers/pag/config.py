"""Config section of the PAG system, and the blocks and gates that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal

from dynpix_jax.backbones import BACKBONES
from dynpix_jax.backbones.base import BackboneConfig, Stage
from dynpix_jax.backbones.resnet import ResNetConfig
from dynpix_jax.core.errors import suggest
from dynpix_jax.core.sections import BESIDE, OneOf
from dynpix_jax.core.system import NetworkConfig
from dynpix_jax.nn.gates import GATES, GateOptions, NoGate
from dynpix_jax.nn.residual import BlockSpec, frozen
from dynpix_jax.tasks import TASKS, task_class


@dataclass(frozen=True)
class GateConfig:
    """Section ``model.gate``: the gate of the blocks, and its training.

    Gates that decide for whole images (kind ``layer``) have their own loss (layer_rate_loss; its weight is 1
    in the released code of that baseline), and read neither scope nor sparsity nor sparsity_on.

    Attributes:
        kind: A gate of `nn.gates.GATES` that reads features: ``none``; ``pixel`` (PAG); ``layer`` (whole
            blocks skipped per image, the baseline of Table 2); ``top_k``; ``random``; or your own.
        scope: Interpretation of eq. 2, ``conv3x3`` (as released) or ``residual`` (see GatedBlock).
        stages: Stages of the backbone whose blocks have a gate, such as ("res3", "res4"); all of them if
            empty. Skipping saves little time where blocks have few channels (docs/sparse-execution.md).
        rho: Target density in (0, 1].
        rho_start: Density at the stage's start, lowered linearly to rho over ``ramp``.
        ramp: Share of the stage in [0, 1] during which gates are inserted and rho is lowered.
        insert: Insert gates one by one from the top during the ramp; False activates all of them at once.
        sparsity: ``per_layer`` (eq. 5 and 6); ``mild``, the released code's log(1 + x**2) instead of eq. 5;
            ``global``, the mean over layers that the paper warns of; ``combined``, the same weighted by
            positions, as released.
        sparsity_on: Densities of the ``hard`` masks, which determine the cost, or of the ``soft``
            probabilities that they are drawn from, as released.
        weight: Lambda of the loss.
        guidance: Weight of a second loss, which is not in the paper: it asks gates to compute at the pixels
            that are rare for the task, boundaries or all classes but the first (`sparsity.guidance_loss`).
        temperature: Temperature of the relaxation, (start, end) over the stage.
        noise: Scale of the noise that masks are drawn with, (start, end) over the stage: 1 samples, as eq. 3
            does; 0 trains on the arg-max masks of evaluation, and eq. 6 holds their density.
        soft: Train on relaxed samples, as the released code does, instead of straight-through ones.
        calibrate: At the end of the stage, shift the gates' biases until the arg-max masks of training images
            have density rho: ``each`` gate's by itself, as eq. 6 asks for, or all by the same shift, so that
            the ``mean`` over gates is rho and each keeps its learned share; ``none``: leave them. Samples,
            which the loss holds at rho, are not arg-max masks (`papers.pag.calibration`). Gates of kind
            ``layer`` cannot be shifted: most decide alike for all images.
        calibration_images: Number of training images that the calibration measures.
        options: Options of the gate's kind.
    """

    kind: str = "none"
    scope: Literal["conv3x3", "residual"] = "conv3x3"
    stages: tuple[str, ...] = ()
    rho: float = 1.0
    rho_start: float = 1.0
    ramp: float = 0.0
    insert: bool = False
    sparsity: Literal["per_layer", "mild", "global", "combined"] = "per_layer"
    sparsity_on: Literal["hard", "soft"] = "hard"
    weight: float = 1e-4
    guidance: float = 0.0
    temperature: tuple[float, float] = (1.0, 0.1)
    noise: tuple[float, float] = (1.0, 1.0)
    soft: bool = False
    calibrate: Literal["none", "each", "mean"] = "none"
    calibration_images: int = 64
    options: Annotated[GateOptions, OneOf(GATES, key="kind", beside=True)] = BESIDE

    def __post_init__(self) -> None:
        if self.options is BESIDE:
            object.__setattr__(self, "options", GATES.resolve(self.kind, "kind")())
        for name in ("rho", "rho_start"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ValueError(f"{name}: {getattr(self, name)}; expected a density in (0, 1]")
        if len(set(self.stages)) != len(self.stages):
            raise ValueError(f"stages: {self.stages}; expected each once")
        if not 0.0 <= self.ramp <= 1.0:
            raise ValueError(f"ramp: {self.ramp}; expected a share in [0, 1]")
        if min(self.temperature) <= 0.0:
            raise ValueError(f"temperature: {self.temperature}; expected two positive numbers")
        if min(self.noise) < 0.0:
            raise ValueError(f"noise: {self.noise}; expected two numbers >= 0")
        for name in ("weight", "guidance"):
            if getattr(self, name) < 0.0:
                raise ValueError(f"{name}: {getattr(self, name)}; expected a number >= 0")
        if self.calibration_images < 1:
            raise ValueError(f"calibration_images: {self.calibration_images}; expected at least 1")
        if self.exists and "features" not in self.options.reads:
            raise ValueError(f"kind: {self.kind!r} decides on predictions; these gates read features")
        if self.exists and self.calibrate != "none" and not self.options.bias:
            raise ValueError(f"calibrate: {self.calibrate!r}, but none shifts gates of kind {self.kind!r}")

    def unread(self) -> Mapping[str, str]:
        """Options that are not read, and why."""
        if not self.exists:
            drawn = ("temperature", "noise", "soft")  # MultiPools draw, too: PagConfig.unread
            names = (entry.name for entry in fields(self) if entry.name not in ("kind", "options", *drawn))
            return dict.fromkeys(names, "there are no gates; model.gate.kind is 'none'")
        unread = {}
        if self.calibrate == "none":
            unread["calibration_images"] = "nothing is calibrated; set model.gate.calibrate"
        if not self.ramp:
            unread |= dict.fromkeys(("insert", "rho_start"), "it is of the ramp; set model.gate.ramp above 0")
        if self.options.whole_images:
            unread["scope"] = f"kind {self.kind!r} skips whole blocks"
            reason = f"kind {self.kind!r} decides for whole images, whose loss is another"
            unread |= dict.fromkeys(("sparsity", "sparsity_on", "guidance"), reason)
        if self.options.fixed_density is not None:
            budget = ("rho", "rho_start", "sparsity", "sparsity_on", "weight", "guidance")
            unread |= dict.fromkeys(budget, f"kind {self.kind!r} has a density of its own, in gate.options")
        return unread

    @property
    def exists(self) -> bool:
        """Whether there are gates."""
        return not isinstance(self.options, NoGate)


@dataclass(frozen=True)
class MultiPoolConfig:
    """Section ``model.multipool``.

    Attributes:
        blocks: Blocks whose 3x3 becomes a MultiPool, e.g. ("res4_2",), and ``res6`` (PagConfig).
        selection: ``pag`` (one pooling size per pixel) or ``average`` (softmax-weighted, "wAvg").
        dilations: The pooling sizes; 0 copies.
        original_bias: Initial logit in favour of the replaced convolution.
        gated: These blocks have a gate, too, of scope ``residual`` like the others. Those of the released
            networks have none, those that the budgets of table 2 count have one.
    """

    blocks: tuple[str, ...] = ()
    selection: Literal["pag", "average"] = "pag"
    dilations: tuple[int, ...] = (0, 1, 2, 4, 6, 8, 10)
    original_bias: float = 0.0
    gated: bool = False

    def __post_init__(self) -> None:
        if len(set(self.blocks)) != len(self.blocks):
            raise ValueError(f"blocks: {self.blocks}; expected each once")
        if len(set(self.dilations)) != len(self.dilations) or min(self.dilations, default=-1) < 0:
            raise ValueError(f"dilations: {self.dilations}; expected distinct integers >= 0")

    def unread(self) -> Mapping[str, str]:
        """Options that are not read, and why."""
        names = () if self.blocks else ("selection", "dilations", "original_bias", "gated")
        return dict.fromkeys(names, "no block has a MultiPool; set model.multipool.blocks")


@dataclass(frozen=True)
class PagConfig(NetworkConfig):
    """Section ``model`` of a PAG config.

    Attributes:
        task: Name of the task in ``tasks.TASKS``.
        task_options: Fields of that task's class (classes, weights of its loss, ...).
        backbone: See backbones.
        gate: Gates of the backbone's blocks.
        multipool: MultiPools of the backbone's blocks.
        head_features: Width of the decoder.
        head_layers: Its hidden 3x3 convolutions, after the deconvolution; the paper has two or more.
        drop_blocks: Number of blocks left out at the top (the truncated baseline).
        drop_layers: Number of layers left out at the top of the last block that is kept: 1, its last 1x1, or
            2, its 3x3 as well. A block of Res5 has 17 % of the MACs; budgets of table 2 lie between.
        res6: Two more 3x3 convolutions above the backbone (Res6), below the decoder (of boundaries: the top
            side output). The paper's networks have them for all tasks but boundaries.
    """

    system: str
    task: str
    backbone: Annotated[BackboneConfig, OneOf(BACKBONES, default="resnet")] = field(
        default_factory=ResNetConfig
    )
    gate: GateConfig = field(default_factory=GateConfig)
    multipool: MultiPoolConfig = field(default_factory=MultiPoolConfig)
    head_features: int = 16
    head_layers: int = 1
    drop_blocks: int = 0
    drop_layers: int = 0
    res6: bool = False
    task_options: Annotated[Any, OneOf(TASKS, key="task", beside=True)] = BESIDE

    def unread(self) -> Mapping[str, str]:
        """Options that are not read, and why."""
        unread = {}
        if not self.res6 and not self.multipool.blocks and frozen(kept_specs(self)):
            unread["norm_group"] = "all norms are frozen"
        gates = self.gate.exists and self.gate.options.drawn
        if not gates and not (self.multipool.blocks and self.multipool.selection == "pag"):
            reason = "nothing is drawn: there are neither such gates nor a MultiPool of selection 'pag'"
            unread |= dict.fromkeys(("gate.temperature", "gate.noise", "gate.soft"), reason)
        return unread

    def __post_init__(self) -> None:
        super().__post_init__()
        task_class(self.task)
        total = len(self.backbone.block_specs)
        if not 0 <= self.drop_blocks < max(total, 1):
            raise ValueError(f"drop_blocks: {self.drop_blocks}; expected less than the {total} blocks")
        for name in ("head_features", "head_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}; expected at least 1")
        self._check_drop_layers()
        self._check_gate_stages()
        if self.gate.guidance and not task_class(self.task).has_rare:
            raise ValueError(f"gate.guidance: {self.task} has no rare pixels to compute at; expected 0")
        if self.gate.exists and not gated_blocks(self):
            raise ValueError(f"gate.kind: {self.gate.kind!r}, but {self.backbone.name} has no block to gate")
        dilations = {spec.name: spec.dilation for spec in kept_specs(self)}
        if self.res6:
            dilations["res6"] = 1
        for name in self.multipool.blocks:
            self._check_multipool(name, dilations)
        if self.multipool.gated:
            self._check_gated_multipool()

    @property
    def target_density(self) -> float:
        """Target density of the gates; 1 without gates."""
        if not self.gate.exists:
            return 1.0
        fixed = self.gate.options.fixed_density
        return self.gate.rho if fixed is None else fixed

    def _check_drop_layers(self) -> None:
        if self.drop_layers not in (0, 1, 2):
            raise ValueError(f"drop_layers: {self.drop_layers}; expected 0, 1 or 2 of a block's three layers")
        if not self.drop_layers:
            return
        top = kept_specs(self)[-1:]
        if not top or not top[0].splits:
            raise ValueError(f"drop_layers: the top block of this {self.backbone.name} is no bottleneck")
        if self.drop_layers == 2 and top[0].name in self.multipool.blocks:
            raise ValueError(
                f"drop_layers: 2 leaves out the 3x3 of {top[0].name}, which is to be a MultiPool"
            )

    def _check_gate_stages(self) -> None:
        kept, gated = kept_specs(self), gated_blocks(self)
        known = list(dict.fromkeys(spec.stage for spec in kept))
        for name in self.gate.stages:
            if name not in known:
                raise ValueError(
                    f"gate.stages: {name!r} is no stage of the kept blocks; {suggest(name, known)}"
                )
            if not any(spec.stage == name and spec.name in gated for spec in kept):
                raise ValueError(f"gate.stages: no block of {name!r} can have a gate")

    def _check_gated_multipool(self) -> None:
        if not self.gate.exists or self.gate.options.whole_images:
            raise ValueError("multipool.gated: there are no gates of pixels; set model.gate.kind")
        if self.gate.scope == "conv3x3":
            raise ValueError("multipool.gated: its gate is of gate.scope 'residual', the others of 'conv3x3'")
        if set(self.multipool.blocks) <= {"res6"}:
            raise ValueError("multipool.gated: no block of the backbone has a MultiPool")
        if left := set(self.multipool.blocks) - {"res6"} - set(gated_blocks(self)):
            raise ValueError(f"multipool.gated: gate.stages leaves out the stage of {min(left)}")
        if self.multipool.selection == "average":
            raise ValueError(
                "multipool.gated: an average computes every pooling size everywhere; expected 'pag'"
            )

    def _check_multipool(self, name: str, dilations: dict[str, int]) -> None:
        if name == "res6" and not self.res6:
            raise ValueError("multipool.blocks: 'res6' exists with model.res6 = True only")
        if name not in dilations:
            raise ValueError(
                f"multipool.blocks: {name!r} is no block of the backbone; {suggest(name, list(dilations))}"
            )
        if name in {spec.name for spec in kept_specs(self) if not spec.splits}:
            raise ValueError(
                f"multipool.blocks: {name!r} reduces the resolution in its 3x3, or has none between two 1x1; "
                "choose another block, or backbone.stride_in_1x1"
            )
        pool = self.multipool
        if pool.original_bias and dilations[name] not in pool.dilations:
            raise ValueError(
                f"multipool.original_bias: the 3x3 of {name} has dilation {dilations[name]}, which is "
                f"none of model.multipool.dilations {pool.dilations}"
            )


def kept_specs(config: PagConfig) -> tuple[BlockSpec, ...]:
    """The backbone's blocks, bottom first, without those that the truncated baseline drops."""
    specs = config.backbone.block_specs
    return specs[: len(specs) - config.drop_blocks]


def kept_stages(config: PagConfig) -> tuple[Stage, ...]:
    """The backbone's stages that the truncated baseline does not drop as a whole, with their features."""
    specs = kept_specs(config)
    stages, kept = config.backbone.stages, {spec.stage for spec in specs}
    stages = tuple(stage for stage in stages if stage.name in kept) if kept else stages
    if config.drop_layers:
        stages = (*stages[:-1], replace(stages[-1], channels=specs[-1].features))
    return stages


def gated_blocks(config: PagConfig) -> tuple[str, ...]:
    """Blocks with a gate, bottom first: all that split, except those that end before their sum.

    Those with a MultiPool have one with ``multipool.gated`` only. With torchvision strides, a block that
    reduces the resolution in its 3x3 has no gate: X and Y of eq. 2 would differ in size.
    """
    if not config.gate.exists:
        return ()
    specs = kept_specs(config)
    without = set(() if config.multipool.gated else config.multipool.blocks)
    if config.drop_layers:
        without.add(specs[-1].name)
    if stages := config.gate.stages:
        without |= {spec.name for spec in specs if spec.stage not in stages}
    return tuple(spec.name for spec in specs if spec.splits and spec.name not in without)
