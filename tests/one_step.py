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
from dynpix_jax.training.optim import stage_optimizer
from dynpix_jax.training.state import new_state
from dynpix_jax.training.step import make_step

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


def take_one_step(run: RunConfig, elements: Any, variables: Variables, index: int = -1) -> OneStep:
    """The first step of stage ``index`` from ``variables``, on what its loader makes of ``elements``.

    Asserts that all metrics are finite and that there is a gradient.
    """
    stage, system = run.stages[index], stage_system(run, index)
    optimizer = stage_optimizer(variables["params"], run.training, stage)
    state = new_state(variables, optimizer.tx, optimizer.pick, 0)
    loader = make_loader(elements, batch_size=2, train=True, augment=run.data.train.augment)
    batch = {name: jnp.asarray(value) for name, value in next(iter(loader)).items()}
    step = make_step(system, optimizer, seed=0, stage_start=0, stage_steps=stage.steps)
    new, metrics = jax.jit(step).lower(state, batch).compile(compiler_options=QUICKLY)(state, batch)
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["grad_norm"] > 0
    return OneStep(metrics, optimizer.pick(variables["params"]), optimizer.pick(new.params))
