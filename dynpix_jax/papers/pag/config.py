"""Config section of the PAG system, and what follows from it: which blocks exist and which have gates."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from dynpix_jax.backbones.resnet import BackboneConfig, block_specs
from dynpix_jax.core.errors import suggest
from dynpix_jax.nn.residual import BlockSpec
from dynpix_jax.tasks import task_class


@dataclass(frozen=True)
class GateConfig:
    """Section ``model.gate``.

    kind: ``none``; ``pixel`` (PAG); ``layer`` (whole blocks skipped per image, the baseline of Table 2).
    scope: which reading of eq. 2, ``conv3x3`` (as released) or ``residual`` (see GatedBottleneck).
    rho: target density in (0, 1]. rho_start: density at the stage's start, lowered linearly to rho over
    ``ramp``.
    ramp: share of the stage in [0, 1] during which gates are inserted and rho is lowered.
    insert: insert gates one by one from the top during the ramp; False puts them all in force at once.
    sparsity: ``per_layer`` (eq. 5 and 6); ``mild``, the released code's log(1 + x**2) in place of eq. 5;
    ``global``, the mean over layers that the paper warns of; ``combined``, the same weighted by positions,
    as released. weight: the loss's lambda.
    sparsity_on: densities of the ``hard`` masks, which are what computation costs, or of the ``soft``
    probabilities that they are drawn from, as released.
    temperature: of the relaxation, (start, end) over the stage.
    soft: train on relaxed samples, as the released code does, instead of straight-through ones.
    blur, init_std, open_bias: of the gate network (PixelGate).

    Kind ``layer`` has a gate and a loss of its own (LayerGate, layer_rate_loss; its weight is 1 in that
    baseline's released code): scope, blur, init_std, open_bias and sparsity must keep their defaults.
    """

    kind: Literal["none", "pixel", "layer"] = "none"
    scope: Literal["conv3x3", "residual"] = "conv3x3"
    rho: float = 1.0
    rho_start: float = 1.0
    ramp: float = 0.0
    insert: bool = False
    sparsity: Literal["per_layer", "mild", "global", "combined"] = "per_layer"
    sparsity_on: Literal["hard", "soft"] = "hard"
    weight: float = 1e-4
    temperature: tuple[float, float] = (1.0, 0.1)
    soft: bool = False
    blur: bool = False
    init_std: float = 1.0
    open_bias: float = 0.0

    def __post_init__(self) -> None:
        for name in ("rho", "rho_start"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ValueError(f"{name}: {getattr(self, name)}; expected a density in (0, 1]")
        if not 0.0 <= self.ramp <= 1.0:
            raise ValueError(f"ramp: {self.ramp}; expected a share in [0, 1]")
        if min(self.temperature) <= 0.0:
            raise ValueError(f"temperature: {self.temperature}; expected two positive numbers")
        if self.weight < 0.0:
            raise ValueError(f"weight: {self.weight}; expected a number >= 0")
        if self.kind != "none":
            self._refuse_unread()

    def _refuse_unread(self) -> None:
        """What the other values make meaningless is a mistake, not a wish."""
        if self.insert and not self.ramp:
            raise ValueError("insert: gates are inserted on the ramp; set model.gate.ramp above 0")
        if not self.ramp and self.rho_start not in (1.0, self.rho):
            raise ValueError(
                f"rho_start: {self.rho_start} is lowered on the ramp; set model.gate.ramp above 0"
            )
        defaults = {entry.name: entry.default for entry in fields(self)}
        for name in ("scope", "blur", "init_std", "open_bias", "sparsity", "sparsity_on"):
            if self.kind == "layer" and getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"{name}: {getattr(self, name)!r} is not read by kind 'layer'; "
                    f"expected the default {defaults[name]!r}"
                )


@dataclass(frozen=True)
class MultiPoolConfig:
    """Section ``model.multipool``.

    blocks: bottlenecks whose 3x3 becomes a MultiPool, e.g. ("res4_2",), and ``res6`` (PagConfig); none by
    default.
    selection: ``pag`` (one pooling size a pixel) or ``average`` (softmax-weighted, "wAvg").
    dilations: the pooling sizes; 0 copies. original_bias: initial logit in favour of the convolution
    replaced.
    """

    blocks: tuple[str, ...] = ()
    selection: Literal["pag", "average"] = "pag"
    dilations: tuple[int, ...] = (0, 1, 2, 4, 6, 8, 10)
    original_bias: float = 0.0

    def __post_init__(self) -> None:
        if len(set(self.dilations)) != len(self.dilations) or min(self.dilations, default=-1) < 0:
            raise ValueError(f"dilations: {self.dilations}; expected distinct integers >= 0")


@dataclass(frozen=True)
class PagConfig:
    """Section ``model`` of a PAG config.

    task: what is predicted, a name of ``tasks.TASKS``. task_options: fields of that task's class (classes,
    weights of its loss, ...).
    drop_blocks: bottlenecks left out at the top (the truncated baseline). head_features: decoder width.
    res6: two more 3x3 convolutions above the backbone (Res6), which the decoder (of boundaries: the top side
    output) then reads. The paper's networks for all tasks but boundaries have them.
    """

    system: Literal["pag"]
    task: str
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    multipool: MultiPoolConfig = field(default_factory=MultiPoolConfig)
    head_features: int = 16
    drop_blocks: int = 0
    res6: bool = False
    task_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        task_class(self.task)
        if self.backbone.depth in (18, 34) and (self.gate.kind != "none" or self.multipool.blocks):
            raise ValueError(
                f"backbone.depth: {self.backbone.depth} has no bottlenecks to gate; expected 26, 50 or 101"
            )
        total = sum(len(stage) for stage in block_specs(self.backbone))
        if not 0 <= self.drop_blocks < total:
            raise ValueError(f"drop_blocks: {self.drop_blocks}; expected 0 to {total - 1} of {total} blocks")
        dilations = {spec.name: spec.dilation for spec in kept_specs(self)}
        if self.res6:
            dilations["res6"] = 1
        for name in self.multipool.blocks:
            self._check_multipool(name, dilations)

    def _check_multipool(self, name: str, dilations: dict[str, int]) -> None:
        if name == "res6" and not self.res6:
            raise ValueError("multipool.blocks: 'res6' is there with model.res6 = True only")
        if name not in dilations:
            raise ValueError(
                f"multipool.blocks: {name!r} is no block of the backbone; {suggest(name, list(dilations))}"
            )
        strided = {spec.name for spec in kept_specs(self) if spec.strides != 1 and not spec.stride_in_1x1}
        if name in strided:
            raise ValueError(
                f"multipool.blocks: {name!r} reduces the resolution in its 3x3, a MultiPool keeps "
                "it; choose another block, or backbone.stride_in_1x1"
            )
        pool = self.multipool
        if pool.original_bias and dilations[name] not in pool.dilations:
            raise ValueError(
                f"multipool.original_bias: the 3x3 of {name} has dilation {dilations[name]}, which is "
                f"none of model.multipool.dilations {pool.dilations}"
            )


def kept_specs(config: PagConfig) -> list[BlockSpec]:
    """The backbone's blocks, bottom first, without those that the truncated baseline drops."""
    specs = [spec for stage in block_specs(config.backbone) for spec in stage]
    return specs[: len(specs) - config.drop_blocks]


def gated_blocks(config: PagConfig) -> tuple[str, ...]:
    """Blocks with a gate, bottom first: every bottleneck but those that hold a MultiPool.

    With torchvision strides a block that reduces resolution in its 3x3 is left out too: X and Y of eq. 2
    would differ in size.
    """
    if config.gate.kind == "none":
        return ()
    return tuple(
        spec.name
        for spec in kept_specs(config)
        if spec.name not in config.multipool.blocks and (spec.strides == 1 or spec.stride_in_1x1)
    )
