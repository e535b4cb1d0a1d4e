"""Weights that an anytime stage takes over from the stage before it, or from a bare HRNet."""

from __future__ import annotations

import math
import re
from typing import Any

import jax
import jax.numpy as jnp

from dynpix_jax.core.adapt import copy_matching
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.trees import map_named, named_leaves
from dynpix_jax.core.typing import Array, PRNGKey, Variables
from dynpix_jax.nn.masked_conv import LAMBDA
from dynpix_jax.papers.anytime.config import AnytimeConfig

_BLOCK = re.compile(r"(layer1|stage[234])_\d+(/branch\d_\d+)?")

_RELEASED_STD = 0.001
_CONSTANTS = {"scale": 1.0, "var": 1.0, "lam": LAMBDA, "bias": 0.0, "mean": 0.0}


def init(shapes: Variables, key: PRNGKey, *, heatmaps: bool) -> Variables:
    """Fresh variables: kernels normal by fan-out (He et al.), all of them from one draw.

    The released code draws them with a standard deviation of .001, before ImageNet weights replace most.
    Here that is for what predicts ``heatmaps``: they are nearly 0 everywhere, and short training would be
    spent on coming down to that.
    """
    kernels = [leaf for path, leaf in named_leaves(shapes["params"]) if path.endswith("/kernel")]
    normal = jax.random.normal(key, (sum(leaf.size for leaf in kernels),))
    taken = 0

    def value(path: str, leaf: Any) -> Array:
        nonlocal taken
        kind = path.rpartition("/")[2]
        if kind in _CONSTANTS:
            return jnp.full(leaf.shape, _CONSTANTS[kind], leaf.dtype)
        height, width, _, features = leaf.shape
        part = normal[taken : taken + leaf.size].reshape(leaf.shape)
        taken += leaf.size
        if heatmaps and "/classify/" in path:
            return part * _RELEASED_STD
        return part * math.sqrt(2 / (height * width * features))

    return {collection: map_named(value, tree) for collection, tree in shapes.items()}


def adapt(config: AnytimeConfig, given: Variables, fresh: Variables) -> Variables:
    """Weights of an earlier stage, or of an HRNet ("backbone/..." or bare names), with or without a head.

    Exits that they do not hold stay fresh, and so does what interpolation learns (``lam``).

    Raises:
        UserError: a backbone of another architecture (missing or additional blocks, other shapes), or none.
    """

    def names(variables: Variables, collection: str) -> set[str]:
        return {path.removeprefix("backbone/") for path, _ in named_leaves(variables.get(collection, {}))}

    own = {path for path, _ in named_leaves(fresh["params"].get("backbone", {}))}
    blocks = {match[0] for path in own if (match := _BLOCK.match(path))}
    known = names(given, "params")
    foreign = sorted({match[0] for path in known if (match := _BLOCK.match(path))} - blocks)
    if foreign:
        raise UserError(
            f"weights: they hold {foreign[0]}, HRNet {config.backbone.arch} has no such block; "
            "were they made for another architecture?"
        )
    adapted = copy_matching(given, fresh, lambda path: [path, path.removeprefix("backbone/")])
    # The moments of the norms too: without them a frozen norm would go by mean 0 and variance 1.
    for collection in ("params", "batch_stats"):
        have = names(given, collection)
        for path, _ in named_leaves(fresh.get(collection, {}).get("backbone", {})):
            if path not in have and not path.endswith("/lam"):
                raise UserError(
                    f"weights: no {path} among their {collection} for HRNet {config.backbone.arch}; "
                    "were they made for another architecture?"
                )
    return adapted
