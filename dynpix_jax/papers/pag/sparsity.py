"""Densities of masks, and the Kullback-Leibler losses that hold them at their target.

Pixel-wise Attentional Gating, eq. 5 and 6. The density is that of the hard mask, which determines the cost;
with straight-through masks (``ops.gumbel``) its gradient reaches the gate's logits. Gates that decide for
whole images have a loss of their own (`layer_rate_loss`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.scipy.special import xlogy

from dynpix_jax.core.typing import Array

Masks = Mapping[str, Array] | Sequence[Array]
Divergence = Callable[[Array | float, Array], Array]

# Densities closer to 0 or 1 than this use the tangent of the divergence. It bounds the slope by 1 / _EDGE
# and is less than one position of a 60x80 map: on real maps it affects only (almost) empty and full masks.
_EDGE = 1e-4


def bernoulli_kl(rho: Array | float, density: Array) -> Array:
    """KL(Bernoulli(rho) || Bernoulli(density)), finite with its gradient for densities in [0, 1] (eq. 5).

    The divergence is infinite at density 0 or 1. Within 1e-4 of either end it is continued by its tangent:
    the result is convex and continuously differentiable, exact everywhere else, and its gradient at 0 and 1
    points towards ``rho`` with a slope of at most 1e4. It is 0 with gradient 0 at ``density == rho`` for
    ``rho`` in [1e-4, 1 - 1e-4]. For ``rho`` 0 and 1 it is the true -log(1 - density), with slope 1 at density
    0, and -log(density).

    Args:
        rho: Target density in [0, 1]; scalar or broadcastable to ``density``; may be traced. Not meant to be
            differentiated.
        density: In [0, 1]; floating.

    Returns:
        Divergence in nats, of the broadcast shape.
    """
    density = jnp.asarray(density)
    rho = jnp.asarray(rho, density.dtype)
    inner = jnp.clip(density, _EDGE, 1 - _EDGE)
    divergence = (
        xlogy(rho, rho) + xlogy(1 - rho, 1 - rho) - rho * jnp.log(inner) - (1 - rho) * jnp.log1p(-inner)
    )
    slope = (inner - rho) / (inner * (1 - inner))
    return divergence + slope * (density - inner)


def mild_divergence(rho: Array | float, density: Array) -> Array:
    """log(1 + x**2) of both channels' distance x from the target: the released code's "mild" form of eq. 5.

    Its slope is at most 2; that of the Kullback-Leibler divergence is unbounded. Arguments and result are
    those of :func:`bernoulli_kl`.
    """
    return 2 * jnp.log1p((density - rho) ** 2)


def mask_density(mask: Array) -> Array:
    """Share of active positions of each image.

    Args:
        mask: (B, ...); bool, or floating with values in [0, 1].

    Returns:
        (B,) floating (float32 for bool and for low-precision masks), in [0, 1].
    """
    dtype = jnp.promote_types(mask.dtype, jnp.float32)
    return jnp.mean(mask, axis=tuple(range(1, mask.ndim)), dtype=dtype)


def per_layer_sparsity_loss(
    masks: Masks,
    rho: Array | float,
    *,
    valid: Array | None = None,
    in_force: Array | None = None,
    divergence: Divergence = bernoulli_kl,
) -> Array:
    """Sum over layers of the mean over images of KL(rho || density of the layer's mask) (the sum in eq. 6).

    Each layer of each image is held at the target density, so that no layer closes or opens altogether.

    Args:
        masks: The layers' masks, each (B, h, w) with its own h and w, in {0, 1}, straight-through samples in
            training; or probabilities in [0, 1], which the released code penalises in their place.
        rho: Target density in [0, 1]; scalar, may be traced.
        valid: bool (B,); padding images (False) do not count. None: all count.
        in_force: bool (L,), one per layer; gates that are not inserted yet (False) do not count. None: all
            count.
        divergence: Divergence of densities (B,) from rho; :func:`bernoulli_kl` or :func:`mild_divergence`.

    Returns:
        Scalar; 0 without masks or without a valid image.
    """
    return _sum_over_layers([divergence(rho, mask_density(mask)) for mask in _layers(masks)], valid, in_force)


def global_sparsity_loss(
    masks: Masks,
    rho: Array | float,
    *,
    valid: Array | None = None,
    in_force: Array | None = None,
    by_position: bool = False,
) -> Array:
    """Mean over images of KL(rho || g), g the mean of the layers' densities.

    The paper warns of this variant (section 3.3): layers of very different densities satisfy it, and training
    ends with layers that are fully on or off. ``by_position`` weighs each layer by its number of positions,
    like the released code's "combined" loss. Other arguments and the result are those of
    :func:`per_layer_sparsity_loss`.
    """
    layers = _layers(masks)
    if not layers:
        return jnp.zeros((), jnp.float32)
    positions = [mask.size // mask.shape[0] if by_position else 1 for mask in layers]
    weights = jnp.asarray(positions, jnp.float32)
    if in_force is not None:
        weights = jnp.where(in_force, weights, 0.0)
    densities = jnp.stack([mask_density(mask) for mask in layers])
    density = weights @ densities / jnp.maximum(jnp.sum(weights), 1.0)
    return jnp.where(jnp.sum(weights) > 0, _mean_over_images(bernoulli_kl(rho, density), valid), 0.0)


def guidance_loss(
    probabilities: Masks,
    marked: Masks,
    *,
    valid: Array | None = None,
    in_force: Array | None = None,
) -> Array:
    """Sum over layers of the mean of -log(probability to compute) over the marked positions of each image.

    Not in the paper: it asks gates to compute at certain positions and leaves the others to the task's loss.
    How many are open is up to the losses above.

    Args:
        probabilities: The layers' probabilities in [0, 1], each (B, h, w) with its own h and w.
        marked: bool, of the same shapes. An image without a marked position has a loss of 0.
        valid: See :func:`per_layer_sparsity_loss`.
        in_force: The same.

    Returns:
        Scalar; 0 without layers or without a valid image.
    """

    def of_layer(probability: Array, at: Array) -> Array:
        surprise = -jnp.log(jnp.clip(probability.astype(jnp.float32), _EDGE, 1.0))
        return jnp.sum(surprise * at, (1, 2)) / jnp.maximum(at.sum((1, 2)), 1)

    layers = zip(_layers(probabilities), _layers(marked), strict=True)
    return _sum_over_layers([of_layer(*layer) for layer in layers], valid, in_force)


def layer_rate_loss(
    rates: Sequence[Array], relaxed: Sequence[Array], rho: Array, *, valid: Array, in_force: Array
) -> Array:
    """Loss of the layer-skipping baseline: mean over layers of (rho - share of images that run the layer)**2.

    Eq. 5 cannot be used: an image runs a layer or not, and KL(rho || 0 or 1) is infinite. The share within
    the batch, which the baseline's authors use (256 images), fails for small batches: with one image it is 0
    or 1, the expected loss is linear in the gate's probability, and for rho above a half every gate is driven
    open. So the share is a moving average over about a hundred images, with the gradient of this batch's
    part; a gate can then always run some images and always skip others.

    Args:
        rates: The moving average of ``relaxed``, one scalar per layer.
        relaxed: Probabilities (B,) of decisions for whole images, one per layer.
        rho: Target in [0, 1].
        valid: bool (B,); images that count.
        in_force: bool (L,); layers whose gate is not inserted yet (False) do not count.
    """
    now = jnp.stack(list(relaxed)) @ (valid / jnp.maximum(valid.sum(), 1))
    shares = now + jax.lax.stop_gradient(jnp.stack(list(rates)) - now)
    return jnp.sum((rho - shares) ** 2 * in_force) / jnp.maximum(in_force.sum(), 1)


def _layers(masks: Masks) -> list[Array]:
    return list(masks.values() if isinstance(masks, Mapping) else masks)


def _sum_over_layers(losses: Sequence[Array], valid: Array | None, in_force: Array | None) -> Array:
    """Sum over the layers in force of the mean over valid images of each layer's losses (B,)."""
    total = jnp.zeros((), jnp.float32)
    for index, loss in enumerate(losses):
        mean = _mean_over_images(loss, valid)
        total = total + (mean if in_force is None else jnp.where(in_force[index], mean, 0.0))
    return total


def _mean_over_images(values: Array, valid: Array | None) -> Array:
    if valid is None:
        return jnp.mean(values)
    weights = valid.astype(values.dtype)
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1)
