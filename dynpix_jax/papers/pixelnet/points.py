"""Pixels for training: random pixels of a mask, and mixtures of rare pixels with the rest."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from dynpix_jax.core.typing import Array, PRNGKey


def random_points(key: PRNGKey, mask: Array, count: int) -> Array:
    """``count`` random pixels of each image where its mask is True.

    Pixels are distinct, unless the mask has fewer: then they are repeated in turn. An empty mask gives the
    first pixel.

    Args:
        mask: bool (B, H, W).

    Returns:
        int32 (B, count, 2), rows (y, x).

    Raises:
        ValueError: The mask is not bool (B, H, W), or count is below 1.
    """
    if mask.ndim != 3 or mask.dtype != jnp.bool_:
        raise ValueError(f"random_points: mask must be bool (B, H, W), got {mask.dtype} {mask.shape}")
    if count < 1:
        raise ValueError(f"random_points: count: {count}; expected at least 1")
    batch, height, width = mask.shape
    draw = jax.random.uniform(key, (batch, height * width))
    # The pixels of the mask in random order, then the others.
    order = jnp.where(mask.reshape(batch, -1), draw, -1.0)
    _, pixels = lax.top_k(order, min(count, height * width))
    available = jnp.clip(mask.sum((1, 2)), 1, pixels.shape[1])
    turn = jnp.arange(count) % available[:, None]
    pixels = jnp.take_along_axis(pixels, turn, axis=1)
    pixels = jnp.where(mask.any((1, 2))[:, None], pixels, 0)
    return jnp.stack([pixels // width, pixels % width], axis=-1)


def random_points_of_batch(key: PRNGKey, mask: Array, count: int) -> Array:
    """``count`` random pixels of all images together where the mask is True, as `random_points` draws them.

    Returns:
        int32 (count, 3), rows (image, y, x).
    """
    batch, height, width = mask.shape
    y, x = jnp.moveaxis(random_points(key, mask.reshape(1, batch * height, width), count)[0], -1, 0)
    return jnp.stack([y // height, y % height, x], axis=-1)


def biased_points(key: PRNGKey, mask: Array, rare: Array, count: int, share: float) -> Array:
    """Random pixels of each image, a fixed ``share`` of them rare, the rest not rare.

    An image with pixels of one kind only gives all ``count`` of that kind.

    Args:
        mask: bool (B, H, W), pixels that may be drawn.
        rare: bool (B, H, W).
        share: Share of ``count``, in (0, 1); rounded to whole pixels.

    Returns:
        int32 (B, count, 2), rows (y, x), the rare ones first.

    Raises:
        ValueError: A mask that is not bool (B, H, W), a share outside of (0, 1), a count below 1.
    """
    if not 0.0 < share < 1.0:
        raise ValueError(f"biased_points: share: {share}; expected a number in (0, 1)")
    if count < 2:
        raise ValueError(f"biased_points: count: {count}; expected at least 2, one of each kind")
    first = min(max(round(share * count), 1), count - 1)
    keys = jax.random.split(key)
    kinds = (mask & rare, mask & ~rare)
    drawn = []
    for one, other, part, wanted in zip(keys, kinds[::-1], kinds, (first, count - first), strict=True):
        found = jnp.where(part.any((1, 2), keepdims=True), part, other)
        drawn.append(random_points(one, found, wanted))
    return jnp.concatenate(drawn, axis=1)
