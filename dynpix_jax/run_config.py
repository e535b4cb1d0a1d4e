"""From a config file, or what a checkpoint holds of it, to the settings of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dynpix_jax.core.config import RunConfig, parse_run, plain
from dynpix_jax.core.configs import load_config
from dynpix_jax.core.overrides import apply_overrides
from dynpix_jax.data.sources import read_source
from dynpix_jax.papers import SYSTEMS


def read_run(config: str | Path | Mapping[str, Any] | ConfigDict, overrides: Sequence[str] = ()) -> RunConfig:
    """The settings of "path/to/config.py:arg", or of such a config as sections, after `--set`.

    The networks of its stages are not built here: see `training.checks.check_stages`.

    Raises:
        UserError: Whatever is wrong, with the key's full path; a value that nothing reads.
    """
    sections = plain(load_config(config) if isinstance(config, str | Path) else config)
    return parse_run(apply_overrides(sections, overrides), SYSTEMS, read_source)
