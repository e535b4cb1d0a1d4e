"""A perforated convolution against the dense one of the same shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp

from dynpix_jax.core.typing import Array, Mask
from dynpix_jax.evaluation.bench.rows import Program, Settings
from dynpix_jax.ops.conv import conv
from dynpix_jax.ops.sparse import ImplementationUnavailable, perforated_conv
from dynpix_jax.ops.sparse.active import ActiveSet, active_set
from dynpix_jax.ops.sparse.arg_specs import ConvSpec
from dynpix_jax.ops.sparse.masks import make_mask

AUTO = "auto"
"""Name of ``implementation=None`` among the implementations."""

Forward = Callable[[Array, Array], Array]


def unavailable(spec: ConvSpec, implementation: str, settings: Settings) -> str:
    """Why an implementation (or AUTO) cannot run the layer here, "" if it can; nothing is executed."""
    x, kernel = jax.eval_shape(partial(arrays, spec, settings))
    mask = jax.ShapeDtypeStruct((settings.batch, *spec.output_size), jnp.bool_)
    try:
        jax.eval_shape(partial(_perforated, spec, implementation), x, kernel, mask, None)
    except ImplementationUnavailable as reason:
        return str(reason)
    return ""


def programs(
    spec: ConvSpec, implementations: Sequence[str], settings: Settings, *, shared_active: bool = False
) -> list[Program]:
    """The dense convolution, then each implementation at each density.

    Args:
      spec: the layer.
      implementations: names, or AUTO; each must be able to run.
      settings: how it is measured.
      shared_active: the masks' active sets are there already, as where several layers share a mask. False:
        each call makes its own.
    """
    x, kernel = arrays(spec, settings)
    strides, dilation = spec.strides, spec.dilation

    def dense(x: Array, kernel: Array) -> Array:
        return conv(x, kernel, strides=strides, dilation=dilation)

    def perforated(name: str) -> Callable[[Array, Array, Mask, ActiveSet | None], object]:
        def run(x: Array, kernel: Array, mask: Mask, active: ActiveSet | None) -> object:
            return _passes(lambda a, b: _perforated(spec, name, a, b, mask, active), settings)(x, kernel)

        return jax.jit(run)

    listed = [Program("dense", partial(jax.jit(_passes(dense, settings)), x, kernel))]
    compiled = {name: perforated(name) for name in implementations}
    for index, density in enumerate(settings.densities):
        key = jax.random.fold_in(jax.random.key(1), index)
        mask = make_mask(settings.mask, key, (settings.batch, *spec.output_size), density)
        active = jax.jit(active_set)(mask) if shared_active else None
        share = float(mask.mean())
        for name, run in compiled.items():
            listed.append(Program(name, partial(run, x, kernel, mask, active), share, share))
    return listed


def arrays(spec: ConvSpec, settings: Settings) -> tuple[Array, Array]:
    """Random features (B, H, W, Cin) and kernel of the layer."""
    keys = jax.random.split(jax.random.key(0))
    shape = (*spec.kernel_size, spec.channels, spec.features)
    x = jax.random.normal(keys[0], (settings.batch, *spec.size, spec.channels), settings.dtype)
    # As large as x after the layer, whatever its size.
    return x, jax.random.normal(keys[1], shape, settings.dtype) * math.prod(shape[:3]) ** -0.5


def _perforated(
    spec: ConvSpec, name: str, x: Array, kernel: Array, mask: Mask, active: ActiveSet | None
) -> Array:
    return perforated_conv(
        x,
        kernel,
        mask,
        strides=spec.strides,
        dilation=spec.dilation,
        implementation=None if name == AUTO else name,
        active=active,
    )


def _passes(forward: Forward, settings: Settings) -> Callable[[Array, Array], object]:
    """The forward pass, with the backward pass of its own result as cotangent where that is measured."""
    if not settings.backward:
        return forward

    def both(x: Array, kernel: Array) -> object:
        y, backward = jax.vjp(forward, x, kernel)
        return y, backward(y)

    return both
