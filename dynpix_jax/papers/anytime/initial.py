"""Fresh variables of an anytime network."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from dynpix_jax.core.trees import map_named, named_leaves
from dynpix_jax.core.typing import Array, PRNGKey, Variables
from dynpix_jax.nn.masked_conv import LAMBDA

_RELEASED_STD = 0.001
_CONSTANTS = {"scale": 1.0, "var": 1.0, "lam": LAMBDA, "bias": 0.0, "mean": 0.0}


def initial_variables(shapes: Variables, key: PRNGKey, *, heatmaps: bool) -> Variables:
    """Fresh variables: kernels normal by fan-out (He et al.), all of them from one draw.

    The released code draws them with a standard deviation of .001, before ImageNet weights replace most. Here
    only the layers that predict ``heatmaps`` use it: heatmaps are almost 0 everywhere, and short training
    would be spent on reaching that.
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
