"""Weight normalisation (Salimans and Kingma, NeurIPS 2016), computed once, outside a solver's loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from dynpix_jax.core.typing import Array, Params
from dynpix_jax.nn.conv import Conv


class WeightNormConv(Conv):
    """Convolution with a length ``gain`` (features,) per filter; the kernel gives the direction.

    The layer uses its kernel unscaled: give it the parameters that `weight_normed` returns. Initially the two
    agree.
    """

    def setup(self) -> None:
        super().setup()
        self.gain = self.param("gain", lambda _: _lengths(self.kernel))


def weight_normed(params: Params) -> dict[str, Any]:
    """The parameters with every kernel beside a ``gain`` scaled to filters of these lengths."""
    changed: dict[str, Any] = {
        name: weight_normed(value) if isinstance(value, Mapping) else value for name, value in params.items()
    }
    if "gain" in changed:
        kernel = changed["kernel"]
        changed["kernel"] = kernel * (changed["gain"] / _lengths(kernel))
    return changed


def _lengths(kernel: Array) -> Array:
    return jnp.sqrt(jnp.sum(kernel**2, (0, 1, 2)))
