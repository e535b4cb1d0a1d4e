"""Carrying weights from one model to another by the names of their leaves."""

from __future__ import annotations

from collections.abc import Callable

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.trees import map_named, named_leaves
from dynpix_jax.core.typing import Variables


def copy_matching(given: Variables, fresh: Variables, source: Callable[[str], list[str]]) -> Variables:
    """``fresh`` with every leaf replaced that ``given`` has under a name in ``source(path)``, best first.

    Paths are within a collection ("backbone/res2_1/conv1/kernel").

    Raises:
        UserError: a match of another shape, or no match at all.
    """
    matched = 0
    result = {}
    for collection, tree in fresh.items():
        known = dict(named_leaves(given.get(collection, {})))

        def pick(path: str, leaf: object, known: dict = known, collection: str = collection) -> object:
            nonlocal matched
            for name in source(path):
                if name in known:
                    if known[name].shape != leaf.shape:  # type: ignore[attr-defined]
                        raise UserError(
                            f"weights: {collection}/{name} has shape {known[name].shape}; "
                            f"{collection}/{path} expects {leaf.shape}"  # type: ignore[attr-defined]
                        )
                    matched += 1
                    return known[name]
            return leaf

        result[collection] = map_named(pick, tree)
    if not matched:
        raise UserError("weights: no name matches the model's; were they made for another architecture?")
    return result
