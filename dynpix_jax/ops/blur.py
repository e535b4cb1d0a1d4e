"""Gaussian smoothing of maps."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from dynpix_jax.core.typing import Array


def gaussian_blur(x: Array, sigma: float) -> Array:
    """Smooths along rows and columns; the border is continued by its last value.

    Args:
        x: (B, H, W, C), floating.
        sigma: Standard deviation in pixels; the kernel ends at 4 sigma. 0 returns the map unchanged.

    Raises:
        ValueError: The map is not four-dimensional, or sigma is negative.
    """
    if x.ndim != 4 or sigma < 0:
        raise ValueError(f"gaussian_blur: expected (B, H, W, C) and sigma >= 0, got {x.shape} and {sigma}")
    if sigma == 0:
        return x
    rows, columns = (jnp.asarray(_weights(side, sigma), x.dtype) for side in x.shape[1:3])
    return jnp.einsum("hi,biwc->bhwc", rows, jnp.einsum("wi,bhic->bhwc", columns, x))


def _weights(side: int, sigma: float) -> np.ndarray:
    """(side, side): weights of the input pixels of a line (columns) for each output pixel (rows)."""
    radius = int(4 * sigma + 0.5)
    taps = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (taps / sigma) ** 2)
    weights = np.zeros((side, side))
    where = np.clip(np.arange(side)[:, None] + taps, 0, side - 1)
    np.add.at(weights, (np.arange(side)[:, None], where), kernel / kernel.sum())
    return weights
