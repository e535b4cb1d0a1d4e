"""Variables that training starts from."""

from __future__ import annotations

from pathlib import Path

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.typing import Variables
from dynpix_jax.training.checkpoints import load_variables
from dynpix_jax.weights import read_weights


def initial_variables(init_from: str) -> Variables | None:
    """Variables of `config.training.init_from`: None for "", a workdir's newest, or those of a weights file.

    They go through `System.adapt` of the first stage, which copies what matches by path.

    Raises:
        UserError: No such file or directory, no checkpoint in it, or not a readable weights file.
    """
    if not init_from:
        return None
    path = Path(init_from).expanduser()
    if path.is_dir():
        return load_variables(path)[0]
    if not path.is_file():
        raise UserError(f"config.training.init_from: {init_from}: no such weights file or workdir")
    return read_weights(path)
