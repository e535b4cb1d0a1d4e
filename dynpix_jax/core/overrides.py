"""Changes to a config from the command line: `training.batch_size=4`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.sections import Given


def apply_overrides(config: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `config` with values replaced or added.

    When the config is parsed, the type of each setting decides how its text is read.

    Args:
        config: Dicts and lists (`core.config.plain`); not modified.
        overrides: "a.b=value" each; "a.list[0].b=value" reaches into a list.

    Raises:
        UserError: No "=", a key within what is no section, or an element that is not there.
    """
    tree = _copy(config)
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path:
            raise UserError(f"--set {override}: expected key=value, for example training.batch_size=4")
        _replace(tree, path.strip(), text.strip())
    found: dict[str, Any] = tree
    return found


def _replace(tree: Any, path: str, text: str) -> None:
    node, where = tree, "config"
    keys = _keys(path)
    for key, inner in zip(keys, [*keys[1:], None], strict=True):
        if isinstance(key, int) and (not isinstance(node, list) or key >= len(node)):
            raise UserError(f"--set {path}: {where} has no element [{key}]")
        if isinstance(key, str) and not isinstance(node, dict):
            raise UserError(f"--set {path}: {where} is {node!r}, which has no key '{key}'")
        where += f"[{key}]" if isinstance(key, int) else f".{key}"
        old = node[key] if isinstance(key, int) else node.get(key)
        if inner is not None:
            node[key] = old if old is not None else [] if isinstance(inner, int) else {}
            node = node[key]
        elif isinstance(old, dict) and text.lower() != "none":
            names = ", ".join(old)
            raise UserError(f"--set: {where} is a section; set its keys ({names}), or None to leave it out")
        else:
            node[key] = Given(text)


def _keys(path: str) -> list[str | int]:
    keys: list[str | int] = []
    for part in path.split("."):
        match = re.fullmatch(r"([^\[\]]+)((?:\[\d+\])*)", part)
        if match is None:
            raise UserError(f"--set {path}: '{part}' is not a key; expected a.b or a.list[0].b")
        keys += [match[1], *(int(index) for index in re.findall(r"\d+", match[2]))]
    return keys


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value
