"""Checks of a run before any of it is trained."""

from __future__ import annotations

import dataclasses

import jax

from dynpix_jax import papers
from dynpix_jax.core.capabilities import ReadsInputs
from dynpix_jax.core.config import RunConfig
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.memory import physical_memory
from dynpix_jax.core.settings import StageConfig
from dynpix_jax.core.source import SourceSpec
from dynpix_jax.core.system import System
from dynpix_jax.core.trees import named_leaves
from dynpix_jax.flops import variable_shapes
from dynpix_jax.nn.remat import rematerialized
from dynpix_jax.tasks import check_labels
from dynpix_jax.training.optim import stage_optimizer


@dataclasses.dataclass(frozen=True)
class StageSummary:
    """A stage that can be trained: its name, steps, and the number of all parameters of its network."""

    name: str
    steps: int
    parameters: int


def stage_system(stage: StageConfig) -> System:
    """The system of a stage.

    Raises:
        UserError: It cannot be built; names the stage, whose changes of the model may be the cause.
    """
    try:
        return papers.build(stage.model)
    except UserError as error:
        raise UserError(f"stage '{stage.name}': {error}") from error


def _check_memory(stage: StageConfig, parameters: int) -> None:
    """Refuses a network whose parameters and their moments no memory of the job holds, before jax aborts."""
    found = [device.memory_stats() or {} for device in jax.local_devices()]
    devices = jax.process_count() * sum(stats.get("bytes_limit", 0) for stats in found)
    held = devices or jax.process_count() * physical_memory()
    if held and 8 * parameters > held:
        raise UserError(
            f"stage '{stage.name}': its network has {parameters:,} parameters, which with their moments take"
            f" {8 * parameters / 1e9:,.0f} GB; there are {held / 1e9:,.0f} GB"
        )


def check_stages(
    run: RunConfig, spec: SourceSpec | None = None, *, elsewhere: bool = False
) -> tuple[StageSummary, ...]:
    """Builds the system of every stage (shapes only) and applies its rules to the parameters.

    The loop would find the same errors, those of a later stage after hours of training.

    Args:
        run: All settings.
        spec: What the training batches hold; None leaves it unchecked.
        elsewhere: Whether other machines train it: the memory of this one does not matter.

    Raises:
        UserError: A network that cannot be built, or a rule that matches no parameter or module or leaves
            one out; names the stage. Labels that the batches lack, or that have other classes.
    """
    summaries = []
    for stage in run.stages:
        system = stage_system(stage)
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
        with rematerialized(run.training.remat) as met:
            variables = variable_shapes(system)
        if not met and run.training.remat != "none":
            raise UserError(
                f"config.training.remat: the network of stage '{stage.name}' has no '{run.training.remat}';"
                " expected none, stages, blocks or a regex of paths of its modules"
            )
        count = sum(leaf.size for _, leaf in named_leaves(variables["params"]))
        if not elsewhere:
            _check_memory(stage, count)
        stage_optimizer(variables["params"], run.training, stage, system)
        system.check(variables)
        summaries.append(StageSummary(stage.name, stage.steps, count))
    return tuple(summaries)
