"""A whole config as the programs take it: the file, its argument and --set, every section strict."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections

from dynpix_jax.core.configs import load_config
from dynpix_jax.core.overrides import apply_overrides
from dynpix_jax.core.sections import from_config
from dynpix_jax.evaluation.settings import EvaluationConfig
from dynpix_jax.training.inputs import DataSection, data_section
from dynpix_jax.training.settings import TrainingConfig


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """All sections of a config.

    Attributes:
        name: of the run, for people.
        seed: of everything random.
        model: section that `papers.build` reads, with the overrides of each stage.
        data: what is trained and evaluated on.
        training: stages, optimizer, checkpoints.
        evaluation: what `eval.py` does.
    """

    name: str
    seed: int
    model: dict[str, Any]
    data: DataSection
    training: TrainingConfig
    evaluation: EvaluationConfig


def read_config(
    spec: str | Path, overrides: Sequence[str] = ()
) -> tuple[ml_collections.ConfigDict, RunConfig]:
    """The config "path/to/config.py:arg" after `--set` overrides, as it stands and as checked settings.

    The networks of its stages are not built here: see `training.checks.check_stages`.

    Raises:
        UserError: whatever is wrong, with the key's full path.
    """
    config = apply_overrides(load_config(spec), overrides)
    settings = from_config(RunConfig, config, "config")
    data_section(config)  # the options of its sources too
    return config, settings
