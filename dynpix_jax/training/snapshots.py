"""The config in a workdir: written for the reader, and compared with that of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynpix_jax.core.config import HARMLESS, RunConfig, differences
from dynpix_jax.core.errors import UserError, cause_of
from dynpix_jax.run_config import read_run


def write_config(file: Path, config: Mapping[str, Any]) -> None:
    """Write a config as JSON for the reader; the one that a checkpoint holds is what counts.

    Raises:
        UserError: It cannot be written.
    """
    temporary = file.with_suffix(".tmp")
    try:
        temporary.write_text(json.dumps(config, indent=2) + "\n")
        temporary.replace(file)
    except OSError as error:
        raise UserError(f"cannot write {file}: {cause_of(error)}") from None


def check_same_run(
    saved: Mapping[str, Any],
    run: RunConfig,
    workdir: str | Path,
    advice: str,
    harmless: Sequence[str] = HARMLESS,
) -> None:
    """Refuses the checkpoint of another run.

    Raises:
        UserError: Their settings differ in more than ``harmless``; names the first three.
    """
    try:
        lines = differences(read_run(saved), run, harmless)
    except UserError as error:
        raise UserError(f"{workdir} holds the run of another version: {error}") from error
    if lines:
        more = f" (and {len(lines) - 3} more)" if len(lines) > 3 else ""
        raise UserError(f"{workdir} holds the run of another config: {'; '.join(lines[:3])}{more}; {advice}")
