"""Carrying weights from one model to another by the names of their leaves."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.trees import map_named, named_leaves
from dynpix_jax.core.typing import Variables

_BACKBONE = "backbone/"
_COLLECTIONS = ("params", "batch_stats")  # moments too: a frozen norm would else use mean 0 and variance 1


def _no_other_names(path: str) -> Sequence[str]:
    return ()


@dataclass(frozen=True)
class TakeOver:
    """What a system takes over from an earlier stage, or from the bare weights of its backbone.

    Attributes:
        architecture: Name of the backbone, for messages.
        blocks: Names of the backbone's blocks ("res2_1"). Weights with a block of another number ("res2_9")
            are refused. Empty: not checked.
        renames: Path of a leaf -> other paths under which weights may hold it, best first.
        stays_fresh: Regex of paths within the backbone that weights need not hold.
    """

    architecture: str = "network"
    blocks: Collection[str] = ()
    renames: Callable[[str], Sequence[str]] = _no_other_names
    stays_fresh: str = "(?!)"

    def sources(self, path: str) -> list[str]:
        """Paths under which weights may hold a leaf, best first; a bare backbone's have no prefix."""
        names = [path, *self.renames(path)]
        return list(dict.fromkeys([*names, *(name.removeprefix(_BACKBONE) for name in names)]))


def take_over(given: Variables, fresh: Variables, rules: TakeOver) -> Variables:
    """``fresh`` with every leaf that ``given`` holds; layers above the backbone may stay fresh.

    Raises:
        UserError: A backbone of another architecture (missing or additional blocks, other shapes), or none.
    """
    foreign = _foreign_blocks(given, rules.blocks)
    if foreign:
        raise UserError(
            f"weights: they hold {foreign[0]}, this {rules.architecture} has no such block; "
            "were they made for another architecture?"
        )
    adapted = copy_matching(given, fresh, rules.sources)
    for collection in _COLLECTIONS:
        have = {path for path, _ in named_leaves(given.get(collection, {}))}
        for path, _ in named_leaves(fresh.get(collection, {}).get("backbone", {})):
            known = have.intersection(rules.sources(_BACKBONE + path))
            if not known and not re.fullmatch(rules.stays_fresh, path):
                raise UserError(
                    f"weights: no {path} among their {collection} for this {rules.architecture}; "
                    "were they made for another architecture?"
                )
    return adapted


def _foreign_blocks(given: Variables, blocks: Collection[str]) -> list[str]:
    """Blocks of ``given`` that have a name like those of ``blocks``, but another number."""
    if not blocks:
        return []
    alike = re.compile("|".join(sorted({re.sub(r"\d+", r"\\d+", name) for name in blocks}, reverse=True)))
    paths = (path.removeprefix(_BACKBONE) for path, _ in named_leaves(given.get("params", {})))
    found = {match[0] for path in paths if (match := alike.match(path)) and path.startswith("/", match.end())}
    return sorted(found - set(blocks))


def copy_matching(given: Variables, fresh: Variables, source: Callable[[str], Sequence[str]]) -> Variables:
    """Replaces each leaf of ``fresh`` by the first of ``source(path)`` that ``given`` holds.

    Paths are within a collection ("backbone/res2_1/conv1/kernel").

    Raises:
        UserError: A match of another shape, or no match at all.
    """
    matched = 0
    result = {}
    for collection, tree in fresh.items():
        known = dict(named_leaves(given.get(collection, {})))

        def pick(path: str, leaf: Any, known: dict[str, Any] = known, collection: str = collection) -> Any:
            nonlocal matched
            name = next((name for name in source(path) if name in known), None)
            if name is None:
                return leaf
            if known[name].shape != leaf.shape:
                raise UserError(
                    f"weights: {collection}/{name} has shape {known[name].shape}; "
                    f"{collection}/{path} expects {leaf.shape}; to begin with fresh ones there, import them "
                    f"again with dynpix import-weights --skip {name.rpartition('/')[0]}"
                )
            matched += 1
            return known[name]

        result[collection] = map_named(pick, tree)
    if not matched:
        raise UserError("weights: no name matches the model's; were they made for another architecture?")
    return result
