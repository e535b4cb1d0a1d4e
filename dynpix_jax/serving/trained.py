"""A trained network from its settings and a workdir or a weights file."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dynpix_jax.core.capabilities import alternatives_of
from dynpix_jax.core.config import HARMLESS, HARMLESS_IN_EVALUATION, RunConfig
from dynpix_jax.core.errors import UserError, suggest
from dynpix_jax.core.settings import HasTarget, StageConfig
from dynpix_jax.core.system import System
from dynpix_jax.core.typing import Variables
from dynpix_jax.flops import variable_shapes
from dynpix_jax.run_config import read_run
from dynpix_jax.training.checks import stage_system
from dynpix_jax.training.snapshots import check_same_run
from dynpix_jax.weights import check_complete, check_header, read_weights

if TYPE_CHECKING:
    from dynpix_jax.training.checkpoints import Checkpoints


@dataclasses.dataclass(frozen=True)
class Trained:
    """A network at the end of a stage, or at the newest checkpoint.

    Attributes:
        system: The network.
        variables: Its state.
        stage: The stage's name.
        step: Global step.
        rho: The stage's target density; 1 without gates.
        alternative: The alternative of the system that is run; "" for the system itself.
        weights: The weights file; None of a trained run.
    """

    system: System
    variables: Variables
    stage: str
    step: int
    rho: float
    alternative: str = ""
    weights: Path | None = None

    @property
    def title(self) -> str:
        """The name of the stage, and of the alternative."""
        return f"{self.stage}, {self.alternative}" if self.alternative else self.stage

    @property
    def origin(self) -> str:
        """Where the variables are from, in words."""
        return f"{self.stage} ({self.weights or f'step {self.step}'})"


def with_alternatives(runs: Sequence[Trained], names: Sequence[str]) -> list[Trained]:
    """Stages of one run, each followed by its alternatives among ``names``.

    Raises:
        UserError: The last stage has no alternative of such a name; those before it need not.
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


def open_runs(
    run: RunConfig, workdir: Path | None, stage: str | None = None, weights: Path | None = None
) -> list[Trained]:
    """What `eval.py` evaluates: the network of `open_run`, or one for each stage, and alternatives."""
    newest = open_run(run, workdir, stage, weights)
    runs = [newest]
    if run.evaluation.every_stage and workdir is not None and stage is None:
        ended = [open_run(run, workdir, name) for name in finished_stages(workdir)]
        # A stage that has not ended yet is evaluated at the newest checkpoint.
        runs = ended if ended and ended[-1].step == newest.step else [*ended, newest]
    return with_alternatives(runs, run.evaluation.also)


def open_run(
    run: RunConfig, workdir: str | Path | None, stage: str | None = None, weights: Path | None = None
) -> Trained:
    """The network of a run as it was trained in `workdir`, or with the values of a weights file.

    Args:
        run: Settings of the trained run; only those that do not change the network may differ
            (`core.config.HARMLESS`), or only how it computes.
        workdir: The run's workdir; None with ``weights``.
        stage: Stage whose end is opened; None: the newest checkpoint, with ``weights`` the last stage.
        weights: One of our weights files.

    Raises:
        UserError: No such workdir, checkpoint or stage; the run of another config; weights that are not those
            of the network.
    """
    if weights is not None:
        return open_weights(run, weights, stage)
    assert workdir is not None  # the command line asks for one of both
    from dynpix_jax.training.checkpoints import load_variables  # as in _checkpoints

    check_folder(workdir)
    variables, step, index, saved = load_variables(workdir, stage)
    advice = "give the --config and --set of its training, or no --config"
    check_same_run(saved, run, workdir, advice, (*HARMLESS, *HARMLESS_IN_EVALUATION))
    settings = run.stages[index]
    return Trained(stage_system(settings), variables, settings.name, step, target_density(settings))


def open_weights(run: RunConfig, path: Path, stage: str | None) -> Trained:
    """The network of a stage (None: the last) with the values of a weights file; see `open_run`."""
    stages = {settings.name: settings for settings in run.stages}
    if stage is not None and stage not in stages:
        raise UserError(f"--stage {stage}: the config has no such stage; {suggest(stage, stages)}")
    settings = run.stages[-1] if stage is None else stages[stage]
    system = stage_system(settings)
    variables = read_weights(path)
    check_header(path, settings.model)
    check_complete(path, variables, variable_shapes(system))
    return Trained(system, variables, settings.name, 0, target_density(settings), weights=path)


def finished_stages(workdir: str | Path) -> tuple[str, ...]:
    """Names of the stages whose end `open_run` can open, in the order of training."""
    return tuple(_checkpoints(workdir).stage_ends())


def target_density(stage: StageConfig) -> float:
    """The target density rho of a stage's network: 1 without gates that have one."""
    return stage.model.target_density if isinstance(stage.model, HasTarget) else 1.0


def saved_run(workdir: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The settings of the run in a workdir, which its checkpoints hold; a UserError without one."""
    check_folder(workdir)
    saved = _checkpoints(workdir).config()
    if saved is None:
        raise UserError(f"{workdir}: holds no checkpoint, which would hold the config; train it first")
    return read_run(saved, overrides)


def _checkpoints(workdir: str | Path) -> Checkpoints:
    # Orbax is a third of a second to import; a network from a file needs none of it.
    from dynpix_jax.training.checkpoints import Checkpoints

    return Checkpoints(Path(workdir) / "checkpoints")


def check_folder(workdir: str | Path) -> None:
    """Raises UserError for a workdir that there is not."""
    if not Path(workdir).is_dir():
        raise UserError(f"workdir not found: {workdir}")
