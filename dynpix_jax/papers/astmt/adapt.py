"""Weights that an ASTMT network takes over: of an earlier run, or of a backbone trained on ImageNet."""

from __future__ import annotations

from dynpix_jax.core.adapt import copy_matching
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.trees import named_leaves
from dynpix_jax.core.typing import Variables
from dynpix_jax.papers.astmt.config import AstmtConfig


def adapt(config: AstmtConfig, given: Variables, fresh: Variables) -> Variables:
    """``fresh`` with what ``given`` knows; every task's own norm or SE starts from the shared one.

    Adapters, SE that the weights lack (torchvision's MobileNetV2 has none), decoder and discriminator may
    stay fresh; convolutions and norms of the backbone may not.

    Raises:
        UserError: the weights are those of another architecture.
    """

    def source(path: str) -> list[str]:
        shared = "/".join(part for part in path.split("/") if part not in config.tasks)
        names = [path, shared]
        return list(dict.fromkeys([*names, *(name.removeprefix("backbone/") for name in names)]))

    adapted = copy_matching(given, fresh, source)
    for collection in ("params", "batch_stats"):
        have = {path for path, _ in named_leaves(given.get(collection, {}))}
        for path, _ in named_leaves(fresh.get(collection, {}).get("backbone", {})):
            known = have.intersection(source(f"backbone/{path}"))
            if not known and "/se/" not in path and "/adapter/" not in path:
                raise UserError(
                    f"weights: no {path} among their {collection}; were they made for another architecture?"
                )
    return adapted
