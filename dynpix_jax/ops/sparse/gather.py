"""Active positions only, in plain XLA on every backend: chunks of gather, the chain, scatter."""

from __future__ import annotations

import jax.numpy as jnp

from dynpix_jax.core.typing import Array
from dynpix_jax.ops.sparse.call import Call
from dynpix_jax.ops.sparse.chunks import chunk_size
from dynpix_jax.ops.sparse.layers import ResidualBlock, on_rows
from dynpix_jax.ops.sparse.rows import ActiveRows, definition_on_rows, run_on_rows
from dynpix_jax.ops.sparse.vjp import derivative_of
from dynpix_jax.ops.sparse.windows import map_active


def gather(call: Call) -> Array:
    """The chain by :func:`~dynpix_jax.ops.sparse.windows.map_active`, or on rows that share a mask."""
    return _on_rows(call) if isinstance(call.active, ActiveRows) else _on_windows(call)


def gather_late(call: Call) -> Array:
    """The first convolution of a chain everywhere, what follows it at active positions."""
    return _on_windows(call, late=True)


def _on_windows(call: Call, *, late: bool = False) -> Array:
    first, combine = call.first, call.combine
    x, layers, window, dilation, strides = call.x, call.layers, first.window, first.dilation, first.strides
    if late:
        x, layers, window, dilation, strides = first.everywhere(x), layers[1:], (1, 1), (1, 1), (1, 1)
    init = call.init
    if init is None:
        init = jnp.zeros((*call.mask.shape, call.features), call.x.dtype)

    def chain(windows: Array) -> Array:
        return on_rows(layers, windows[:, 0, 0] if late else windows)

    def residual(windows: Array, current: Array) -> Array:
        assert combine is not None
        return combine.join(current, chain(windows))

    out = map_active(
        chain if combine is None else residual,
        x,
        call.positions,
        window=window,
        dilation=dilation,
        strides=strides,
        init=init,
        combine="set" if combine is None else "update",
        chunk=chunk_size(call.x.shape[-1], first.window),
    )
    return call.with_idle(out)


def _definition(call: Call) -> Array:
    assert isinstance(call.active, ActiveRows)
    return definition_on_rows(call.layers, call.x, call.active)


@derivative_of(_definition)
def _on_rows(call: Call) -> Array:
    assert isinstance(call.active, ActiveRows)
    blocks = [layer for layer in call.layers if isinstance(layer, ResidualBlock)]
    return run_on_rows(blocks, call.x, call.active)
