"""Batch moments and per-channel affine maps, each with one reduction over the batch, forward and backward.

Where a batch is split over devices, a sum over it is an all-reduce. Both functions first sum within images,
which every device does by itself, stack what they sum, and then sum over the batch once.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from dynpix_jax.core.typing import Array


def moments(x: Array, shift: Array, groups: int = 1) -> tuple[Array, Array]:
    """Mean and variance of each channel over the images of each group.

    From sums of x - shift and of its square, in float32: the nearer ``shift`` to the mean, the less cancels.

    Args:
        x: (B, H, W, C).
        shift: (C,); it has no gradient, and but for rounding no effect.
        groups: Number of groups of consecutive images; it divides B.

    Returns:
        Two arrays (groups, C), float32.
    """
    shift = jax.lax.stop_gradient(shift)
    first, second = jnp.moveaxis(_power_sums(x, shift, groups), 1, 0)
    count = x.size // x.shape[-1] // groups
    mean = first / count
    return mean + shift, jnp.maximum(second / count - mean**2, 0.0)


@jax.custom_vjp
def affine(x: Array, multiplier: Array, offset: Array) -> Array:
    """``x * multiplier + offset``, computed in float32, in the dtype of ``x``.

    Args:
        x: (..., C).
        multiplier: (C,), or (groups, C), one for each group of consecutive images.
        offset: Of the same shape.
    """
    wide = _wide(x)
    return (wide * _over(multiplier, x) + _over(offset, x)).astype(x.dtype)


def _affine_forward(x: Array, multiplier: Array, offset: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return affine(x, multiplier, offset), (x, multiplier, offset)


def _affine_backward(saved: tuple[Array, Array, Array], gradient: Array) -> tuple[Array, Array, Array]:
    x, multiplier, offset = saved
    wide = _wide(gradient)
    groups = len(multiplier) if multiplier.ndim == 2 else 1
    sums = _sums([wide * _wide(x), wide], groups)
    to_x = (wide * _over(multiplier, x)).astype(x.dtype)
    return (
        to_x,
        sums[:, 0].reshape(multiplier.shape).astype(multiplier.dtype),
        sums[:, 1].reshape(offset.shape).astype(offset.dtype),
    )


affine.defvjp(_affine_forward, _affine_backward)


# Its own derivative: JAX's would keep the shifted map in float32.
@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _power_sums(x: Array, shift: Array, groups: int) -> Array:
    """(groups, 2, C): sums of x - shift and of its square."""
    shifted = _wide(x) - shift
    return _sums([shifted, shifted**2], groups)


def _power_sums_forward(x: Array, shift: Array, groups: int) -> tuple[Array, tuple[Array, Array]]:
    return _power_sums(x, shift, groups), (x, shift)


def _power_sums_backward(groups: int, saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, shift = saved
    to_first, to_second = (_over(gradient[:, power], x) for power in (0, 1))
    return (to_first + 2 * to_second * (_wide(x) - shift)).astype(x.dtype), jnp.zeros_like(shift)


_power_sums.defvjp(_power_sums_forward, _power_sums_backward)


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _over(values: Array, x: Array) -> Array:
    """(C,) or (groups, C) so that they broadcast over ``x``."""
    if values.ndim == 1 or len(values) == 1:
        return values.reshape(values.shape[-1])
    of_images = jnp.repeat(values, len(x) // len(values), axis=0)
    return of_images.reshape(len(x), *[1] * (x.ndim - 2), values.shape[-1])


def _sums(maps: list[Array], groups: int) -> Array:
    """(groups, len(maps), C): sums of maps (B, ..., C) over the images and positions of each group."""
    if maps[0].ndim == 2:  # single positions, of one device
        return jnp.stack([values.sum(0) for values in maps])[None]
    within = tuple(range(1, maps[0].ndim - 1))
    of_images = jnp.stack([values.sum(within) for values in maps], 1)
    return of_images.reshape(groups, -1, *of_images.shape[1:]).sum(1)
