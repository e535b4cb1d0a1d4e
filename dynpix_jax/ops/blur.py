"""Gaussian smoothing of maps."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from dynpix_jax.core.typing import Array


def gaussian_blur(x: Array, sigma: float) -> Array:
    """Smooths along rows and columns; beyond the border a map goes on as it ends there.

    Args:
        x: (B, H, W, C), floating.
        sigma: Standard deviation in pixels; the weights end at 4 sigma. 0 leaves the map as it is.

    Raises:
        ValueError: Another number of dimensions, or a negative sigma.
    """
    if x.ndim != 4 or sigma < 0:
        raise ValueError(f"gaussian_blur: expected (B, H, W, C) and sigma >= 0, got {x.shape} and {sigma}")
    if sigma == 0:
        return x
    rows, columns = (jnp.asarray(_weights(side, sigma), x.dtype) for side in x.shape[1:3])
    return jnp.einsum("hi,biwc->bhwc", rows, jnp.einsum("wi,bhic->bhwc", columns, x))


def _weights(side: int, sigma: float) -> np.ndarray:
    """(side, side): what each pixel of a line takes from which."""
    radius = int(4 * sigma + 0.5)
    taps = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (taps / sigma) ** 2)
    weights = np.zeros((side, side))
    where = np.clip(np.arange(side)[:, None] + taps, 0, side - 1)
    np.add.at(weights, (np.arange(side)[:, None], where), kernel / kernel.sum())
    return weights
