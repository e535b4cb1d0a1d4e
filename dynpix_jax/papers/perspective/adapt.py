"""Weights that a perspective stage takes over from the stage before it, or from an ImageNet ResNet."""

from __future__ import annotations

import re

from dynpix_jax.core.adapt import copy_matching
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.trees import named_leaves
from dynpix_jax.core.typing import Variables
from dynpix_jax.papers.perspective.config import PerspectiveConfig

_BLOCK = re.compile(r"res[2-5]_\d+")
_BRANCH = re.compile(r"/pool/(dilation|scale)_\d+/")
_SCALE = re.compile(r"^(backbone|res6)_\d+/")


def adapt(config: PerspectiveConfig, given: Variables, fresh: Variables) -> Variables:
    """Weights of an earlier stage (the order of the supplement's section 1) or of a bare ImageNet ResNet.

    Branches start from the kernel that was tied over them, or from the convolution in their place; backbones
    of further scales start from that of the image itself. What such weights cannot hold stays fresh.

    Raises:
        UserError: a backbone of another architecture (missing or additional blocks, other shapes), or none.
    """
    known = {path.removeprefix("backbone/") for path, _ in named_leaves(given.get("params", {}))}
    names = {spec.name for spec in config.backbone.block_specs}
    foreign = sorted({block for path in known if _BLOCK.fullmatch(block := path.split("/")[0])} - names)
    if foreign:
        raise UserError(
            f"weights: they hold {foreign[0]}, this {config.backbone.name} has no such block; "
            "were they made for another architecture?"
        )

    def source(path: str) -> list[str]:
        first = _SCALE.sub(r"\1/", path)
        tied = _BRANCH.sub("/pool/shared/", path)
        return list(dict.fromkeys([path, tied, first, first.removeprefix("backbone/")]))

    adapted = copy_matching(given, fresh, source)
    # The moments of the norms too: without them a frozen norm would go by mean 0 and variance 1.
    for collection in ("params", "batch_stats"):
        have = {path.removeprefix("backbone/") for path, _ in named_leaves(given.get(collection, {}))}
        for path, _ in named_leaves(fresh.get(collection, {}).get("backbone", {})):
            if path not in have:
                raise UserError(
                    f"weights: no {path} among their {collection} for this {config.backbone.name}; "
                    "were they made for another architecture?"
                )
    return adapted
