"""What can be wrong with a run, found before any of it is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import ml_collections
import numpy as np

from dynpix_jax.core.capabilities import ReadsInputs
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.source import SourceSpec
from dynpix_jax.core.system import System
from dynpix_jax.core.trees import named_leaves
from dynpix_jax.tasks import check_labels
from dynpix_jax.training.optim import stage_optimizer
from dynpix_jax.training.settings import stage_system, training_config


@dataclasses.dataclass(frozen=True)
class StageSummary:
    """A stage that can be trained: its name, steps, and the number of all parameters of its network."""

    name: str
    steps: int
    parameters: int


def check_stages(
    config: ml_collections.ConfigDict,
    build: Callable[[ml_collections.ConfigDict], System],
    spec: SourceSpec | None = None,
) -> tuple[StageSummary, ...]:
    """Builds the system of every stage (shapes only) and applies its rules to the parameters.

    The loop would find the same errors, those of a later stage after hours of training.

    Args:
        config: whole config.
        build: makes the system of a model section (`papers.build`).
        spec: what the training batches hold; None leaves it unchecked.

    Raises:
        UserError: a wrong value or override of a stage, or a rule that matches no parameter or leaves one
            out; names the stage. Labels that the batches lack, or that have other classes.
    """
    training = training_config(config)
    summaries = []
    for stage in training.stages:
        system = stage_system(config, stage, build)
        if spec is not None:
            classes = {name: spec.fields[name].classes for name in spec.labels}
            check_labels(system.tasks, classes, f"config.data.train, source {spec.name}")
            read = (*system.inputs, *system.supervision) if isinstance(system, ReadsInputs) else ()
            for name in read:
                if name not in classes:
                    raise UserError(
                        f"config.data.train, source {spec.name}: no '{name}' labels, stage '{stage.name}' "
                        "needs them; set fields of config.data.train.source"
                    )
        # Sizes of the parameters do not depend on the image's; a small one keeps tracing quick.
        batch = {"image": np.zeros((1, 64, 64, 3), np.uint8)}
        variables = jax.eval_shape(partial(system.init, batch=batch), jax.random.key(0))
        stage_optimizer(variables["params"], training, stage, system)
        count = sum(leaf.size for _, leaf in named_leaves(variables["params"]))
        summaries.append(StageSummary(stage.name, stage.steps, count))
    return tuple(summaries)
