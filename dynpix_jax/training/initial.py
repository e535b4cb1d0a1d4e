"""Variables that training starts from."""

from __future__ import annotations

from pathlib import Path

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.settings import ModelConfig
from dynpix_jax.core.typing import Variables
from dynpix_jax.training.checkpoints import load_variables
from dynpix_jax.weights import check_header, read_weights


def initial_variables(init_from: str, model: ModelConfig | None = None) -> Variables | None:
    """Variables of `config.training.init_from`: those of a weights file or of a run; None for "".

    A run is named by its workdir: "DIR" is its newest checkpoint, "DIR@STAGE" what a stage ended with,
    "DIR@STAGE:STEP" the checkpoint after so many steps of the stage. The variables go through `System.adapt`
    of the first stage, which copies what matches by path.

    Raises:
        UserError: No such file or directory, no such checkpoint in it, no readable weights file, or weights
            of another convention than ``model.backbone``.
    """
    if not init_from:
        return None
    name, at, stage = init_from.rpartition("@")
    if not at or Path(init_from).expanduser().exists():  # an @ of its own
        name, at, stage = init_from, "", ""
    path = Path(name).expanduser()
    if path.is_dir():
        return load_variables(path, stage if at else None)[0]
    if not path.is_file():
        raise UserError(f"config.training.init_from: {name}: no such weights file or workdir")
    if at:
        raise UserError(
            f"config.training.init_from: {init_from}: {name} is a file, of which no stage is known"
        )
    variables = read_weights(path)
    check_header(path, model)
    return variables
