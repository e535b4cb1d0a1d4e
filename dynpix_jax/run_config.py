"""From a config file, or what a checkpoint holds of it, to the settings of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dynpix_jax.core.capabilities import alternatives_of, gated_layers, has_masked_gates
from dynpix_jax.core.config import RunConfig, parse_run, plain
from dynpix_jax.core.configs import load_config
from dynpix_jax.core.errors import UserError, suggest
from dynpix_jax.core.overrides import apply_overrides
from dynpix_jax.core.sections import refuse_unread
from dynpix_jax.core.settings import ExecutionConfig
from dynpix_jax.core.system import System
from dynpix_jax.core.task import Task
from dynpix_jax.data.sources import read_source
from dynpix_jax.papers import SYSTEMS, build


def read_run(config: str | Path | Mapping[str, Any] | ConfigDict, overrides: Sequence[str] = ()) -> RunConfig:
    """The settings of "path/to/config.py:arg", or of such a config as sections, after `--set`.

    Whether the networks of its stages can be built is not checked here: see `training.checks.check_stages`.

    Raises:
        UserError: Whatever is wrong, with the key's full path; a value that nothing reads.
    """
    sections = plain(load_config(config) if isinstance(config, str | Path) else config)
    run = parse_run(apply_overrides(sections, overrides), SYSTEMS, read_source)
    try:
        systems = [build(stage.model) for stage in run.stages]
    except UserError:
        return run  # its builder names the stage
    _check_alternatives(run.evaluation.also, systems)
    refuse_unread(run.evaluation, "config.evaluation", _unread_in_evaluation(run, systems))
    refuse_unread(run.execution, "config.execution", _unread_by_gates(run, systems))
    return run


def _check_alternatives(names: Sequence[str], systems: Sequence[System]) -> None:
    """Every way to run a network that `evaluation.also` names is one of the last stage's."""
    known = alternatives_of(systems[-1]) if names else {}
    for name in names:
        if name not in known:
            raise UserError(f"config.evaluation.also: this network has no '{name}'; {suggest(name, known)}")


def _unread_in_evaluation(run: RunConfig, systems: Sequence[System]) -> dict[str, str]:
    """Settings of the evaluation that no task and no gate reads, and why."""
    tasks = {task.name: task for system in systems for task in system.tasks.values()}
    names = ", ".join(tasks)
    reasons: dict[str, str] = {}
    if all(task.scorer == "sums" for task in tasks.values()):
        reason = f"it is of the boundary benchmark, which does not score {names}"
        reasons |= dict.fromkeys(("thresholds", "max_dist", "nms", "smooth", "workers"), reason)
    if all(type(task).smooth is Task.smooth for task in tasks.values()):
        reasons["inference.blur"] = f"it smooths depth; the network predicts {names}"
    if run.evaluation.chance and not any(has_masked_gates(system) for system in systems):
        reasons["chance"] = "it replaces masks of gates, and no stage has gates of positions"
    return reasons


def _unread_by_gates(run: RunConfig, systems: Sequence[System]) -> dict[str, str]:
    """Settings of the execution that no gate reads, and why."""
    if run.execution == ExecutionConfig():
        return {}  # nothing to refuse, and gates may take long to find
    others = [alternatives_of(system).get(name, system) for system in systems for name in run.evaluation.also]
    layers = (layer for system in (*systems, *others) for layer in gated_layers(system).values())
    if any(layer.kind != "iterations" for layer in layers):
        return {}
    return {"implementation": "it runs what gates skip, and no stage has gates"}
