"""Changes to a config from the command line: `training.batch_size=4`."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any

import ml_collections

from dynpix_jax.core.errors import UserError, suggest


def apply_overrides(config: ml_collections.ConfigDict, overrides: Sequence[str]) -> ml_collections.ConfigDict:
    """A copy of `config` with values replaced.

    Args:
        config: left as it is.
        overrides: "a.b=value" each; "a.list[0].b=value" reaches into a tuple. The value is a Python literal
            (4, 1e-3, True, None, (1, 2)) or, where the config holds a string, the text as it stands.

    Raises:
        UserError: no "=", an unknown key (with the nearest), or a value of another type than the one it
            replaces.
    """
    tree = _to_plain(config)
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path:
            raise UserError(f"--set {override}: expected key=value, for example training.batch_size=4")
        _replace(tree, path.strip(), text.strip())
    return _to_config(tree)


def _replace(tree: dict[str, Any], path: str, text: str) -> None:
    keys: list[str | int] = []
    for part in path.split("."):
        match = re.fullmatch(r"([^\[\]]+)((?:\[\d+\])*)", part)
        if match is None:
            raise UserError(f"--set {path}: '{part}' is not a key; expected a.b or a.list[0].b")
        keys += [match[1], *(int(index) for index in re.findall(r"\d+", match[2]))]
    node: Any = tree
    where = "config"
    for depth, key in enumerate(keys):
        if isinstance(key, int):
            if not isinstance(node, list) or key >= len(node):
                raise UserError(f"--set {path}: {where} has no element [{key}]")
        elif not isinstance(node, dict) or key not in node:
            hint = suggest(key, node if isinstance(node, dict) else ())
            raise UserError(f"--set {path}: {where}.{key} is not a key; {hint}")
        where += f"[{key}]" if isinstance(key, int) else f".{key}"
        if depth == len(keys) - 1:
            node[key] = _read(where, text, node[key])
        else:
            node = node[key]


def _read(where: str, text: str, old: Any) -> Any:
    if isinstance(old, str):
        return text
    if isinstance(old, dict):
        raise UserError(f"--set: {where} is a section; set its keys ({', '.join(map(str, old))})")
    literal = {"true": "True", "false": "False", "none": "None"}.get(text.lower(), text)
    try:
        value = ast.literal_eval(literal)
    except (ValueError, SyntaxError):
        value = text
    kinds: dict[type, tuple[type, ...]] = {
        bool: (bool,), int: (int,), float: (int, float), list: (list, tuple),
    }  # fmt: skip
    accepted = kinds.get(type(old))
    wrong_bool = isinstance(value, bool) and not isinstance(old, bool)
    if accepted is not None and (not isinstance(value, accepted) or wrong_bool):
        kind = "tuple" if isinstance(old, list) else type(old).__name__
        raise UserError(f"--set: {where}: expected {kind}, got '{text}'")
    if isinstance(old, float):
        return float(value)
    return list(value) if isinstance(value, tuple) else value


def _to_plain(value: Any) -> Any:
    """ConfigDicts and tuples as dicts and lists, which can be changed in place."""
    if isinstance(value, dict | ml_collections.ConfigDict):
        return {key: _to_plain(item) for key, item in value.items()}
    return [_to_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _to_config(value: Any) -> Any:
    if isinstance(value, dict):
        return ml_collections.ConfigDict({key: _to_config(item) for key, item in value.items()})
    return tuple(_to_config(item) for item in value) if isinstance(value, list) else value
