"""Any function of windows, at the active positions of a mask only.

:func:`map_active` gathers the windows of a chunk of active positions, applies the function, writes the
results, and continues with the next chunk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynpix_jax.core.typing import Array
from dynpix_jax.ops.conv import Pair, conv_output_size
from dynpix_jax.ops.sparse.active import ActiveSet
from dynpix_jax.ops.sparse.chunks import Chunks, chunk_size, read_rows

Combine = Literal["set", "update"]
WindowFn = Callable[..., Array]


def map_active(
    fn: WindowFn,
    x: Array,
    active: ActiveSet,
    *,
    window: Pair = (3, 3),
    dilation: Pair = (1, 1),
    strides: Pair = (1, 1),
    init: Array,
    combine: Combine = "set",
    chunk: int | None = None,
) -> Array:
    """Applies ``fn`` to the windows of ``x`` at the active positions and writes the results into ``init``.

    Reverse-mode differentiable with respect to ``x``, ``init`` and every array that ``fn`` closes over; the
    backward pass gathers again instead of storing windows, and visits active chunks only. Works under ``jit``
    and ``vmap`` (a mapped batch runs as many chunks as its fullest member, so give a batch as B). No
    forward-mode differentiation. ``jax.shard_map`` needs ``check_vma=False``: the loop starts from zeros,
    which vary over no axis.

    Args:
        fn: Maps windows (chunk, kh, kw, C) to (chunk, Cout), each row on its own (no statistics over rows:
            the last chunk is padded with copies of an active row, whose results are dropped).
        x: (B, Hi, Wi, C), padded with ``dilation * (k // 2)`` zeros on every side.
        active: Positions in the *output*, shape (B, Ho, Wo).
        window: (kh, kw).
        dilation: Dilation of the window's rows and columns.
        strides: Strides of the output positions in ``x``.
        init: (B, Ho, Wo, Cout); inactive positions keep its values. Results are cast to its dtype.
        combine: "set" writes the results of ``fn``. With "update", ``fn`` also takes the values of ``init``
            at the active positions, (chunk, Cout), and its results replace them: a residual block adds and
            applies its ReLU without another pass over the map.
        chunk: Rows of a full chunk; None: :func:`~dynpix_jax.ops.sparse.chunks.chunk_size`.

    Returns:
        (B, Ho, Wo, Cout) of the dtype of ``init``.

    Raises:
        ValueError: Shapes do not fit, ``combine`` is unknown, or ``chunk`` is below 1.
    """
    if chunk is not None and chunk < 1:
        raise ValueError(f"map_active: chunk must be at least 1, got {chunk}")
    if combine not in ("set", "update"):
        raise ValueError(f"map_active: combine must be 'set' or 'update', got {combine!r}")
    if x.ndim != 4:
        raise ValueError(f"map_active: x must be (B, H, W, C), got shape {x.shape}")
    batch, height, width, channels = x.shape
    expected = (batch, *conv_output_size((height, width), window, strides, dilation))
    if active.shape != expected:
        raise ValueError(
            f"map_active: the active set must have shape {expected} for x of shape {x.shape}, "
            f"window {window}, dilation {dilation} and strides {strides}, got {active.shape}"
        )
    if init.ndim != 4 or init.shape[:3] != expected:
        raise ValueError(f"map_active: init must have shape {(*expected, 'Cout')}, got {init.shape}")
    positions = active.indices.size
    if positions == 0:
        return init

    plan = _Plan(
        input=(height, width),
        output=expected,
        window=window,
        dilation=dilation,
        strides=strides,
        chunks=Chunks.of(positions, chunk or chunk_size(channels, window)),
        combine=combine,
    )
    converted: dict[int, Callable[..., Array]] = {}
    for rows in {plan.chunks.full, plan.chunks.rest}:
        windows = jax.ShapeDtypeStruct((rows, *window, channels), x.dtype)
        current = jax.ShapeDtypeStruct((rows, init.shape[-1]), init.dtype)
        # A fresh function each time: closure_convert caches by identity, and the values that `fn` closes over
        # may have changed. They are the same at both sizes.
        given = (windows, current) if combine == "update" else (windows,)
        converted[rows], closed_over = jax.closure_convert(lambda *rows: fn(*rows), *given)
        result = jax.eval_shape(converted[rows], *given, *closed_over)
        if result.shape != (rows, init.shape[-1]):
            raise ValueError(
                f"map_active: fn must map {windows.shape} to {(rows, init.shape[-1])} (the channels of "
                f"init), it returns {result.shape}"
            )
    out = _run(
        _ByRows(converted),
        plan,
        x.reshape(-1, channels),
        init.reshape(-1, init.shape[-1]),
        closed_over,
        active.indices,
        active.count,
    )
    return out.reshape(init.shape)


class _ByRows:
    """The functions of one call of map_active by their number of rows; hashed by identity."""

    def __init__(self, fns: Mapping[int, Callable[..., Array]]):
        self.fns = fns

    def __call__(self, rows: Sequence[Array], closed_over: Sequence[Array]) -> Array:
        return self.fns[len(rows[0])](*rows, *closed_over)


class _Lanes(NamedTuple):
    """One chunk."""

    targets: Array
    source: Array
    taps: Array
    live: Array


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The static side of one call: sizes, window, chunks."""

    input: Pair
    output: tuple[int, int, int]
    window: Pair
    dilation: Pair
    strides: Pair
    chunks: Chunks
    combine: Combine

    @property
    def positions(self) -> int:
        return self.output[0] * self.output[1] * self.output[2]

    @property
    def pixels(self) -> int:
        return self.output[0] * self.input[0] * self.input[1]

    def lanes(self, indices: Array, rows: int, first: Array) -> _Lanes:
        """``rows`` active positions from rank ``first`` on; the last ones may be idle."""
        rank = first + jnp.arange(rows, dtype=jnp.int32)
        positions = indices.at[rank].get(mode="fill", fill_value=self.positions)
        live = positions < self.positions
        targets = jnp.where(live, positions, self.positions + rank)
        # Idle lanes read the window of the first active position, which is finite if the active ones are:
        # their zero cotangents of the backward pass meet no inf or nan of an inactive position.
        source = jnp.where(live, positions, jnp.minimum(indices[0], self.positions - 1))
        _, out_height, out_width = self.output
        height, width = self.input
        image, within = source // (out_height * out_width), source % (out_height * out_width)
        tap_rows, tap_cols = (
            dilation * (np.arange(size, dtype=np.int32) - size // 2)
            for size, dilation in zip(self.window, self.dilation, strict=True)
        )
        row = (within // out_width * self.strides[0])[:, None] + np.repeat(tap_rows, self.window[1])
        col = (within % out_width * self.strides[1])[:, None] + np.tile(tap_cols, self.window[0])
        inside = (row >= 0) & (row < height) & (col >= 0) & (col < width)
        taps = (image[:, None] * height + row) * width + col
        return _Lanes(targets, source, jnp.where(inside, taps, self.pixels), live)

    def arguments(self, flat: Array, current: Array | None, lanes: _Lanes, count: Array) -> tuple[Array, ...]:
        """Arguments of ``fn``: windows, and for an update the rows that it replaces."""
        windows = read_rows(flat, lanes.taps, count).reshape(len(lanes.taps), *self.window, flat.shape[-1])
        if self.combine == "set" or current is None:
            return (windows,)
        return windows, current.at[lanes.source].get(mode="promise_in_bounds")


_Residuals = tuple[Array, Array | None, list[Array], Array, Array]
_Grads = tuple[Array, Array, list[Array]]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _run(
    fn: _ByRows,
    plan: _Plan,
    flat: Array,
    init: Array,
    closed_over: list[Array],
    indices: Array,
    count: Array,
) -> Array:
    """map_active on flat rows: flat (B*H*W, C), init (B*Ho*Wo, Cout)."""

    def body(rows: int, first: Array, out: Array) -> Array:
        lanes = plan.lanes(indices, rows, first)
        y = fn(plan.arguments(flat, out, lanes, count), closed_over).astype(out.dtype)
        return out.at[lanes.targets].set(y, mode="drop", unique_indices=True, indices_are_sorted=True)

    return plan.chunks.sweep(count, body, init)


def _run_fwd(
    fn: _ByRows,
    plan: _Plan,
    flat: Array,
    init: Array,
    closed_over: list[Array],
    indices: Array,
    count: Array,
) -> tuple[Array, _Residuals]:
    return _run(fn, plan, flat, init, closed_over, indices, count), (
        flat,
        init if plan.combine == "update" else None,
        closed_over,
        indices,
        count,
    )


def _run_bwd(
    fn: _ByRows,
    plan: _Plan,
    residuals: _Residuals,
    cotangent: Array,
) -> tuple[Array, Array, list[Array | None], None, None]:
    flat, init, closed_over, indices, count = residuals
    # Integers that fn closes over have no gradient; they are passed through.
    inexact = [jnp.issubdtype(value.dtype, jnp.inexact) for value in closed_over]
    weights = [value for value, keep in zip(closed_over, inexact, strict=True) if keep]

    def body(rows: int, first: Array, carry: _Grads) -> _Grads:
        grad_flat, grad_init, grad_weights = carry
        lanes = plan.lanes(indices, rows, first)

        def apply(arguments: tuple[Array, ...], values: list[Array]) -> Array:
            given = iter(values)
            return fn(
                arguments,
                [next(given) if keep else value for value, keep in zip(closed_over, inexact, strict=True)],
            )

        y, vjp = jax.vjp(apply, plan.arguments(flat, init, lanes, count), weights)
        place = grad_init.at[lanes.targets]
        upstream = place.get(mode="fill", fill_value=0, unique_indices=True, indices_are_sorted=True)
        (grad_windows, *grad_current), grads = vjp(upstream.astype(y.dtype))
        # Only an update depends on the previous values.
        before = grad_current[0].astype(grad_init.dtype) if grad_current else jnp.zeros_like(upstream)
        grad_init = place.set(before, mode="drop", unique_indices=True, indices_are_sorted=True)
        # Windows overlap: not unique. Idle lanes are dropped, as are taps outside the image.
        target_rows = jnp.where(lanes.live[:, None], lanes.taps, plan.pixels)
        grad_windows = grad_windows.reshape(*lanes.taps.shape, flat.shape[-1]).astype(grad_flat.dtype)
        grad_flat = grad_flat.at[target_rows].add(grad_windows, mode="drop")
        grad_weights = [total + g.astype(total.dtype) for total, g in zip(grad_weights, grads, strict=True)]
        return grad_flat, grad_init, grad_weights

    # Sums over many windows and chunks are kept in float32 for low-precision arrays.
    start = (_wide_zeros(flat), cotangent, [_wide_zeros(value) for value in weights])
    grad_flat, grad_init, grad_weights = plan.chunks.sweep(count, body, start)
    given = iter(grad_weights)
    grad_closed = [
        next(given).astype(value.dtype) if keep else None
        for value, keep in zip(closed_over, inexact, strict=True)
    ]
    return grad_flat.astype(flat.dtype), grad_init, grad_closed, None, None


def _wide_zeros(value: Array) -> Array:
    return jnp.zeros(value.shape, jnp.promote_types(value.dtype, jnp.float32))


_run.defvjp(_run_fwd, _run_bwd)
