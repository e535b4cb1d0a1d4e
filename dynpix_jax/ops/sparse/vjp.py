"""A derivative for forward passes that have none: Pallas kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps

import jax

from dynpix_jax.core.typing import Array, Mask
from dynpix_jax.ops.conv import Pair
from dynpix_jax.ops.sparse.active import ActiveSet, active_set
from dynpix_jax.ops.sparse.gather import gather

Run = Callable[[Array, Array, Mask, ActiveSet | None, Array | None, Pair, Pair], Array]
"""(x, kernel, mask, active or None, bias or None, strides, dilation) -> (B, Ho, Wo, Cout)."""


def sparse_vjp(run: Run) -> Run:
    """Gives ``run`` the backward pass of ``gather``, which visits the active positions only.

    Differentiable in reverse mode with respect to ``x``, ``kernel`` and ``bias``, under ``jit``, ``vmap`` and
    ``shard_map``; weight gradients are summed in float32. Cotangents at inactive positions are ignored: the
    result is zero there whatever the arguments.

    Args:
      run: the forward pass; it need not be differentiable.
    """

    @wraps(run)
    def differentiable(
        x: Array,
        kernel: Array,
        mask: Mask,
        active: ActiveSet | None,
        bias: Array | None,
        strides: Pair,
        dilation: Pair,
    ) -> Array:
        @jax.custom_vjp
        def call(x: Array, kernel: Array, bias: Array | None, mask: Mask, active: ActiveSet | None) -> Array:
            return run(x, kernel, mask, active, bias, strides, dilation)

        def forward(*arguments: Array) -> tuple[Array, tuple[Array, ...]]:
            return call(*arguments), arguments

        def backward(
            arguments: tuple[Array, ...], cotangent: Array
        ) -> tuple[Array, Array, Array | None, None, None]:
            return *_backward(strides, dilation, *arguments, cotangent), None, None

        call.defvjp(forward, backward)
        return call(x, kernel, bias, mask, active)

    return differentiable


# Compiled as a whole, also where the caller is not: the values of `gather`, which jax.vjp computes beside its
# derivative, are used by nobody and dropped from a compiled program.
@partial(jax.jit, static_argnums=(0, 1))
def _backward(
    strides: Pair,
    dilation: Pair,
    x: Array,
    kernel: Array,
    bias: Array | None,
    mask: Mask,
    active: ActiveSet | None,
    cotangent: Array,
) -> tuple[Array, Array, Array | None]:
    where = active_set(mask) if active is None else active
    _, vjp = jax.vjp(
        lambda x, kernel, bias: gather(x, kernel, mask, where, bias, strides, dilation), x, kernel, bias
    )
    grads: tuple[Array, Array, Array | None] = vjp(cotangent)
    return grads
