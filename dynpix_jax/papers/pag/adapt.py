"""Weights that a PAG stage takes over from the stage before it, or from an ImageNet ResNet."""

from __future__ import annotations

import re

from dynpix_jax.core.adapt import copy_matching
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.trees import named_leaves
from dynpix_jax.core.typing import Variables
from dynpix_jax.papers.pag.config import PagConfig

_BLOCK = re.compile(r"res\d+_\d+")


def adapt(config: PagConfig, given: Variables, fresh: Variables) -> Variables:
    """Weights of an earlier stage or of a bare ImageNet ResNet.

    MultiPool branches start from the 3x3 they replace. Only what such weights cannot hold may stay fresh:
    gates, MultiPool modules, Res6 and the head.

    Raises:
        UserError: a backbone of another architecture (missing or additional blocks, other shapes), or
        none.
    """
    known = {path.removeprefix("backbone/") for path, _ in named_leaves(given.get("params", {}))}
    names = {spec.name for spec in config.backbone.block_specs}
    foreign = sorted({block for path in known if _BLOCK.fullmatch(block := path.split("/")[0])} - names)
    if foreign:
        raise UserError(
            f"weights: they hold {foreign[0]}, this {config.backbone.name} has no such block; "
            "were they made for another architecture?"
        )
    blocks = {"res6" if name == "res6" else f"backbone/{name}" for name in config.multipool.blocks}

    def source(path: str) -> list[str]:
        candidates = [path, path.removeprefix("backbone/")]
        head, found, tail = path.partition("/multipool/dilation_")
        if found and head in blocks:
            layer = tail.partition("/")[2].replace("conv/", "conv2/").replace("bn/", "bn2/")
            candidates += [f"{head}/{layer}", f"{head.removeprefix('backbone/')}/{layer}"]
        return candidates

    adapted = copy_matching(given, fresh, source)
    # The moments of the norms too: without them a frozen norm would go by mean 0 and variance 1.
    moments = {path.removeprefix("backbone/") for path, _ in named_leaves(given.get("batch_stats", {}))}
    for collection, have in (("params", known), ("batch_stats", moments)):
        for path, _ in named_leaves(fresh.get(collection, {}).get("backbone", {})):
            if path not in have and "/gate/" not in path and "/multipool/" not in path:
                raise UserError(
                    f"weights: no {path} among their {collection} for this {config.backbone.name}; "
                    "were they made for another architecture?"
                )
    return adapted
