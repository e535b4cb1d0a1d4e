"""A training step of one stage of a config, as the tests of all configs take it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynpix_jax import papers
from dynpix_jax.core.config import RunConfig
from dynpix_jax.core.system import System
from dynpix_jax.core.typing import Variables
from dynpix_jax.data.loader import make_loader
from dynpix_jax.training.optim import StageOptimizer, stage_optimizer
from dynpix_jax.training.state import TrainState, new_state
from dynpix_jax.training.step import StepFn, make_step

# A program that runs once is not worth optimizing.
QUICKLY = {"xla_llvm_disable_expensive_passes": True, "xla_backend_optimization_level": 0}


@dataclass(frozen=True)
class OneStep:
    """What a step did. before, after: the trained leaves, by path."""

    metrics: dict[str, Any]
    before: dict[str, Any]
    after: dict[str, Any]

    @property
    def changed(self) -> list[str]:
        """Paths of the trained leaves that it moved."""
        return [path for path in self.before if not np.array_equal(self.before[path], self.after[path])]


def stage_system(run: RunConfig, index: int = -1) -> System:
    """The network of stage ``index``."""
    return papers.build(run.stages[index].model)


def first_step(
    run: RunConfig, elements: Any, variables: Variables, index: int = -1
) -> tuple[StepFn, TrainState, dict[str, jax.Array], StageOptimizer]:
    """(step, first state, first batch, optimizer) of stage ``index`` from ``variables``.

    The batch is what the stage's loader makes of ``elements``.
    """
    stage, system = run.stages[index], stage_system(run, index)
    optimizer = stage_optimizer(variables["params"], run.training, stage)
    state = new_state(variables, optimizer.tx, optimizer.pick, 0)
    loader = make_loader(elements, batch_size=2, train=True, augment=run.data.train.augment)
    batch = {name: jnp.asarray(value) for name, value in next(iter(loader)).items()}
    step = make_step(system, optimizer, seed=0, stage_start=0, stage_steps=stage.steps)
    return step, state, batch, optimizer


def metrics_that_fit(
    run: RunConfig, elements: Any, variables: Variables, index: int = -1
) -> dict[str, jax.ShapeDtypeStruct]:
    """The metrics of a step that is traced only, which gives a state like the one it takes."""
    step, state, batch, _ = first_step(run, elements, variables, index)
    after, metrics = jax.eval_shape(step, state, batch)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, after))
    return metrics


def take_one_step(run: RunConfig, elements: Any, variables: Variables, index: int = -1) -> OneStep:
    """The first step of stage ``index`` from ``variables``, on what its loader makes of ``elements``.

    Asserts that all metrics are finite and that there is a gradient.
    """
    step, state, batch, optimizer = first_step(run, elements, variables, index)
    new, metrics = jax.jit(step).lower(state, batch).compile(compiler_options=QUICKLY)(state, batch)
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["grad_norm"] > 0
    return OneStep(metrics, optimizer.pick(variables["params"]), optimizer.pick(new.params))
