"""Parameters of modules whose shapes are known beforehand."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from dynpix_jax.core.typing import Array


def parameter(module: nn.Module, name: str, init: Callable[..., Array], shape: tuple[int, ...]) -> Array:
    """A float32 parameter of a module, made by ``init(key, shape, dtype)`` if it has none of that name.

    As `Module.param`, which traces ``init`` whenever a network is traced, to see the shape that is given
    here: a third of the time that tracing a ResNet takes.

    Raises:
        flax.errors.ScopeParamShapeError: The module's own has another shape.
    """
    if module.has_variable("params", name):
        own: Array = module.get_variable("params", name)
        if own.shape == shape:
            return own
    made: Array = module.param(name, init, shape, jnp.float32)
    return made
