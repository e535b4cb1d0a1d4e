"""Multiscale Deep Equilibrium Models (Bai, Koltun and Kolter, NeurIPS 2020), the anytime paper's baseline.

The features of all resolutions are the fixed point z* = f(z*; x) of one cell, where x is the output of a stem
on the image. A quasi-Newton solver finds it, and training differentiates through it by the implicit function
theorem. Decoding earlier iterates gives an anytime predictor (section 4 and appendix C of Liu, Darrell and
Shelhamer, ICLR 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax

from dynpix_jax import tasks
from dynpix_jax.core.capabilities import GatedLayer
from dynpix_jax.core.precision import widen
from dynpix_jax.core.progressive import STEP_SCOPE, Step, StepResult, in_step
from dynpix_jax.core.routing import Routing
from dynpix_jax.core.system import Inputs, LossAux, Outputs, System
from dynpix_jax.core.typing import Array, PRNGKey, Variables
from dynpix_jax.nn.remat import applied_as
from dynpix_jax.ops.resize import resize_bilinear
from dynpix_jax.papers.mdeq import fixed_point as solvers
from dynpix_jax.papers.mdeq.config import CellConfig, EarlyConfig, JacobianConfig, MdeqConfig
from dynpix_jax.papers.mdeq.fixed_point import SolverConfig, SolverState
from dynpix_jax.papers.mdeq.network import Cell, Maps, MdeqNetwork, map_shapes
from dynpix_jax.papers.mdeq.weight_norm import weight_normed

__all__ = [
    "CellConfig",
    "EarlyConfig",
    "JacobianConfig",
    "Mdeq",
    "MdeqConfig",
    "MdeqNetwork",
    "SolverConfig",
]

_ITERATIONS = "cell/iterations"

Theta = tuple[Any, Array, Maps | None]
"""Arguments of f beside z: parameters with weight norm applied, the injection, dropout factors."""


class Mdeq(System):
    """MDEQ as pure functions; see System.

    There are no gates: only ``train`` of a Routing is read. Training draws dropout from ``rngs["dropout"]``,
    once for all iterations of a forward pass.
    """

    name = "mdeq"
    Config = MdeqConfig
    counts_resizing = False

    def __init__(self, config: MdeqConfig):
        self.config = config
        self.task = tasks.build(config.task, config.task_options, "config.model.task_options")
        self.tasks = {self.task.name: self.task}
        self.network: MdeqNetwork = MdeqNetwork(config, self.task.channels)
        self._cell = Cell(config.cell)

    def apply(
        self,
        variables: Variables,
        images: Array,
        inputs: Mapping[str, Array] = {},
        routing: Routing = Routing(),
        *,
        rngs: Mapping[str, PRNGKey] | None = None,
    ) -> Outputs:
        """Forward pass; predictions are those at the solver's end, exits those of ``anytime.iterations``.

        ``measures``: ``iterations``, ``residual`` (the error that ``forward.error`` names) and ``diverged``
        (0 or 1). Training has no exits.
        """
        routing.masks_of(())
        if routing.train:
            maps, stats, updates, _ = self._train(variables, images, dict(rngs or {}))
            logits, updates = self._decode_train(variables, updates, maps)
            return Outputs(self._at(logits, images), updates=updates, measures=_measures(stats))
        f, theta, z = self._problem(variables, self._inject(variables, images), None)
        if self.config.unrolled:
            iterates, measures = [solvers.unrolled(partial(f, theta), z, self.config.unrolled)], {}
        else:
            iterates, stats = self._read_out(partial(f, theta), z)
            measures = _measures(stats)
        *exits, last = (self._at(self._decode(variables, theta, z), images) for z in iterates)
        return Outputs(last, exits=tuple(exits), measures=measures)

    def dense_predictions(self, variables: Variables, images: Array, inputs: Inputs) -> dict[str, Array]:
        """All applications of f up to the solver's limit, without the solver's algebra, and all decodings."""
        predictions: dict[str, Array] = {}
        for index, (before, end) in enumerate(pairwise((0, *self.config.read_out))):
            with in_step(index):
                if index == 0:
                    f, theta, z = self._problem(variables, self._inject(variables, images), None)
                    if not self.config.unrolled:
                        z = f(theta, z)  # the solver's start
                with jax.named_scope(_ITERATIONS):
                    z = solvers.unrolled(partial(f, theta), z, self.config.unrolled or end - before)
                predictions = self._at(self._decode(variables, theta, z), images)
        return predictions

    def steps(
        self, variables: Variables, images: Array, inputs: Inputs, routing: Routing
    ) -> tuple[Sequence[Step[Any]], Any]:
        """A step for each of ``anytime.iterations``, and one to the solver's end.

        MACs are counted without an early end. Confidence: the largest softmax probability, at a quarter of
        the images' size; None if the task has a single channel.
        """
        routing.masks_of(())
        size = (images.shape[1], images.shape[2])

        def make(index: int, until: int) -> Step[Any]:
            def run(state: Any) -> tuple[Any, StepResult]:
                if index == 0:
                    state = self._begin(variables, state)
                theta, search, result = self._continue(variables, *state, until, size)
                return (theta, search), result

            return Step(run)

        return [make(*one) for one in enumerate(self.config.read_out)], images

    @partial(jax.jit, static_argnums=0)
    def _begin(self, variables: Variables, images: Array) -> tuple[Theta, SolverState | Array]:
        f, theta, z = self._problem(variables, self._inject(variables, images), None)
        if self.config.unrolled:
            return theta, z
        return theta, solvers.start(partial(f, theta), z, self.config.forward)

    @partial(jax.jit, static_argnums=(0, 5))
    def _continue(
        self,
        variables: Variables,
        theta: Theta,
        search: SolverState | Array,
        until: int | Array,
        size: tuple[int, int],
    ) -> tuple[Theta, SolverState | Array, StepResult]:
        f = partial(self._f, theta)
        if isinstance(search, SolverState):
            search = solvers.advance(f, search, self.config.forward, until)
            z = self._iterate(search)
        else:
            search = z = solvers.unrolled(f, search, self.config.unrolled)
        logits = self._decode(variables, theta, z)
        confidence = jax.nn.softmax(logits).max(-1) if logits.shape[-1] > 1 else None
        return theta, search, StepResult(self._full(logits, size), confidence)

    def loss(
        self,
        variables: Variables,
        batch: Mapping[str, Array],
        *,
        rngs: Mapping[str, PRNGKey],
        controls: Mapping[str, Array],
    ) -> tuple[Array, LossAux]:
        """The task's loss and, weighted, ``jacobian``.

        Also reported: ``iterations`` and ``residual`` of the solver, means over images, and ``diverged``, the
        share of images whose search diverged.
        """
        images, config = batch["image"], self.config
        z, stats, updates, jacobian = self._train(variables, images, rngs)
        logits, updates = self._decode_train(variables, updates, z)
        predictions = self._at(logits, images)
        name = self.task.name
        terms = {name: self.task.loss(predictions[name], batch[self.task.target], batch["valid"])}
        if config.jacobian.weight:
            terms["jacobian"] = config.jacobian.weight * jacobian
        total = sum(terms.values(), jnp.zeros(()))
        if stats is not None:
            terms |= {name: number.mean() for name, number in _measures(stats).items()}
        return total, LossAux(terms, updates)

    @cached_property
    def alternatives(self) -> Mapping[str, Mdeq]:
        """``iterations_4``, ...: the search ended at one of ``anytime.iterations`` or at the limit.

        Each decodes once: the rows of the paper's tables. An unrolled f has none.
        """
        config = self.config
        if config.unrolled:
            return {}
        once = replace(config, anytime=replace(config.anytime, iterations=()))
        return {
            f"iterations_{n}": Mdeq(replace(once, forward=replace(config.forward, iterations=n)))
            for n in config.read_out
        }

    @property
    def gated(self) -> dict[str, GatedLayer]:
        """``iterations_4``, ...: f between two predictions; a search may end early."""
        if self.config.unrolled:
            return {}
        return {
            f"iterations_{end}": GatedLayer((f"{STEP_SCOPE}{index}/{_ITERATIONS}",), "iterations")
            for index, end in enumerate(self.config.read_out)
        }

    def executed_shares(self, outputs: Outputs) -> dict[str, Array]:
        """Share of these iterations that were executed."""
        if self.config.unrolled:
            return {}
        made = outputs.measures["iterations"]
        return {
            f"iterations_{end}": jnp.clip((made - before) / (end - before), 0.0, 1.0)
            for before, end in pairwise((0, *self.config.read_out))
        }

    def _train(
        self, variables: Variables, images: Array, rngs: Mapping[str, PRNGKey]
    ) -> tuple[Maps, solvers.Stats | None, dict[str, Any], Array]:
        """(z, Stats of the search, new batch_stats, Jacobian penalty or 0)."""
        config, nothing = self.config, jnp.zeros(())
        x, updates = self.call(variables, images, method="inject", moving=True, train=True)
        drawn = config.cell.dropout > 0 or config.jacobian.weight > 0
        key = rngs["dropout"] if drawn else None
        f, theta, z = self._problem(variables, x, key)
        if config.unrolled:
            z = solvers.unrolled(partial(f, theta), z, config.unrolled)
            return self._maps(theta, z), None, updates, nothing
        z, stats = solvers.fixed_point(f, theta, z, config.forward, config.backward, config.implicit)
        jacobian = config.jacobian
        if key is None or not jacobian.weight:
            return self._maps(theta, z), stats, updates, nothing
        key, draw = jax.random.split(jax.random.fold_in(key, 1))
        penalty = lax.cond(
            jax.random.uniform(draw) < jacobian.frequency,
            lambda: solvers.jacobian_penalty(partial(f, theta), z, key, jacobian.probes),
            lambda: nothing,
        )
        return self._maps(theta, z), stats, updates, penalty

    def _problem(
        self, variables: Variables, x: Array, dropout: PRNGKey | None
    ) -> tuple[Callable[[Theta, Array], Array], Theta, Array]:
        """(f, theta, the start), where f(theta, z) takes vectors z (B, D)."""
        cell, params = self.config.cell, variables["params"]["cell"]
        masks = None
        if dropout is not None and cell.dropout:
            keys = jax.random.split(jax.random.fold_in(dropout, 0), len(cell.channels))
            masks = tuple(
                jax.random.bernoulli(key, 1 - cell.dropout, (len(x), 1, 1, width)) / (1 - cell.dropout)
                for key, width in zip(keys, cell.channels, strict=True)
            )
        # Not in the cell: f is applied many times with the same parameters.
        theta = (weight_normed(params), x, masks)
        size = sum(math.prod(like.shape[1:]) for like in map_shapes(cell, x))
        return self._f, theta, jnp.zeros((len(x), size), x.dtype)

    def _f(self, theta: Theta, z: Array) -> Array:
        params, x, masks = theta
        # Beside stem and head, for `flops` and the rules of compute_dtype and remat. z and its residual are
        # float32.
        with jax.named_scope("cell"), applied_as("cell"), self.policy.in_force("cell"):
            after = self._cell.apply({"params": params}, self._maps(theta, z), x, masks)
        return solvers.flatten(widen(after))

    def _maps(self, theta: Theta, z: Array) -> Maps:
        maps: Maps = solvers.unflatten(z, map_shapes(self.config.cell, theta[1]))
        return maps

    def _read_out(self, f: solvers.Function, z: Array) -> tuple[list[Array], solvers.Stats]:
        """The iterates to decode, from one loop in which f is compiled once."""
        config = self.config.forward

        def go_on(state: SolverState, until: Array) -> tuple[SolverState, Array]:
            state = solvers.advance(f, state, config, until)
            return state, self._iterate(state)

        state, iterates = lax.scan(
            go_on, solvers.start(f, z, config), jnp.asarray(self.config.read_out, jnp.int32)
        )
        return list(iterates), solvers.stats(state)

    def _iterate(self, state: SolverState) -> Array:
        """The iterate to decode in this state of the search."""
        return state.best if self.config.anytime.iterate == "best" else state.z

    def _inject(self, variables: Variables, images: Array) -> Array:
        return cast(Array, self.call(variables, images, method="inject")[0])

    def _decode(self, variables: Variables, theta: Theta, z: Array) -> Array:
        return cast(Array, self.call(variables, self._maps(theta, z), method="decode")[0])

    def _decode_train(
        self, variables: Variables, updates: Mapping[str, Any], z: Maps
    ) -> tuple[Array, dict[str, Any]]:
        """(logits, batch_stats updated after the stem's)."""
        return self.call({**variables, **updates}, z, method="decode", moving=True, train=True)

    def _at(self, logits: Array, images: Array) -> dict[str, Array]:
        return self._full(logits, (images.shape[1], images.shape[2]))

    def _full(self, logits: Array, size: tuple[int, int]) -> dict[str, Array]:
        return {self.task.name: resize_bilinear(logits, size, align_corners=True)}


def _measures(stats: solvers.Stats | None) -> dict[str, Array]:
    if stats is None:
        return {}
    numbers = {"iterations": stats.iterations, "residual": stats.error, "diverged": stats.diverged}
    return {name: value.astype(jnp.float32) for name, value in numbers.items()}
