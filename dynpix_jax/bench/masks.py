"""Masks of a given density, to test and measure with: independent pixels, or blobs as real gates make."""

from __future__ import annotations

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from dynpix_jax.core.typing import Array, Mask, PRNGKey

Shape = tuple[int, int, int]
Kind = Literal["random", "blobs"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def make_mask(kind: Kind, key: PRNGKey, shape: Shape, density: float) -> Mask:
    """:func:`random_mask` or :func:`blob_mask`."""
    if kind not in KINDS:
        raise ValueError(f"make_mask: kind must be one of {KINDS}, got {kind!r}")
    return (random_mask if kind == "random" else blob_mask)(key, shape, density)


def random_mask(key: PRNGKey, shape: Shape, density: float) -> Mask:
    """Independent pixels: the hardest mask for tiles, as hardly a tile is empty.

    Returns:
        bool (B, H, W) with exactly ``round(density * B * H * W)`` True, over the batch as a whole.
    """
    _check("random_mask", shape, density)
    return _highest(jax.random.uniform(key, shape), density)


def blob_mask(key: PRNGKey, shape: Shape, density: float, *, scale: float = 1 / 16) -> Mask:
    """Coherent blobs: where smoothed Gaussian noise is highest.

    Args:
        key: Key of the noise.
        shape: (B, H, W).
        density: Share of active positions, in [0, 1].
        scale: Standard deviation of the smoothing over the shorter side. A line of pixels at density 0.5
            crosses an edge every 4.4 standard deviations on average (Rice's formula).

    Returns:
        bool (B, H, W) with exactly ``round(density * B * H * W)`` True, over the batch as a whole; it
        continues over opposite sides of the image.

    Raises:
        ValueError: Another number of dimensions, a density outside [0, 1], or a negative scale.
    """
    _check("blob_mask", shape, density)
    if scale < 0:
        raise ValueError(f"blob_mask: scale must be at least 0, got {scale}")
    _, height, width = shape
    # A convolution with a Gaussian, as a product of spectra.
    sigma = scale * min(height, width)
    frequency = jnp.hypot(jnp.fft.fftfreq(height)[:, None], jnp.fft.rfftfreq(width))
    transfer = jnp.exp(-2 * (math.pi * sigma * frequency) ** 2)
    noise = jnp.fft.rfft2(jax.random.normal(key, shape))
    return _highest(jnp.fft.irfft2(noise * transfer, s=(height, width)), density)


def _highest(field: Array, density: float) -> Mask:
    """The share ``density`` of positions with the highest values."""
    ranking = jnp.argsort(field.reshape(-1), descending=True)
    chosen = jnp.arange(field.size) < round(density * field.size)
    return jnp.zeros(field.size, jnp.bool_).at[ranking].set(chosen).reshape(field.shape)


def _check(function: str, shape: Shape, density: float) -> None:
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"{function}: shape must be (B, H, W), got {shape}")
    if not 0.0 <= density <= 1.0:
        raise ValueError(f"{function}: density must be in [0, 1], got {density}")
