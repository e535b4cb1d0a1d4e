"""Parameter trees by name: leaves as "a/b/c" paths, and ordered regex rules on them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

from dynpix_jax.core.errors import UserError

Rules = Sequence[tuple[str, Any]]
"""Ordered (regex, value) pairs. A regex must match the whole path; the first that does gives the value."""

_RAISE = object()


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """All leaves with their paths ("a/b/c"), in the order of `jax.tree.leaves`."""
    return [(_name(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]


def map_named(fn: Callable[[str, Any], Any], tree: Any) -> Any:
    """A tree of the same structure with `fn(path, leaf)` at every leaf."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: fn(_name(path), leaf), tree)


def match_first(rules: Rules, path: str, default: Any = _RAISE) -> Any:
    """The value of the first rule whose regex matches the whole `path`.

    Raises:
        UserError: A regex is malformed, or no rule matches and no `default` is given.
    """
    for pattern, value in rules:
        try:
            matched = re.fullmatch(pattern, path)
        except re.error as error:
            raise UserError(f"rule '{pattern}' is not a regular expression: {error}") from error
        if matched:
            return value
    if default is _RAISE:
        raise UserError(f"no rule matches '{path}'; rules: {_patterns(rules)}")
    return default


def _patterns(rules: Rules) -> str:
    return ", ".join(f"'{pattern}'" for pattern, _ in rules) or "none"
