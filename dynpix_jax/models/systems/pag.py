"""Pixel-wise Attentional Gating (Kong and Fowlkes, WACV 2019; arXiv 1805.01556).

A dilated ResNet whose bottlenecks compute only where their gates are on (section 3.1, eq. 2), gates drawn by
Gumbel arg-max with straight-through gradients (3.2, eq. 3 and 4), a loss that holds each layer's density at
rho (3.3, eq. 5 and 6), and MultiPool modules in which every pixel picks a pooling size (3.4).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynpix_jax.models.adapt import copy_matching
from dynpix_jax.models.backbones.resnet import (
    BackboneConfig,
    ResNet,
    block_specs,
    default_block,
    feature_info,
    preprocess,
)
from dynpix_jax.models.heads.boundary import BoundaryHead
from dynpix_jax.models.system import LossAux, Outputs, System
from dynpix_jax.nn.gate import layer_rate_loss
from dynpix_jax.nn.gated_bottleneck import GatedBottleneck, LayerSkipBottleneck, MultiPoolBottleneck
from dynpix_jax.nn.residual import BlockSpec
from dynpix_jax.nn.routing import Mode, Routing
from dynpix_jax.ops.gating import global_sparsity_loss, per_layer_sparsity_loss
from dynpix_jax.tasks import boundaries
from dynpix_jax.typing import Array, PRNGKey, Variables
from dynpix_jax.utils.configs import from_config
from dynpix_jax.utils.errors import UserError, suggest
from dynpix_jax.utils.trees import named_leaves

_BLOCK = re.compile(r"res\d+_\d+")


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
                raise UserError(f"model.gate.{name}: {getattr(self, name)}; expected a density in (0, 1]")
        if not 0.0 <= self.ramp <= 1.0:
            raise UserError(f"model.gate.ramp: {self.ramp}; expected a share in [0, 1]")
        if min(self.temperature) <= 0.0:
            raise UserError(f"model.gate.temperature: {self.temperature}; expected two positive numbers")
        if self.weight < 0.0:
            raise UserError(f"model.gate.weight: {self.weight}; expected a number >= 0")


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
            raise UserError(f"model.multipool.dilations: {self.dilations}; expected distinct integers >= 0")


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
            raise UserError(
                f"model.backbone.depth: {self.backbone.depth} has no bottlenecks to gate; "
                "expected 26, 50 or 101"
            )
        total = sum(len(stage) for stage in block_specs(self.backbone))
        if not 0 <= self.drop_blocks < total:
            raise UserError(
                f"model.drop_blocks: {self.drop_blocks}; expected 0 to {total - 1} of {total} blocks"
            )
        specs = {spec.name: spec for spec in _kept_specs(self)}
        for name in self.multipool.blocks:
            if name not in specs:
                raise UserError(
                    f"model.multipool.blocks: {name!r} is no block of the backbone; "
                    f"{suggest(name, list(specs))}"
                )
            if specs[name].strides != 1 and not self.backbone.stride_in_1x1:
                raise UserError(
                    f"model.multipool.blocks: {name!r} reduces the resolution in its 3x3, a MultiPool keeps "
                    "it; choose another block, or backbone.stride_in_1x1"
                )


def _kept_specs(config: PagConfig) -> list[BlockSpec]:
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
        for spec in _kept_specs(config)
        if spec.name not in config.multipool.blocks and (spec.strides == 1 or spec.stride_in_1x1)
    )


def make_block(config: PagConfig, spec: BlockSpec) -> nn.Module:
    """The block of a spec: with a MultiPool, with a gate, or plain."""
    if spec.name in config.multipool.blocks:
        pool = config.multipool
        return MultiPoolBottleneck(
            spec, dilations=pool.dilations, selection=pool.selection, original_bias=pool.original_bias
        )
    if spec.name not in gated_blocks(config):
        return default_block(spec)
    if config.gate.kind == "layer":
        return LayerSkipBottleneck(spec)
    gate = config.gate
    return GatedBottleneck(
        spec, gate_scope=gate.scope, blur=gate.blur, init_std=gate.init_std, open_bias=gate.open_bias
    )


class PagNetwork(nn.Module):
    """The network of a PagConfig: backbone with gated and MultiPool bottlenecks, boundary head."""

    config: PagConfig

    def setup(self) -> None:
        config = self.config
        self.backbone = ResNet(config.backbone, partial(make_block, config), config.drop_blocks)
        kept = {spec.name.split("_")[0] for spec in _kept_specs(config)}
        stages = tuple(info for info in feature_info(config.backbone) if info.name in kept)
        self.head = BoundaryHead(stages, config.head_features)

    def __call__(self, images: Array, routing: Routing = Routing(), inserted: Array | None = None) -> Outputs:
        """(B, H, W, 3) RGB images in 0..255, any dtype.

        ``inserted``: how many gates are in force, counted from the top; the others stay open. None: all.
        """
        order = gated_blocks(self.config)
        gates: dict[str, Array] = {}
        selections: dict[str, Array] = {}

        def run_block(block: nn.Module, x: Array) -> Array:
            if isinstance(block, GatedBottleneck | LayerSkipBottleneck):
                name = block.spec.name
                in_force = True if inserted is None else order.index(name) >= len(order) - inserted
                x, gates[name] = block(x, routing, in_force=in_force)
            elif isinstance(block, MultiPoolBottleneck):
                x, selections[block.spec.name] = block(x, routing)
            else:
                x = block(x, train=routing.train)
            return x

        x = preprocess(images, self.config.backbone.preprocessing)
        features = self.backbone(x, train=routing.train, run_block=run_block)
        fused, sides = self.head(features, (images.shape[1], images.shape[2]))
        return Outputs(
            predictions={self.config.task: fused},
            gates=gates,
            selections=selections,
            exits=tuple({self.config.task: side} for side in sides),
        )


class Pag(System):
    """PAG as pure functions; see System."""

    name = "pag"

    def __init__(self, config: PagConfig):
        self.config = config
        self.tasks = (config.task,)
        self.network = PagNetwork(config)

    def apply(
        self,
        variables: Variables,
        images: Array,
        *,
        train: bool = False,
        rngs: Mapping[str, PRNGKey] | None = None,
        mode: Mode = "dense",
        temperature: float | Array = 1.0,
        inserted: Array | None = None,
    ) -> Outputs:
        """Forward pass; ``inserted`` as in PagNetwork.

        Training draws gates and pooling sizes from ``rngs["gumbel"]``.
        """
        routing = Routing(train, mode, temperature, self.config.gate.soft)
        if not train:
            outputs = self.network.apply(variables, images, routing, inserted)
            return cast(Outputs, outputs)
        outputs, updates = self.network.apply(
            variables, images, routing, inserted, rngs=dict(rngs or {}), mutable=["batch_stats"]
        )
        return dataclasses.replace(outputs, updates=updates)

    def loss(
        self,
        variables: Variables,
        batch: Mapping[str, Array],
        *,
        rngs: Mapping[str, PRNGKey],
        controls: Mapping[str, Array],
    ) -> tuple[Array, LossAux]:
        """Eq. 7 over the side outputs and the fusion, plus lambda times eq. 5 over gates in force (eq. 6)."""
        task, gate = self.config.task, self.config.gate
        outputs = self.apply(
            variables,
            batch["image"],
            train=True,
            rngs=rngs,
            temperature=controls["temperature"],
            inserted=controls["inserted"],
        )
        branches = [exit_[task] for exit_ in outputs.exits] + [outputs.predictions[task]]
        losses = [boundaries.loss(logits, batch[task], batch["valid"]) for logits in branches]
        total = sum(losses[1:], losses[0])
        terms = {task: total, "fusion": losses[-1]}
        if outputs.gates:
            masks = [outputs.gates[name] for name in gated_blocks(self.config)]
            in_force = jnp.arange(len(masks)) >= len(masks) - controls["inserted"]
            sparsity_loss: Callable[..., Array] = (
                per_layer_sparsity_loss if gate.sparsity == "per_layer" else global_sparsity_loss
            )
            if gate.kind == "layer":
                sparsity_loss = layer_rate_loss
            terms["sparsity"] = gate.weight * sparsity_loss(
                masks, controls["rho"], valid=batch["valid"], in_force=in_force
            )
            total = total + terms["sparsity"]
            density = jnp.stack([mask.mean() for mask in masks])
            terms |= {"density": density.mean(), "density_min": density.min(), "density_max": density.max()}
        return total, LossAux(terms, outputs.updates)

    def controls(self, step: Array, steps: int) -> dict[str, Array]:
        """temperature falls linearly over the stage; gates are inserted and rho is lowered over its ramp."""
        gate = self.config.gate
        count = len(gated_blocks(self.config))
        progress = jnp.asarray(step, jnp.float32) / max(steps, 1)
        ramp = jnp.clip(progress / gate.ramp, 0.0, 1.0) if gate.ramp else jnp.ones_like(progress)
        start, end = gate.temperature
        inserted = jnp.ceil(ramp * count) if gate.insert else jnp.full_like(progress, count)
        return {
            "temperature": start + (end - start) * jnp.clip(progress, 0.0, 1.0),
            "rho": gate.rho_start + (gate.rho - gate.rho_start) * ramp,
            "inserted": inserted,
        }

    def adapt(self, given: Variables, fresh: Variables) -> Variables:
        """Weights of an earlier stage or of a bare ImageNet ResNet.

        MultiPool branches start from the 3x3 they replace. Only what such weights cannot hold may stay fresh:
        gates, MultiPool modules and the head.

        Raises:
            UserError: a backbone of another architecture (missing or additional blocks, other shapes), or
            none.
        """
        known = {path.removeprefix("backbone/") for path, _ in named_leaves(given.get("params", {}))}
        names = {spec.name for stage in block_specs(self.config.backbone) for spec in stage}
        foreign = sorted({block for path in known if _BLOCK.fullmatch(block := path.split("/")[0])} - names)
        if foreign:
            raise UserError(
                f"weights: they hold {foreign[0]}, a ResNet-{self.config.backbone.depth} has no such block; "
                "were they made for another architecture?"
            )
        blocks = {f"backbone/{name}" for name in self.config.multipool.blocks}

        def source(path: str) -> list[str]:
            candidates = [path, path.removeprefix("backbone/")]
            head, found, tail = path.partition("/multipool/dilation_")
            if found and head in blocks:
                layer = tail.partition("/")[2].replace("conv/", "conv2/").replace("bn/", "bn2/")
                candidates += [f"{head}/{layer}", f"{head.removeprefix('backbone/')}/{layer}"]
            return candidates

        adapted = copy_matching(given, fresh, source)
        for path, _ in named_leaves(fresh["params"].get("backbone", {})):
            if path not in known and "/gate/" not in path and "/multipool/" not in path:
                raise UserError(
                    f"weights: no {path} for a ResNet-{self.config.backbone.depth}; "
                    "were they made for another architecture?"
                )
        return adapted

    def gated_macs(self, size: tuple[int, int]) -> dict[str, float]:
        """Per gate what its block saves; per MultiPool branch (``res4_2/dilation_2``) its convolution."""
        config, macs = self.config, {}
        gated = set(gated_blocks(config))
        strides = {info.name: info.stride for info in feature_info(config.backbone)}
        for spec in _kept_specs(config):
            h, w = (-(-side // strides[spec.name.split("_")[0]]) for side in size)
            conv3x3 = 9.0 * h * w * spec.features**2
            expand = float(h * w * spec.features * spec.out_features)
            if spec.name in gated and config.gate.kind == "pixel":
                macs[spec.name] = conv3x3 + (expand if config.gate.scope == "residual" else 0.0)
            elif spec.name in gated:
                reduce = h * w * spec.in_features * spec.features
                macs[spec.name] = conv3x3 + expand + reduce
            elif spec.name in config.multipool.blocks and config.multipool.selection == "pag":
                macs |= {f"{spec.name}/dilation_{d}": conv3x3 for d in config.multipool.dilations if d}
        return macs

    def executed_shares(self, outputs: Outputs) -> dict[str, Array]:
        """Share of positions (B,) at which each layer of ``gated_macs`` was executed."""
        shares = {name: mask.mean((1, 2)) for name, mask in outputs.gates.items()}
        pool = self.config.multipool
        for name, selection in outputs.selections.items():
            for index, dilation in enumerate(pool.dilations):
                if dilation and pool.selection == "pag":
                    shares[f"{name}/dilation_{dilation}"] = selection[..., index].mean((1, 2))
        return shares


def ponder_maps(outputs: Outputs, size: tuple[int, int]) -> dict[str, Array]:
    """Accumulated masks, as shares in [0, 1]: one (B, H, W) map a macro block and ``total`` (section 3.3)."""
    if not outputs.gates:
        return {}
    groups: dict[str, list[Array]] = {}
    for name, mask in outputs.gates.items():
        resized = jax.image.resize(mask, (mask.shape[0], *size), "nearest")
        groups.setdefault(name.split("_")[0], []).append(resized)
        groups.setdefault("total", []).append(resized)
    total = jnp.stack(groups.pop("total")).mean(0)
    return {stage: jnp.stack(masks).mean(0) for stage, masks in groups.items()} | {"total": total}


def build(section: Any) -> Pag:
    """The system of a strict ``model`` section."""
    return Pag(from_config(PagConfig, section, "config.model"))
