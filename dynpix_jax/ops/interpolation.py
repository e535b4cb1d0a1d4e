"""Interpolation of skipped positions from computed neighbours (Liu et al., section 3.4, eq. 3).

The released code (`normalize="full"`) filters a map that is zero at skipped positions with a 7x7 kernel
exp(-lam^2 d^2) without its centre, divided by its sum. So a position without a computed direct neighbour gets
almost zero. "present" divides by the sum over computed neighbours, as the paper's text says and the method it
builds on does (Xie et al., 2020).
"""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dynpix_jax.core.typing import Array, Mask

Normalize = Literal["full", "present"]
INTERPOLATION_SCOPE = "interpolation"
"""Name of these products in the counts of `flops`."""
EPSILON = 1e-5
"""Added to the sum of weights in both normalisations."""


def rbf_weights(lam: Array, radius: int, squares: np.ndarray) -> Array:
    """exp(-lam^2 d^2) for squared distances `squares` (any shape, whole numbers) over the kernel's sum.

    The kernel has side 2 * radius + 1 and no centre; EPSILON is added to its sum.
    """
    steps = np.arange(-radius, radius + 1)
    window = (steps[:, None] ** 2 + steps**2).reshape(-1)
    total = jnp.exp(-(lam**2) * np.delete(window, window.size // 2).astype(np.float32)).sum() + EPSILON
    return jnp.exp(-(lam**2) * squares.astype(np.float32)) / total


def interpolate_masked(
    x: Array, mask: Mask, lam: Array | float, *, radius: int = 3, normalize: Normalize = "full"
) -> Array:
    """``x`` where ``mask`` is True; elsewhere the weighted mean of computed values within ``radius`` (eq. 3).

    The map is padded with zeros. Differentiable with respect to ``x`` and ``lam``; values of ``x`` where the
    mask is False are not used.

    Args:
        x: (B, H, W, C), floating, finite.
        mask: bool (B, H, W), True = computed.
        lam: Scalar; weights are exp(-lam^2 d^2), d in pixels.
        radius: Radius of the square window, at least 1.
        normalize: "full" divides by the kernel's sum, "present" by the sum over computed neighbours; 1e-5 is
            added to either.

    Returns:
        (B, H, W, C) of the dtype of ``x``; weights and sums are float32, rounded once.

    Raises:
        ValueError: Shapes or dtypes that do not fit, a radius below 1, an unknown ``normalize``.
    """
    if x.ndim != 4 or mask.shape != x.shape[:3] or mask.dtype != jnp.bool_:
        raise ValueError(
            f"interpolate_masked: expected x (B, H, W, C) and a bool mask (B, H, W), got {x.shape} and "
            f"{mask.dtype} {mask.shape}"
        )
    if radius < 1 or normalize not in get_args(Normalize):
        raise ValueError(
            f"interpolate_masked: expected radius >= 1 and normalize in {get_args(Normalize)}, got {radius}, "
            f"{normalize!r}"
        )
    lam = jnp.asarray(lam, jnp.float32)
    computed = mask[..., None]
    known = jnp.where(computed, x, 0)
    rows, columns = (_band(lam, size, radius) for size in mask.shape[1:])
    filled = _filtered(known, rows, columns)
    if normalize == "full":
        filled = filled * _over_sum(lam, radius)
    else:
        filled = filled / (_filtered(computed.astype(jnp.float32), rows, columns) + EPSILON)
    return jnp.where(computed, x, filled.astype(x.dtype))


def _over_sum(lam: Array, radius: int) -> Array:
    return rbf_weights(lam, radius, np.zeros(1))[0]


def _band(lam: Array, size: int, radius: int) -> Array:
    """exp(-lam^2 d^2) for positions of a line of ``size`` at distance d <= radius, 0 beyond: (size, size)."""
    squares = (np.arange(size)[:, None] - np.arange(size)) ** 2
    near = squares <= radius**2
    return jnp.where(near, jnp.exp(-(lam**2) * np.where(near, squares, 0).astype(np.float32)), 0)


def _filtered(x: Array, rows: Array, columns: Array) -> Array:
    """(B, H, W, C) summed with the weights of `_band` along both axes, in float32.

    The kernel is separable but for its centre, which meets only zeros where the result is read. Two matrix
    products instead of sums of shifted maps: hundreds of such sums in a program take minutes to compile.
    """
    with jax.named_scope(INTERPOLATION_SCOPE):
        highest = lax.Precision.HIGHEST
        x = jnp.einsum("ph,bhwc->bpwc", rows, x.astype(jnp.float32), precision=highest)
        return jnp.einsum("pw,bhwc->bhpc", columns, x, precision=highest)
