"""Pixel-wise Attentional Gating (Kong and Fowlkes, WACV 2019; arXiv 1805.01556).

A dilated ResNet whose bottlenecks compute only where their gates are on (section 3.1, eq. 2), gates drawn by
Gumbel arg-max with straight-through gradients (3.2, eq. 3 and 4), a loss that holds each layer's density at
rho (3.3, eq. 5 and 6), and MultiPool modules in which every pixel picks a pooling size (3.4).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

import jax.numpy as jnp

from dynpix_jax import tasks
from dynpix_jax.backbones.base import Stage
from dynpix_jax.core.adapt import TakeOver
from dynpix_jax.core.capabilities import GatedLayer
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.routing import Routing
from dynpix_jax.core.system import LossAux, Outputs, System
from dynpix_jax.core.typing import Array, PRNGKey, Variables
from dynpix_jax.ops.resize import cells_to_pixels, pixels_to_cells
from dynpix_jax.papers.pag.calibration import calibrate
from dynpix_jax.papers.pag.config import (
    GateConfig,
    MultiPoolConfig,
    PagConfig,
    gated_blocks,
    kept_specs,
    kept_stages,
)
from dynpix_jax.papers.pag.layers import GATED
from dynpix_jax.papers.pag.network import PagNetwork
from dynpix_jax.papers.pag.sparsity import (
    global_sparsity_loss,
    guidance_loss,
    layer_rate_loss,
    mild_divergence,
    per_layer_sparsity_loss,
)

__all__ = [
    "GateConfig",
    "MultiPoolConfig",
    "Pag",
    "PagConfig",
    "PagNetwork",
    "gated_blocks",
]


class Pag(System):
    """PAG as pure functions; see System."""

    name = "pag"
    Config = PagConfig
    float32 = (r"backbone/[^/]+/gate", r"(.*/)?multipool/gate/conv3")
    nested_gates = False
    counted_in_paper = r"backbone/(?!(.*/)?gate(/|$)).*"

    def __init__(self, config: PagConfig):
        self.config = config
        self.task = tasks.build(config.task, config.task_options, "config.model.task_options")
        if self.task.stride != 1:
            raise UserError(
                f"config.model.task: {config.task!r} has heatmaps; this system has no head for them"
            )
        self.tasks = {self.task.name: self.task}
        self.network = PagNetwork(config, self.task)

    def apply(
        self,
        variables: Variables,
        images: Array,
        inputs: Mapping[str, Array] = {},
        routing: Routing = Routing(),
        *,
        rngs: Mapping[str, PRNGKey] | None = None,
    ) -> Outputs:
        """Forward pass. Training draws gates and pooling sizes from ``rngs["gumbel"]``; see System."""
        return self.run(variables, images, routing, rngs=rngs)

    def run(
        self,
        variables: Variables,
        images: Array,
        routing: Routing,
        *,
        inserted: Array | None = None,
        rngs: Mapping[str, PRNGKey] | None = None,
    ) -> Outputs:
        """`apply` with ``inserted`` gates in force; see PagNetwork."""
        outputs: Outputs
        outputs, updates = self.call(variables, images, routing, inserted, rngs=rngs, moving=routing.train)
        return dataclasses.replace(outputs, updates=updates)

    def loss(
        self,
        variables: Variables,
        batch: Mapping[str, Array],
        *,
        rngs: Mapping[str, PRNGKey],
        controls: Mapping[str, Array],
    ) -> tuple[Array, LossAux]:
        """The task's loss (eq. 7 to 10) plus lambda times eq. 5 over gates in force (eq. 6).

        With side outputs the task's loss is the sum over them and the fusion.
        """
        task = self.task.name
        routing = Routing(
            train=True,
            temperature=controls["temperature"],
            noise=controls["noise"],
            soft=self.config.gate.soft,
        )
        outputs = self.run(variables, batch["image"], routing, inserted=controls["inserted"], rngs=rngs)
        branches = [exit_[task] for exit_ in outputs.exits] + [outputs.predictions[task]]
        losses = [self.task.loss(logits, batch[self.task.target], batch["valid"]) for logits in branches]
        total = sum(losses[1:], losses[0])
        terms = {task: total, "fusion": losses[-1]} if outputs.exits else {task: total}
        if outputs.gates and self.config.gate.options.fixed_density is None:
            terms["sparsity"] = self._sparsity_loss(outputs, batch["valid"], controls)
            total = total + terms["sparsity"]
            if self.config.gate.guidance:
                terms["guidance"] = self._guidance_loss(outputs, batch, controls)
                total = total + terms["guidance"]
        if outputs.gates:
            density = jnp.stack([mask.mean() for mask in outputs.gates.values()])
            terms |= {"density": density.mean(), "density_min": density.min(), "density_max": density.max()}
        return total, LossAux(terms, outputs.updates)

    def _sparsity_loss(self, outputs: Outputs, valid: Array, controls: Mapping[str, Array]) -> Array:
        """The second term of eq. 6, or the variant that GateConfig selects."""
        gate, names = self.config.gate, gated_blocks(self.config)
        in_force = self._in_force(controls)
        probabilities = [outputs.probabilities[name] for name in names]
        if gate.options.whole_images:
            stored = outputs.updates["batch_stats"]["backbone"]
            rates = [stored[name]["gate"]["rate"] for name in names]
            rho = controls["rho"]
            return gate.weight * layer_rate_loss(rates, probabilities, rho, valid=valid, in_force=in_force)
        masks = [outputs.gates[name] for name in names] if gate.sparsity_on == "hard" else probabilities
        kinds: dict[str, Callable[..., Array]] = {
            "per_layer": per_layer_sparsity_loss,
            "mild": partial(per_layer_sparsity_loss, divergence=mild_divergence),
            "global": global_sparsity_loss,
            "combined": partial(global_sparsity_loss, by_position=True),
        }
        return gate.weight * kinds[gate.sparsity](masks, controls["rho"], valid=valid, in_force=in_force)

    def _guidance_loss(
        self, outputs: Outputs, batch: Mapping[str, Array], controls: Mapping[str, Array]
    ) -> Array:
        """Asks the gates to compute at the task's rare pixels; see GateConfig.guidance."""
        rare, stages = self.task.rare(batch[self.task.target]), self._stages
        probabilities = {name: outputs.probabilities[name] for name in gated_blocks(self.config)}
        marked = {}
        for name, probability in probabilities.items():
            _, height, width = probability.shape
            marked[name] = pixels_to_cells(rare, (height, width), stages[name].stride)
        in_force = self._in_force(controls)
        loss = guidance_loss(probabilities, marked, valid=batch["valid"], in_force=in_force)
        return self.config.gate.guidance * loss

    def _in_force(self, controls: Mapping[str, Array]) -> Array:
        """bool (L,): the gates that are inserted, from the top."""
        count = len(gated_blocks(self.config))
        return jnp.arange(count) >= count - controls["inserted"]

    def controls(self, step: Array, steps: int) -> dict[str, Array]:
        """Temperature and noise change linearly; gates are inserted and rho is lowered on the ramp."""
        gate = self.config.gate
        count = len(gated_blocks(self.config))
        progress = jnp.asarray(step, jnp.float32) / max(steps, 1)
        ramp = jnp.clip(progress / gate.ramp, 0.0, 1.0) if gate.ramp else jnp.ones_like(progress)
        cooling = jnp.clip(jnp.asarray(step, jnp.float32) / max(steps - 1, 1), 0.0, 1.0)
        rho = gate.rho_start + (gate.rho - gate.rho_start) * ramp
        inserted = jnp.ceil(ramp * count) if gate.insert else jnp.full_like(progress, count)
        return {
            "temperature": _between(gate.temperature, cooling),
            "noise": _between(gate.noise, cooling),
            # Clipped: rounding must not carry it beyond its ends; above 1 the divergence is nan.
            "rho": jnp.clip(rho, min(gate.rho, gate.rho_start), max(gate.rho, gate.rho_start)),
            "inserted": inserted,
        }

    @property
    def gate_biases(self) -> dict[str, str]:
        """Gate -> path of its bias, where gates of this kind declare one (`nn.gates.GateOptions.bias`)."""
        bias = self.config.gate.options.bias
        return {name: f"backbone/{name}/gate/{bias}" for name in gated_blocks(self.config)} if bias else {}

    @property
    def calibration_images(self) -> int:
        """Training images that `calibrate` needs; 0: the gates stay as they were trained."""
        gate = self.config.gate
        return gate.calibration_images if gate.exists and gate.calibrate != "none" else 0

    def calibrate(
        self, variables: Variables, image: Callable[[int], Array], count: int
    ) -> tuple[Variables, str]:
        """Holds the density of arg-max masks at rho; see papers.pag.calibration."""
        return calibrate(self, variables, image, count)

    @property
    def taken_over(self) -> TakeOver:
        """Branches of a MultiPool start from the 3x3 that they replace."""
        backbone = self.config.backbone
        pooled = {name if name == "res6" else f"backbone/{name}" for name in self.config.multipool.blocks}

        def renames(path: str) -> list[str]:
            block, _, layer = path.partition("/multipool/dilation_")
            if not layer or block not in pooled:
                return []
            layer = layer.partition("/")[2].replace("conv/", "conv2/").replace("bn/", "bn2/")
            return [f"{block}/{layer}"]

        blocks = frozenset(spec.name for spec in backbone.block_specs)
        return TakeOver(backbone.name, blocks, renames, stays_fresh=".*/(gate|multipool)/.*")

    @property
    def gated(self) -> dict[str, GatedLayer]:
        """The gates, and the branches of MultiPools (``res4_2/dilation_2``), of which a pixel selects one."""
        blocks = gated_blocks(self.config)
        layers = {name: GatedLayer((f"backbone/{name}/{GATED}",)) for name in blocks}
        for name, dilation, _ in self._branches:
            place = name if name == "res6" else f"backbone/{name}"
            scopes = (f"{place}/multipool/branch_{dilation}",)
            layers[f"{name}/dilation_{dilation}"] = GatedLayer(scopes, "branch", name, skipped=name in blocks)
        return layers

    def executed_shares(self, outputs: Outputs) -> dict[str, Array]:
        """Share of positions (B,) at which each of ``gated`` was executed."""
        masks = outputs.gates
        shares = {name: mask.mean((1, 2)) for name, mask in masks.items()}
        for name, dilation, index in self._branches:
            chosen = outputs.selections[name][..., index]
            chosen = chosen * masks[name] if name in masks else chosen
            shares[f"{name}/dilation_{dilation}"] = chosen.mean((1, 2))
        return shares

    @property
    def _branches(self) -> list[tuple[str, int, int]]:
        """(block, dilation, its index) of all branches of MultiPools but copies, which cost nothing."""
        pool = self.config.multipool
        if pool.selection != "pag":
            return []
        return [(name, d, index) for name in pool.blocks for index, d in enumerate(pool.dilations) if d]

    def ponder_maps(self, outputs: Outputs, size: tuple[int, int]) -> dict[str, Array]:
        """The accumulated masks of section 3.3, as shares in [0, 1]: one per macro block, and ``total``."""
        stages = self._stages
        groups: dict[str, list[Array]] = {}
        for name, mask in outputs.gates.items():
            pixels = cells_to_pixels(mask, size, stages[name].stride)
            groups.setdefault(stages[name].name, []).append(pixels)
            groups.setdefault("total", []).append(pixels)
        return {group: jnp.stack(masks).mean(0) for group, masks in groups.items()}

    @property
    def choices(self) -> tuple[str, ...]:
        """The pooling sizes of MultiPools; () without."""
        pool = self.config.multipool
        sizes = pool.dilations if pool.blocks else ()
        return tuple(f"dilation {dilation}" if dilation else "copy" for dilation in sizes)

    def choice_maps(self, outputs: Outputs, size: tuple[int, int]) -> dict[str, Array]:
        """The pooling size of largest weight at each pixel of each MultiPool; 255 where it is skipped."""
        stages, top = self._stages, kept_stages(self.config)[-1]
        maps = {}
        for name, weights in outputs.selections.items():
            cells = jnp.argmax(weights, axis=-1).astype(jnp.int32)
            if name in outputs.gates:
                cells = jnp.where(outputs.gates[name] > 0.5, cells, 255)
            maps[name] = cells_to_pixels(cells, size, stages.get(name, top).stride)
        return maps

    def true_choices(self, labels: Mapping[str, Array]) -> Array | None:
        """None: no label says how far to pool."""
        return None

    @property
    def _stages(self) -> dict[str, Stage]:
        """Block -> its stage."""
        stages = {stage.name: stage for stage in self.config.backbone.stages}
        return {spec.name: stages[spec.stage] for spec in kept_specs(self.config)}


def _between(ends: tuple[float, float], progress: Array) -> Array:
    """The number that far from the first to the second."""
    return ends[0] + (ends[1] - ends[0]) * progress
