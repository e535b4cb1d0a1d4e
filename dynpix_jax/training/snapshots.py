"""Configs as JSON, and what differs between two of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from dynpix_jax.core.errors import UserError

HARMLESS = (
    r"training\.(log_every|checkpoint_every|eval_every|keep|workers|init_from)",
    r"training\.mesh(\..*)?",
    r"evaluation(\..*)?",
    r"data\.eval(\..*)?",
    r"(.*\.)?root",
)
"""Keys that may change between a run and its continuation: they do not change what is learned.

Nor does where the first weights lay, once there is a checkpoint.
"""


def config_to_json(config: Any) -> Any:
    """A config (or part of one) as values that JSON keeps: dicts, lists, strings, numbers, None."""
    if isinstance(config, Mapping | ml_collections.ConfigDict):
        return {str(key): config_to_json(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [config_to_json(value) for value in config]
    if isinstance(config, np.generic):
        return config.item()
    return str(config) if isinstance(config, Path) else config


def config_from_json(values: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """A ConfigDict of what `config_to_json` gave. Tuples have become lists, which `from_config` accepts."""
    return ml_collections.ConfigDict({key: _sections(value) for key, value in values.items()})


def _sections(value: Any) -> Any:
    if isinstance(value, dict):
        return ml_collections.ConfigDict({key: _sections(item) for key, item in value.items()})
    return tuple(_sections(item) for item in value) if isinstance(value, list) else value


def write_config(file: Path, snapshot: Any) -> None:
    """Write a JSON config for the reader (and `eval.py`); the one that a checkpoint holds is what counts."""
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(snapshot, indent=2) + "\n")
    temporary.replace(file)


def differences(old: Any, new: Any) -> list[str]:
    """Key paths, with both values, in which two JSON configs differ; the harmless ones are left out."""
    before, after = _flatten(old), _flatten(new)
    lines = []
    for path in sorted(before.keys() | after.keys()):
        if any(re.fullmatch(pattern, path) for pattern in HARMLESS):
            continue
        there, here = before.get(path, _ABSENT), after.get(path, _ABSENT)
        if there != here:
            lines.append(f"config.{path} is {there!r} there and {here!r} here")
    return lines


def check_same_run(saved: Any, config: Any, workdir: str | Path, advice: str) -> None:
    """Refuses the checkpoint of another config.

    Args:
        saved: JSON config of the checkpoint in `workdir`.
        config: JSON config that is asked for.
        workdir: for the message.
        advice: what to do about it, the message's end.

    Raises:
        UserError: they differ in more than `HARMLESS` keys; names the first three.
    """
    lines = differences(saved, config)
    if lines:
        more = f" (and {len(lines) - 3} more)" if len(lines) > 3 else ""
        raise UserError(f"{workdir} holds the run of another config: {'; '.join(lines[:3])}{more}; {advice}")


class _Absent:
    def __repr__(self) -> str:
        return "absent"


_ABSENT = _Absent()


def _flatten(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        items = ((f"{path}.{key}" if path else str(key), item) for key, item in value.items())
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        items = ((f"{path}[{i}]", item) for i, item in enumerate(value))
    else:
        return {path: value}
    return {key: leaf for name, item in items for key, leaf in _flatten(item, name).items()}
