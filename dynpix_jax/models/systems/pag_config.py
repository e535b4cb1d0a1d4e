"""Config section of the PAG system, and what follows from it: which blocks exist and which have gates."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dynpix_jax.models.backbones.resnet import BackboneConfig, block_specs
from dynpix_jax.nn.residual import BlockSpec
from dynpix_jax.utils.errors import suggest


@dataclass(frozen=True)
class GateConfig:
    """Section ``model.gate``.

    kind: ``none``; ``pixel`` (PAG); ``layer`` (whole blocks skipped per image, the baseline of Table 2).
    scope: which reading of eq. 2, ``conv3x3`` (as released) or ``residual`` (see GatedBottleneck).
    rho: target density in (0, 1]. rho_start: density at the stage's start, lowered linearly to rho over
    ``ramp``.
    ramp: share of the stage in [0, 1] during which gates are inserted and rho is lowered.
    insert: insert gates one by one from the top during the ramp; False puts them all in force at once.
    sparsity: ``per_layer`` (eq. 6), or ``global``, the variant the paper warns of. weight: its lambda.
    temperature: of the relaxation, (start, end) over the stage.
    soft: train on relaxed samples, as the released code does, instead of straight-through ones.
    blur, init_std, open_bias: of the gate network (PixelGate).

    With kind ``layer``, ``sparsity`` is not used: the mean over layers of (rho - share of the batch's images
    that run the layer)**2, times ``weight``, which is 1 in the released code of that baseline.
    """

    kind: Literal["none", "pixel", "layer"] = "none"
    scope: Literal["conv3x3", "residual"] = "conv3x3"
    rho: float = 1.0
    rho_start: float = 1.0
    ramp: float = 0.0
    insert: bool = False
    sparsity: Literal["per_layer", "global"] = "per_layer"
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


@dataclass(frozen=True)
class MultiPoolConfig:
    """Section ``model.multipool``.

    blocks: bottlenecks whose 3x3 becomes a MultiPool, e.g. ("res4_2",); none by default.
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

    drop_blocks: bottlenecks left out at the top (the truncated baseline). head_features: decoder width.
    """

    system: Literal["pag"]
    task: Literal["boundaries"]
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    multipool: MultiPoolConfig = field(default_factory=MultiPoolConfig)
    head_features: int = 16
    drop_blocks: int = 0

    def __post_init__(self) -> None:
        if self.backbone.depth in (18, 34) and (self.gate.kind != "none" or self.multipool.blocks):
            raise ValueError(
                f"backbone.depth: {self.backbone.depth} has no bottlenecks to gate; expected 26, 50 or 101"
            )
        total = sum(len(stage) for stage in block_specs(self.backbone))
        if not 0 <= self.drop_blocks < total:
            raise ValueError(f"drop_blocks: {self.drop_blocks}; expected 0 to {total - 1} of {total} blocks")
        specs = {spec.name: spec for spec in kept_specs(self)}
        for name in self.multipool.blocks:
            if name not in specs:
                raise ValueError(
                    f"multipool.blocks: {name!r} is no block of the backbone; {suggest(name, list(specs))}"
                )
            if specs[name].strides != 1 and not self.backbone.stride_in_1x1:
                raise ValueError(
                    f"multipool.blocks: {name!r} reduces the resolution in its 3x3, a MultiPool keeps "
                    "it; choose another block, or backbone.stride_in_1x1"
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
