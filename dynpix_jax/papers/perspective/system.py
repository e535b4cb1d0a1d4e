"""Recurrent Scene Parsing with Perspective Understanding in the Loop (Kong and Fowlkes, CVPR 2018).

A dilated ResNet, one more layer (Res6), then depth-aware gated pooling (section 3): near pixels are pooled
over large fields, far ones over small fields, by a given or a predicted depth. A recurrent module (section 4)
joins Res6 with its own last feature and repeats the pooling, with the same parameters.
Every pass predicts classes and depth, and training supervises all of them (eq. 1).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynpix_jax import tasks
from dynpix_jax.core.adapt import TakeOver
from dynpix_jax.core.capabilities import GatedLayer
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.progressive import STEP_SCOPE, Step, StepResult, in_step
from dynpix_jax.core.routing import Routing
from dynpix_jax.core.system import Inputs, LossAux, Outputs, System
from dynpix_jax.core.typing import Array, PRNGKey, Variables
from dynpix_jax.ops.resize import resize_bilinear
from dynpix_jax.papers.perspective.config import (
    NO_BIN,
    Gate,
    LossConfig,
    PerspectiveConfig,
    PoolingConfig,
)
from dynpix_jax.papers.perspective.layers import PassOutput
from dynpix_jax.papers.perspective.network import PerspectiveNetwork
from dynpix_jax.tasks import depth, segmentation

__all__ = [
    "LossConfig",
    "Perspective",
    "PerspectiveConfig",
    "PerspectiveNetwork",
    "PoolingConfig",
]


State = tuple[Array, ...]
"""State between steps: Res6's map and the last step's feature, both (B, h, w, features)."""


class Perspective(System):
    """Recurrent scene parsing as pure functions; see System."""

    name = "perspective"
    Config = PerspectiveConfig
    float32 = (r".*/depth/(classes|log_depth)",)

    def __init__(self, config: PerspectiveConfig):
        self.config = config
        sections = {segmentation.NAME: config.segmentation, depth.NAME: config.depth}
        self.tasks = {
            name: tasks.build(name, options, f"config.model.{name}")
            for name, options in sections.items()
            if options is not None
        }
        self.inputs = (depth.NAME,) if config.needs_depth else ()
        supervised = config.loss.depth_class > 0 and "pred_depth" in config.signals
        self.supervision = (depth.NAME,) if supervised else ()
        classes = self.tasks[segmentation.NAME].channels if segmentation.NAME in self.tasks else 0
        self.network: PerspectiveNetwork = PerspectiveNetwork(config, classes)
        self._stride = config.backbone.stages[-1].stride

    def apply(
        self,
        variables: Variables,
        images: Array,
        inputs: Mapping[str, Array] = {},
        routing: Routing = Routing(),
        *,
        rngs: Mapping[str, PRNGKey] | None = None,
    ) -> Outputs:
        """Forward pass; predictions are those of the last loop, exits those before it.

        Selections are the weights of the pooling sizes: ``loop_0`` (feed-forward), ``loop_1``, ...; the first
        channel is the farthest bin's. There are no gates, so masks must be empty. Training weighs by softmax
        and draws from ``rngs["dropout"]``.

        Args:
            inputs: ``depth`` for signal "gt_depth", (B, H, W) metres; where it is missing (0), all pooling
                sizes have equal weights.

        Raises:
            ValueError: The depth is missing, or given but not read.
        """
        routing.masks_of(())
        steps, updates = self._forward(variables, images, inputs, routing, rngs)
        return self._outputs(steps, (images.shape[1], images.shape[2]), updates)

    def steps(
        self, variables: Variables, images: Array, inputs: Inputs, routing: Routing
    ) -> tuple[Sequence[Step[State]], State]:
        """The feed-forward pass, then each loop; all loops share the program of the first."""
        routing.masks_of(())
        size, truth = (images.shape[1], images.shape[2]), self._truth(images, inputs)

        def run(loop: int, state: State) -> tuple[State, StepResult]:
            if loop:
                state, predictions, weights = self._refine(variables, state, truth, routing, size)
            else:
                state, predictions, weights = self._start(variables, images, truth, routing)
            selections = {} if weights is None else {f"loop_{loop}": weights}
            return state, StepResult(predictions, selections=selections)

        def step(loop: int) -> Step[State]:
            # In sparse mode every position runs in one branch.
            branches = self._branches(loop) if routing.mode == "sparse" else []
            return Step(partial(run, loop), lambda _: dict.fromkeys(branches, 1 / max(1, len(branches))))

        return [step(loop) for loop in range(self.config.loops + 1)], ()

    @partial(jax.jit, static_argnums=0)
    def _start(
        self, variables: Variables, images: Array, truth: Array | None, routing: Routing
    ) -> tuple[State, dict[str, Array], Array | None]:
        options: dict[str, Any] = {"truth": truth, "one_hot": self._one_hot(routing)}
        (x, step), _ = self.call(variables, images, routing, method="start", **options)
        size = (images.shape[1], images.shape[2])
        return (x, step.feature), self._predictions(step, size), step.weights

    @partial(jax.jit, static_argnums=(0, 5))
    def _refine(
        self,
        variables: Variables,
        state: State,
        truth: Array | None,
        routing: Routing,
        size: tuple[int, int],
    ) -> tuple[State, dict[str, Array], Array | None]:
        x, previous = state
        options: dict[str, Any] = {"truth": truth, "one_hot": self._one_hot(routing)}
        step, _ = self.call(variables, x, previous, routing, method="refine", **options)
        return (x, step.feature), self._predictions(step, size), step.weights

    def loss(
        self,
        variables: Variables,
        batch: Mapping[str, Array],
        *,
        rngs: Mapping[str, PRNGKey],
        controls: Mapping[str, Array],
    ) -> tuple[Array, LossAux]:
        """Eq. 1: the weighted losses of all steps; those of weight 0 are not computed.

        Terms: ``segmentation``, ``depth_class`` and ``depth``, each over all steps.

        Raises:
            UserError: The batch has no depth, but a depth gates or supervises the gate.
        """
        images, valid, weights = batch["image"], batch["valid"], self.config.loss
        if (self.supervision or self.inputs) and depth.NAME not in batch:
            raise UserError(
                f"training: no 'depth' labels, pooling.signal {self.config.pooling.signal!r} needs them; "
                "set fields of config.data.train.source"
            )
        inputs = {name: batch[name] for name in self.inputs}
        steps, updates = self._forward(variables, images, inputs, Routing(train=True), rngs)
        size = (images.shape[1], images.shape[2])
        terms: dict[str, Array] = {}

        def add(name: str, weight: float, logits: Array | None, cost: Any) -> None:
            if weight and logits is not None:
                value = weight * cost(self._at(logits, size), valid=valid)
                terms[name] = terms[name] + value if name in terms else value

        labels = {name: self._labels(batch[name]) for name in self.tasks}
        bins = self.config.bins.classes(self._labels(batch[depth.NAME])) if self.supervision else None
        for loop, step in enumerate(steps):
            of_loop = weights.segmentation[min(loop, len(weights.segmentation) - 1)]
            if segmentation.NAME in labels:
                cost = partial(self.tasks[segmentation.NAME].loss, target=labels[segmentation.NAME])
                add(segmentation.NAME, of_loop, step.classes, cost)
            if depth.NAME in labels:
                cost = partial(self.tasks[depth.NAME].loss, target=labels[depth.NAME])
                add(depth.NAME, weights.depth, step.log_depth, cost)
            if bins is not None and self.config.signals[min(loop, 1)] == "pred_depth":
                cost = partial(segmentation.cross_entropy, target=bins, ignore=NO_BIN)
                add("depth_class", weights.depth_class, step.bins, cost)
        total = sum(terms.values(), jnp.zeros(()))
        return total, LossAux(terms, updates)

    @property
    def taken_over(self) -> TakeOver:
        """In the order of the supplement's section 1.

        Branches start from the tied kernel, or from the convolution that they replace; backbones of further
        scales start from that of the image itself.
        """
        backbone = self.config.backbone

        def renames(path: str) -> list[str]:
            tied = re.sub(r"/pool/(dilation|scale)_\d+/", "/pool/shared/", path)
            return [tied, re.sub(r"^(backbone|res6)_\d+/", r"\1/", path)]

        return TakeOver(backbone.name, frozenset(spec.name for spec in backbone.block_specs), renames)

    @property
    def gated(self) -> dict[str, GatedLayer]:
        """With gate "argmax": the branches of each step (``loop_1/dilation_2``); a pixel takes one."""
        layers = {}
        for loop in range(self.config.loops + 1):
            module = f"{STEP_SCOPE}{loop}/{'loop' if loop else 'feedforward'}"
            for name, dilation in zip(self._branches(loop), self.config.pooling.dilations, strict=False):
                scopes = (f"{module}/pool/branch_{dilation}",)
                layers[name] = GatedLayer(scopes, "branch", f"loop_{loop}")
        return layers

    def executed_shares(self, outputs: Outputs) -> dict[str, Array]:
        """Share of positions (B,) at which each of ``gated`` was executed."""
        return {
            name: outputs.selections[f"loop_{loop}"][..., index].mean((1, 2))
            for loop in range(self.config.loops + 1)
            for index, name in enumerate(self._branches(loop))
        }

    def _branches(self, loop: int) -> list[str]:
        """Names of a step's branches that run at a part of the positions; [] for soft weights."""
        pooling = self.config.pooling
        if pooling.gate != "argmax" or self.config.signals[min(loop, 1)] in ("none", "average"):
            return []
        return [f"loop_{loop}/dilation_{dilation}" for dilation in pooling.dilations]

    @property
    def choices(self) -> tuple[str, ...]:
        """The pooling sizes, from the farthest bin's to the nearest's."""
        pooling = self.config.pooling
        if {"none", "average"}.issuperset(self.config.signals):
            return ()
        if pooling.kind == "multiscale":
            return tuple(f"scale {scale:g}" for scale in pooling.scales)
        return tuple(f"dilation {dilation}" for dilation in pooling.dilations)

    def choice_maps(self, outputs: Outputs, size: tuple[int, int]) -> dict[str, Array]:
        """The pooling size with the largest weight in the feed-forward pass, ``loop_0``, and in each loop."""
        maps = {}
        for name, weights in outputs.selections.items():
            cells = jnp.argmax(weights, axis=-1).astype(jnp.int32)
            whole = cells.repeat(self._stride, axis=1).repeat(self._stride, axis=2)
            maps[name] = whole[:, : size[0], : size[1]]
        return maps

    def true_choices(self, labels: Mapping[str, Array]) -> Array | None:
        """The bins of the labelled depth, if a depth is the signal."""
        if depth.NAME not in labels or not {"gt_depth", "pred_depth"} & set(self.config.signals):
            return None
        return self.config.bins.classes(labels[depth.NAME])

    @cached_property
    def alternatives(self) -> Mapping[str, Perspective]:
        """With gates, the other of ``softmax`` and ``argmax``; ``loop_0``, ``loop_1``, ...: fewer loops."""
        config, pooling = self.config, self.config.pooling
        found: dict[str, PerspectiveConfig] = {}
        if pooling.kind == "multipool" and not {"none", "average"}.issuperset(config.signals):
            other: Gate = "argmax" if pooling.gate == "softmax" else "softmax"
            found[other] = replace(config, pooling=replace(pooling, gate=other))
        for loops in range(config.loops):
            found[f"loop_{loops}"] = replace(config, loops=loops)
        return {name: Perspective(changed) for name, changed in found.items()}

    def _forward(
        self,
        variables: Variables,
        images: Array,
        inputs: Inputs,
        routing: Routing,
        rngs: Mapping[str, PRNGKey] | None,
    ) -> tuple[tuple[PassOutput, ...], dict[str, Any]]:
        """(all steps, new batch_stats)."""
        options: dict[str, Any] = {"truth": self._truth(images, inputs), "one_hot": self._one_hot(routing)}
        return self.call(variables, images, routing, rngs=rngs, moving=routing.train, **options)

    def _one_hot(self, routing: Routing) -> bool:
        return not routing.train and self.config.pooling.gate == "argmax"

    def _truth(self, images: Array, inputs: Inputs) -> Array | None:
        given = inputs.get(depth.NAME)
        if not self.config.needs_depth:
            if given is not None:
                raise ValueError(f"depth: pooling.signal {self.config.pooling.signal!r} does not read it")
            return None
        if given is None:
            raise ValueError(
                "depth: pooling.signal 'gt_depth' gates by it; give (B, H, W) metres, 0 = missing"
            )
        return self.config.bins.weights(given, self._stride)

    def _at(self, logits: Array, size: tuple[int, int]) -> Array:
        return logits if self.config.loss.at == "cells" else to_pixels(logits, size, self._stride)

    def _labels(self, target: Array) -> Array:
        return at_cells(target, self._stride) if self.config.loss.at == "cells" else target

    def _predictions(self, step: PassOutput, size: tuple[int, int]) -> dict[str, Array]:
        maps = {segmentation.NAME: step.classes, depth.NAME: step.log_depth}
        return {
            name: to_pixels(value, size, self._stride) for name, value in maps.items() if value is not None
        }

    def _outputs(
        self, steps: tuple[PassOutput, ...], size: tuple[int, int], updates: dict[str, Any]
    ) -> Outputs:
        maps = []
        for index, step in enumerate(steps):
            with in_step(index):
                maps.append(self._predictions(step, size))
        *exits, last = maps
        selections = {
            f"loop_{loop}": step.weights for loop, step in enumerate(steps) if step.weights is not None
        }
        return Outputs(last, selections=selections, exits=tuple(exits), updates=updates)


def to_pixels(x: Array, size: tuple[int, int], stride: int) -> Array:
    """(B, h, w, C) -> (B, H, W, C): bilinear, each cell in the middle of its ``stride`` x ``stride`` pixels.

    The released code's fixed deconvolution (kernel 2 * stride, crop stride / 2), but for the border.
    """
    full = resize_bilinear(x, (x.shape[1] * stride, x.shape[2] * stride))
    return full[:, : size[0], : size[1]]


def at_cells(target: Array, stride: int) -> Array:
    """(B, H, W[, C]) -> (B, h, w[, C]): the values of each cell's middle pixel, as in `to_pixels`."""
    for axis in (1, 2):
        size = target.shape[axis]
        middles = np.minimum(np.arange(0, size, stride) + stride // 2, size - 1)
        target = jnp.take(target, jnp.asarray(middles), axis=axis, mode="clip")
    return target
