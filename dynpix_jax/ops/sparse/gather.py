"""Active positions only, in plain XLA on every backend: chunks of gather, the chain, scatter."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from dynpix_jax.core.typing import Array
from dynpix_jax.ops.sparse.active import ActiveSet
from dynpix_jax.ops.sparse.call import Call
from dynpix_jax.ops.sparse.chunks import chunk_size
from dynpix_jax.ops.sparse.costs import break_even
from dynpix_jax.ops.sparse.layers import Depthwise, ResidualBlock, on_rows
from dynpix_jax.ops.sparse.rows import ActiveRows, definition_on_rows, run_on_rows
from dynpix_jax.ops.sparse.vjp import derivative_of
from dynpix_jax.ops.sparse.windows import map_active


def gather(call: Call) -> Array:
    """The chain by :func:`~dynpix_jax.ops.sparse.windows.map_active`, or on rows that share a mask."""
    return _on_rows(call) if isinstance(call.active, ActiveRows) else _on_windows(call)


def gather_or_everywhere(call: Call) -> Array:
    """`gather` if few positions are active; else the first convolution everywhere, and only the rest there.

    A depthwise one always runs everywhere: to read its windows takes longer. Otherwise a branch around
    both would copy the map that they write into, so they follow each other, one with no positions.
    """
    first, active = call.first, call.positions
    if isinstance(first, Depthwise):
        return call.with_idle(_write(call, active, _init(call), computed=first.everywhere(call.x)))
    few = active.count <= break_even(call.x.shape[-1], winograd=True) * call.mask.size
    like = jax.eval_shape(first.everywhere, call.x)
    y = lax.cond(few, lambda x: jnp.zeros(like.shape, like.dtype), first.everywhere, call.x)
    parts = [dataclasses.replace(active, count=jnp.where(one, active.count, 0)) for one in (few, ~few)]
    out = _write(call, parts[0], _init(call))
    out = _write(call, parts[1], out, computed=y)
    return call.with_idle(out)


def _on_windows(call: Call) -> Array:
    return call.with_idle(_write(call, call.positions, _init(call)))


def _init(call: Call) -> Array:
    if call.init is not None:
        return call.init
    return jnp.zeros((*call.mask.shape, call.features), call.x.dtype)


def _write(call: Call, active: ActiveSet, init: Array, computed: Array | None = None) -> Array:
    """The map ``init`` with the results of a chain written; ``computed``: of its first layer, everywhere."""
    first, combine = call.first, call.combine

    def chain(windows: Array) -> Array:
        if computed is None:
            return on_rows(call.layers, windows)
        return on_rows(call.layers[1:], windows[:, 0, 0])

    def residual(windows: Array, current: Array) -> Array:
        assert combine is not None
        return combine.join(current, chain(windows))

    reads = (first.window, first.dilation, first.strides) if computed is None else ((1, 1),) * 3
    return map_active(
        chain if combine is None else residual,
        call.x if computed is None else computed,
        active,
        window=reads[0],
        dilation=reads[1],
        strides=reads[2],
        init=init,
        combine="set" if combine is None else "update",
        chunk=chunk_size(call.x.shape[-1], first.window),
    )


def _definition(call: Call) -> Array:
    assert isinstance(call.active, ActiveRows)
    return definition_on_rows(call.layers, call.x, call.active)


@derivative_of(_definition)
def _on_rows(call: Call) -> Array:
    assert isinstance(call.active, ActiveRows)
    blocks = [layer for layer in call.layers if isinstance(layer, ResidualBlock)]
    return run_on_rows(blocks, call.x, call.active)
