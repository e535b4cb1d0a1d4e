"""One stage of training: system, optimizer, shardings and compiled functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dynpix_jax.core.config import RunConfig
from dynpix_jax.core.rng import stream
from dynpix_jax.core.settings import StageConfig
from dynpix_jax.core.system import System
from dynpix_jax.core.trees import named_leaves
from dynpix_jax.core.typing import Variables
from dynpix_jax.flops import UnknownPrimitiveError, count_macs
from dynpix_jax.training.checks import stage_system
from dynpix_jax.training.compiler import step_options
from dynpix_jax.training.optim import StageOptimizer, stage_optimizer
from dynpix_jax.training.sharding import host_norms_as_numbers, state_shardings
from dynpix_jax.training.state import TrainState, new_state
from dynpix_jax.training.step import StepFn, make_step


@dataclasses.dataclass(frozen=True)
class Stage:
    """The parts of one stage.

    Attributes:
        index: Index in the run.
        start: Global step at which it begins.
        config: Its settings.
        system: Its network.
        optimizer: Optimizer of its trained leaves.
        abstract: Shapes, dtypes and shardings of its state.
        init: Maps the variables of the stage before, or None, to the initial state.
        step: The compiled training step; donates the state.
        plain_step: The same step, not compiled, without microbatches and rematerialisation.
    """

    index: int
    start: int
    config: StageConfig
    system: System
    optimizer: StageOptimizer
    abstract: TrainState
    init: Callable[[Variables | None], TrainState]
    step: StepFn
    plain_step: StepFn

    @property
    def end(self) -> int:
        """Global step at which it ends."""
        return self.start + self.config.steps

    def flops(self, batch: Mapping[str, jax.Array]) -> float | None:
        """Operations of a step on all devices; None where a loop's length is not known beforehand.

        What is computed again for want of memory does not count; turns that lack labels count like others.
        """
        try:
            return count_macs(self.plain_step, self.abstract, batch, at_most=True).flops
        except UnknownPrimitiveError:
            return None

    def describe(self, state: TrainState) -> str:
        """A line for the log."""
        count = sum(leaf.size for _, leaf in named_leaves(state.params))
        trained = sum(leaf.size for leaf in self.optimizer.pick(state.params).values())
        return (
            f"stage '{self.config.name}': steps {self.start} to {self.end}, {count:,} parameters,"
            f" {trained:,} trained, learning rate {self.config.learning_rate:g}"
        )


def make_stage(run: RunConfig, index: int, mesh: Mesh, image_shape: tuple[int, ...]) -> Stage:
    """Builds stage `index` of a run whose images have that shape (H, W, 3)."""
    settings, stage, start = run.training, run.stages[index], run.training.stage_start(index)
    model = host_norms_as_numbers(stage.model, mesh, settings)
    system = stage_system(dataclasses.replace(stage, model=model))
    example = {"image": np.zeros((1, *image_shape), np.uint8)}
    key = stream(run.seed, "params", index)
    shapes = jax.eval_shape(system.init, key, example)
    optimizer = stage_optimizer(shapes["params"], settings, stage, system)
    abstract = jax.eval_shape(
        lambda variables: new_state(variables, optimizer.tx, optimizer.pick, start), shapes
    )
    shardings = state_shardings(abstract, optimizer, mesh, settings)
    abstract = jax.tree.map(
        lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), abstract, shardings
    )
    everywhere = NamedSharding(mesh, PartitionSpec())

    def init(previous: Variables | None) -> TrainState:
        variables = jax.jit(system.init, out_shardings=everywhere)(key, example)
        if previous is not None:
            variables = system.adapt(previous, variables)
        state = new_state(variables, optimizer.tx, optimizer.pick, start)
        placed: TrainState = jax.device_put(state, shardings)
        return placed

    make = partial(make_step, system, optimizer, seed=run.seed, stage_start=start, stage_steps=stage.steps)
    used_at = everywhere if settings.sharding == "fsdp" else None
    step = jax.jit(
        make(microbatches=settings.microbatches, remat=settings.remat, used_at=used_at),
        in_shardings=(shardings, None),
        out_shardings=(shardings, everywhere),
        donate_argnums=0,
        compiler_options=step_options(mesh),
    )
    return Stage(index, start, stage, system, optimizer, abstract, init, step, make())
