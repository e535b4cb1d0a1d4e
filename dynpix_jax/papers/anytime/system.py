"""Confidence Adaptive Anytime Pixel-Level Recognition (Liu, Darrell and Shelhamer, ICLR 2022).

HRNet with an exit after each stage (section 3.2); early exits have small encoder-decoder heads (3.3). Where
an exit is confident, the convolutions up to the next exit are interpolated instead of computed, and the next
exit keeps its prediction (3.4, eq. 1 to 4).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, partial, reduce
from typing import Any

import jax
import jax.numpy as jnp

from dynpix_jax import tasks
from dynpix_jax.core.adapt import TakeOver
from dynpix_jax.core.capabilities import GatedLayer
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.progressive import Step, StepResult
from dynpix_jax.core.routing import Routing, check_mask
from dynpix_jax.core.system import ANY_BATCH, Inputs, LossAux, Outputs, System
from dynpix_jax.core.trees import named_leaves
from dynpix_jax.core.typing import Array, Mask, PRNGKey, Variables
from dynpix_jax.nn.gates import ConfidenceOptions, TopKOptions
from dynpix_jax.nn.norm import SPARSE_NEEDS_FROZEN_NORMS
from dynpix_jax.ops.confidence import Measure, confidence
from dynpix_jax.ops.resize import cells_to_pixels, resize_bilinear
from dynpix_jax.papers.anytime.config import AdaptivityConfig, AnytimeConfig, HeadConfig
from dynpix_jax.papers.anytime.gating import MaskedConvs, masked_convs
from dynpix_jax.papers.anytime.initial import initial_variables
from dynpix_jax.papers.anytime.network import AnytimeNetwork, Progress, Span, spans

__all__ = ["AdaptivityConfig", "Anytime", "AnytimeConfig", "AnytimeNetwork", "HeadConfig"]


_BLOCK = re.compile(r"(layer1|stage[234])_\d+(/branch\d_\d+)?")
"""Names of an HRNet's blocks, within the backbone."""


class Anytime(System):
    """The anytime system as pure functions; see System.

    Gates are named after the stage that they mask, "stage2" to "stage4": (B, h, w) at a quarter of the
    image's resolution, as is `confidence` of a prediction. With random or no adaptivity, confidence is the
    largest class probability (of tasks without classes, such as pose: minus the largest output).
    """

    name = "anytime"
    Config = AnytimeConfig
    counts_resizing = False
    float32 = ("gate",)
    nested_gates = True

    def __init__(self, config: AnytimeConfig):
        self.config = config
        self.task = tasks.build(config.task, config.task_options, "config.model.task_options")
        self.tasks = {self.task.name: self.task}
        if config.adaptivity is not None:
            _check_measure(config.adaptivity, config.task, by_class=self.task.by_class)
        self.network: AnytimeNetwork = AnytimeNetwork(config, self.task.channels)

    def init(self, key: PRNGKey, batch: Mapping[str, Any]) -> Variables:
        """Fresh variables; see System.

        All kernels are parts of one draw: a program with hundreds of separate draws takes minutes to compile.
        """
        return initial_variables(self.variable_shapes, key, heatmaps=self.task.stride > 1)

    @cached_property
    def variable_shapes(self) -> Variables:
        """See System; those of the network's own `init`, whose values this system draws in another way."""
        shapes: Variables = jax.eval_shape(super().init, jax.random.key(0), ANY_BATCH)
        return shapes

    def apply(
        self,
        variables: Variables,
        images: Array,
        inputs: Mapping[str, Array] = {},
        routing: Routing = Routing(),
        *,
        rngs: Mapping[str, PRNGKey] | None = None,
    ) -> Outputs:
        """Forward pass through all exits; ``exits`` are those before the last.

        Later stages also skip the positions that an earlier given mask skips. Training draws from
        ``rngs["gumbel"]`` if masks are random.

        Raises:
            ValueError: Mode "sparse" in training; a mask for a stage without one, or of a wrong shape.
        """
        return self.run(variables, images, routing, rngs=rngs)

    def run(
        self,
        variables: Variables,
        images: Array,
        routing: Routing,
        *,
        adapt_now: Array | bool = True,
        rngs: Mapping[str, PRNGKey] | None = None,
    ) -> Outputs:
        """`apply`; ``adapt_now``: whether gates may skip positions (may be traced). Given masks always do."""
        train = routing.train
        if train and routing.mode == "sparse":
            raise ValueError(SPARSE_NEEDS_FROZEN_NORMS)
        routing = self._checked(routing, images)
        after, updates = self.call(variables, images, routing, adapt_now=adapt_now, moving=train, rngs=rngs)
        size = (images.shape[1], images.shape[2])
        *exits, last = ({self.task.name: self._to_image(one.logits, size)} for one in after)
        return Outputs(last, self._masks_of(after), exits=tuple(exits), updates=updates)

    def steps(
        self, variables: Variables, images: Array, inputs: Inputs, routing: Routing
    ) -> tuple[Sequence[Step[Progress]], Progress]:
        """One step per exit."""
        routing = self._checked(routing, images)
        size = (images.shape[1], images.shape[2])

        def step(span: Span) -> Step[Progress]:
            own = {name: one for name, one in self._masked.items() if one.mask in _masks(span)}

            def shares(before: Progress) -> dict[str, float]:
                if before.mask is None:
                    return {}
                mask = before.mask.astype(jnp.float32)
                return {name: float(one.share(mask).mean()) for name, one in own.items()}

            return Step(partial(self._exit, variables, routing, span=span, size=size), shares)

        return [step(span) for span in spans(self.config.exits)], Progress((images,))

    @partial(jax.jit, static_argnums=0, static_argnames=("span", "size"))
    def _exit(
        self,
        variables: Variables,
        routing: Routing,
        before: Progress,
        span: Span,
        size: tuple[int, int],
    ) -> tuple[Progress, StepResult]:
        after, _ = self.call(variables, span, before, routing, method="advance")
        gates = {} if before.mask is None else dict.fromkeys(_masks(span), before.mask)
        result = StepResult(
            {self.task.name: self._to_image(after.logits, size)}, self._confidence(after.logits), gates
        )
        return after, result

    def loss(
        self,
        variables: Variables,
        batch: Mapping[str, Array],
        *,
        rngs: Mapping[str, PRNGKey],
        controls: Mapping[str, Array],
    ) -> tuple[Array, LossAux]:
        """Weighted sum of the exits' losses (section 3.2). Terms: ``exit1``, ... and each mask's density."""
        task, images, adapt_now = self.task, batch["image"], controls["adapt_now"]
        after, updates = self.call(
            variables, images, Routing(train=True), adapt_now=adapt_now, moving=True, rngs=rngs
        )

        # Logits at the image's resolution are a network's largest maps: the backward pass enlarges again.
        @jax.checkpoint
        def cost(logits: Array) -> Array:
            enlarged = self._to_image(logits, (images.shape[1], images.shape[2]))
            return task.loss(enlarged, batch[task.target], batch["valid"])

        exits = zip(self.config.exits, self.config.weights, after, strict=True)
        terms = {f"exit{number}": weight * cost(one.logits) for number, weight, one in exits}
        total = sum(terms.values(), jnp.zeros(()))
        density = {f"density_{name}": mask.mean() for name, mask in self._masks_of(after).items()}
        return total, LossAux(terms | density, updates)

    def controls(self, step: Array, steps: int) -> dict[str, Array]:
        """adapt_now: False before ``adaptivity.start`` of the stage's steps."""
        start = self.config.adaptivity.start if self.config.adaptivity else 0.0
        return {"adapt_now": jnp.asarray(step, jnp.float32) >= start * steps}

    @property
    def taken_over(self) -> TakeOver:
        """Exits that the weights lack stay fresh, and so does the interpolation's ``lam``."""
        names = (path for path, _ in named_leaves(self.variable_shapes["params"]["backbone"]))
        blocks = frozenset(match[0] for name in names if (match := _BLOCK.match(name)))
        return TakeOver(f"HRNet {self.config.backbone.arch}", blocks, stays_fresh=".*/lam")

    @property
    def gated(self) -> dict[str, GatedLayer]:
        """The convolutions that a mask skips, by stage or exit and resolution ("stage3_stride8")."""
        return {name: one.layer for name, one in self._masked.items()}

    def executed_shares(self, outputs: Outputs) -> dict[str, Array]:
        """Share of MACs (B,) of each of ``gated`` that remains under its mask, with interpolation."""
        return {name: one.share(outputs.gates[one.mask]) for name, one in self._masked.items()}

    def exit_maps(self, outputs: Outputs) -> tuple[tuple[Array, Array | None], ...]:
        logits = (*outputs.exits, outputs.predictions)
        return tuple(
            (self._confidence(one[self.task.name]), outputs.gates.get(f"stage{number + 1}"))
            for number, one in zip(self.config.exits, logits, strict=True)
        )

    def ponder_maps(self, outputs: Outputs, size: tuple[int, int]) -> dict[str, Array]:
        """Each mask, and ``total``: the share of stages after the first exit that computed each position."""
        maps = {name: cells_to_pixels(mask, size, 4) for name, mask in outputs.gates.items()}
        return maps | {"total": jnp.stack(list(maps.values())).mean(0)} if maps else {}

    @property
    def _gates(self) -> tuple[str, ...]:
        """Names of the masks: one for every stage after the first exit."""
        if self.config.adaptivity is None:
            return ()
        return tuple(name for span in spans(self.config.exits)[1:] for name in _masks(span))

    @cached_property
    def _masked(self) -> dict[str, MaskedConvs]:
        return masked_convs(self.config, self.variable_shapes["params"])

    def _checked(self, routing: Routing, images: Array) -> Routing:
        """The routing with given masks under the first of the stages that share one, those between two exits.

        Given for several of these, they compute where all of them do.
        """
        given = routing.masks_of(self._gates)
        shape = (images.shape[0], -(-images.shape[1] // 4), -(-images.shape[2] // 4))
        shared: dict[str, Mask] = {}
        for span in spans(self.config.exits)[1:]:
            masks = [check_mask(given[name], shape, name) for name in _masks(span) if name in given]
            if masks:
                shared[_masks(span)[0]] = reduce(jnp.logical_and, masks)
        return dataclasses.replace(routing, masks=shared)

    def _confidence(self, logits: Array) -> Array:
        options = self.config.adaptivity.options if self.config.adaptivity else None
        measure: Measure = "max_probability" if self.task.by_class else "max_value"
        if isinstance(options, ConfidenceOptions):
            measure = options.measure
        return confidence(logits, measure)

    def _to_image(self, logits: Array, size: tuple[int, int]) -> Array:
        """Logits at the task's resolution: the image's, or the network's own (heatmaps)."""
        return resize_bilinear(logits, self.task.logits_size(size))

    def _masks_of(self, after: Sequence[Progress]) -> dict[str, Array]:
        """The masks of the stages after the first exit, from the states after each."""
        gates: dict[str, Array] = {}
        for span, before in zip(spans(self.config.exits)[1:], after, strict=False):
            if before.mask is not None:
                gates |= dict.fromkeys(_masks(span), before.mask.astype(jnp.float32))
        return gates


def _masks(span: Span) -> tuple[str, ...]:
    """Names of the masks of these stages."""
    return tuple(f"stage{number}" for number in span)


def _check_measure(adaptivity: AdaptivityConfig, task: str, *, by_class: bool) -> None:
    """Refuses gates that read probabilities of other outputs than classes, or values of classes."""
    options = adaptivity.options
    by_value = isinstance(options, ConfidenceOptions) and options.measure == "max_value"
    by_probability = isinstance(options, ConfidenceOptions | TopKOptions) and not by_value
    if by_value if by_class else by_probability:
        raise UserError(
            f"config.model.adaptivity.kind: {adaptivity.kind!r} with task {task!r}, whose outputs are "
            f"{'those of classes' if by_class else 'no classes'}; probabilities are of classes (such as "
            "segmentation's), measure 'max_value' is of other outputs (such as heatmaps of joints)"
        )
