"""A trained network from its config and workdir, as `eval.py` and `dynpix predict` use it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from dynpix_jax import papers
from dynpix_jax.core.capabilities import alternatives_of
from dynpix_jax.core.errors import UserError, suggest
from dynpix_jax.core.system import System
from dynpix_jax.core.typing import Variables
from dynpix_jax.training.checkpoints import Checkpoints, load_variables
from dynpix_jax.training.settings import stage_model, stage_system, training_config
from dynpix_jax.training.snapshots import check_same_run, config_to_json


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a stage of a run ended with, or the newest checkpoint.

    system, variables: ready for `system.apply`. stage: its name. step: global step.
    rho: the stage's target density; 1 without gates.
    alternative: which of the system's alternatives it is run as; "" for itself.
    """

    system: System
    variables: Variables
    stage: str
    step: int
    rho: float
    alternative: str = ""


def with_alternatives(runs: Sequence[Trained], names: Sequence[str]) -> list[Trained]:
    """Stages of one run, each followed by those of its alternatives that are named.

    Raises:
      UserError: the last stage has no alternative of such a name; those before it need not.
    """
    known = alternatives_of(runs[-1].system)
    for name in names:
        if name not in known:
            raise UserError(
                f"config.evaluation.also: stage '{runs[-1].stage}' has no alternative {name!r}; "
                f"{suggest(name, known)}"
            )
    found = []
    for run in runs:
        found.append(run)
        others = alternatives_of(run.system)
        found += [
            dataclasses.replace(run, system=others[name], alternative=name)
            for name in names
            if name in others
        ]
    return found


def open_run(config: ml_collections.ConfigDict, workdir: str | Path, stage: str | None = None) -> Trained:
    """The network of `config` as it was trained in `workdir`.

    Args:
      config: whole config; must be the one that was trained, but for what does not change the network (see
        `training.snapshots.HARMLESS`).
      workdir: of the run.
      stage: name of a stage: what it ended with. None: the newest checkpoint.

    Raises:
      UserError: no such workdir, checkpoint or stage; the run of another config.
    """
    if not Path(workdir).is_dir():
        raise UserError(f"workdir not found: {workdir}")
    variables, step, index, saved = load_variables(workdir, stage)
    advice = "give the --config and --set of its training"
    check_same_run(config_to_json(saved), config_to_json(config), workdir, advice)
    settings = training_config(config).stages[index]
    system = stage_system(config, settings, papers.build)
    rho = target_density(stage_model(config, settings))
    return Trained(system, variables, settings.name, step, rho)


def finished_stages(workdir: str | Path) -> tuple[str, ...]:
    """Names of the stages whose end `open_run` can open, in the order of training."""
    return tuple(Checkpoints(Path(workdir) / "checkpoints").stage_ends())


def target_density(model: Mapping[str, Any] | ml_collections.ConfigDict) -> float:
    """The target density rho of a stage's model section: 1 without gates."""
    gate = dict(dict(model).get("gate") or {})
    return 1.0 if gate.get("kind", "none") == "none" else float(gate.get("rho", 1.0))
