"""Weights & Biases as one more place where numbers and pictures go."""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dynpix_jax.core.errors import UserError
from dynpix_jax.training.writers import Values, Writer


def check_installed() -> None:
    """Raises ModuleNotFoundError where the extra is missing: before a network is compiled."""
    importlib.import_module("wandb")


class WandbWriter(Writer):
    """A run of a project: a number or a picture "kind/name" for each value, over the steps of the run.

    Steps that a killed run repeats after its last checkpoint are there twice. Without network set
    WANDB_MODE=offline, and `wandb sync` the workdir's wandb/ later.

    Args:
        project: It, or ENTITY/PROJECT.
        workdir: Of the run, whose name it gets; wandb.txt in it keeps what the run is called there.
        config: All settings.

    Raises:
        UserError: No such project, or nobody is logged in.
    """

    def __init__(self, project: str, workdir: Path, config: Mapping[str, Any]) -> None:
        entity, _, name = project.rpartition("/")
        file = workdir / "wandb.txt"
        if not file.exists():
            file.write_text(secrets.token_hex(4))
        self._wandb = importlib.import_module("wandb")
        try:
            self._run = self._wandb.init(
                entity=entity or None,
                project=name,
                name=workdir.absolute().name,
                dir=workdir,
                id=file.read_text().strip(),
                resume="allow",
                config=dict(config),
            )
        except self._wandb.Error as error:
            raise UserError(f"config.training.wandb: {project}: {' '.join(str(error).split())}") from error
        # Its own steps only rise; those of a run that continues may fall.
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, kind: str, values: Values) -> None:
        """Add numbers, names and pictures."""
        shown = {
            f"{kind}/{name}": self._wandb.Image(value) if isinstance(value, np.ndarray) else value
            for name, value in values.items()
        }
        try:
            self._run.log({"step": step, **shown})
        except self._wandb.Error as error:
            raise OSError(f"wandb: {error}") from error  # said once, and the run goes on

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()
