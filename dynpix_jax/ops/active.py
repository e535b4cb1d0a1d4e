"""Work at the active positions only.

A mask becomes an :class:`ActiveSet` once; :func:`map_active` then applies any function of windows at those
positions, in chunks small enough to stay in cache, with a trip count that is known only at run time.
Nothing in it has a shape that depends on the mask, so it compiles once, and the time it takes follows the
number of active positions.

Why chunks: one gather of all windows writes kh*kw times the input to memory and is 2-3 times slower on a CPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from dynpix_jax.ops.conv import Pair, conv_output_size, torch_padding
from dynpix_jax.typing import Array

Combine = Literal["set", "add"]
WindowFn = Callable[[Array], Array]

# Bytes of float32 windows in one chunk: 256 rows of 3x3x256, 128 rows of 3x3x512, about a CPU's second-level
# cache. Half or twice as much made no difference beyond the noise of a busy 2-core machine.
_CHUNK_BYTES = 9 * 4 * 65536


@partial(jax.tree_util.register_dataclass, data_fields=["indices", "count"], meta_fields=["shape"])
@dataclasses.dataclass(frozen=True)
class ActiveSet:
    """The active positions of a mask; a pytree, made by :func:`active_set`.

    Attributes:
      indices: int32 (B*H*W,); flat indices of the active positions, ascending, then B*H*W as filling.
      count: int32 scalar; how many there are.
      shape: (B, H, W) of the mask; static.
    """

    indices: Array
    count: Array
    shape: tuple[int, int, int]


def active_set(mask: Array) -> ActiveSet:
    """The positions where ``mask`` is True. Make it once for a mask, share it among all ops that use the
    mask.

    Args:
      mask: bool (B, H, W); True = compute.

    Raises:
      ValueError: not bool or not three-dimensional.
    """
    if mask.ndim != 3 or mask.dtype != jnp.bool_:
        raise ValueError(f"active_set: mask must be bool (B, H, W), got {mask.dtype} {mask.shape}")
    batch, height, width = mask.shape
    flat = mask.reshape(-1)
    size = flat.size
    position = jnp.arange(size, dtype=jnp.int32)
    rank = jnp.cumsum(flat, dtype=jnp.int32)
    # Inactive positions aim past the end, each at its own place: the promise of unique indices stays true.
    target = jnp.where(flat, rank - 1, size + position)
    filling = jnp.full((size,), size, jnp.int32)
    indices = filling.at[target].set(position, mode="drop", unique_indices=True)
    return ActiveSet(indices, jnp.sum(flat, dtype=jnp.int32), (batch, height, width))


def chunk_size(channels: int, window: Pair) -> int:
    """Rows of a chunk: the power of two in 32..1024 whose float32 windows fill at most 2.25 MiB."""
    rows = _CHUNK_BYTES // (4 * window[0] * window[1] * max(channels, 1))
    return min(max(1 << (max(rows, 1).bit_length() - 1), 32), 1024)


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

    Runs ceil(count / chunk) times: gather a chunk of windows, apply ``fn``, scatter. Reverse-mode
    differentiable with respect to ``x``, ``init`` and every array that ``fn`` closes over; the backward
    pass gathers again instead of storing windows, and visits active chunks only. Works under ``jit`` and
    ``vmap`` (a mapped batch runs as many chunks as its fullest member: give a batch as B rather than by
    ``vmap``). No forward-mode differentiation.

    Args:
      fn: maps windows (chunk, kh, kw, C) to (chunk, Cout), each row on its own (no statistics over rows:
        the last chunk is filled up with copies of an active row, whose results are dropped).
      x: (B, Hi, Wi, C), seen with ``dilation * (k // 2)`` zeros on every side.
      active: positions in the *output*, shape (B, Ho, Wo).
      window: (kh, kw).
      dilation: of the window's rows and columns.
      strides: of the output positions in ``x``.
      init: (B, Ho, Wo, Cout); what inactive positions keep. The results are cast to its dtype.
      combine: "set" replaces the values of ``init`` at the active positions, "add" adds to them.
      chunk: rows at a time; None: by :func:`chunk_size`.

    Returns:
      (B, Ho, Wo, Cout) of the dtype of ``init``.

    Raises:
      ValueError: shapes that do not fit, or an unknown ``combine``.
    """
    if combine not in ("set", "add"):
        raise ValueError(f"map_active: combine must be 'set' or 'add', got {combine!r}")
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

    rows_pad, cols_pad = torch_padding(window, dilation)
    padded = jnp.pad(x, ((0, 0), (rows_pad, rows_pad), (cols_pad, cols_pad), (0, 0)))
    rows = min(chunk or chunk_size(channels, window), positions)
    plan = _Plan(
        output=expected,
        padded=(padded.shape[1], padded.shape[2]),
        window=window,
        dilation=dilation,
        strides=strides,
        chunk=rows,
        combine=combine,
    )
    # A fresh function for each call: closure_convert caches by identity, and what `fn` closes over may have
    # changed.
    converted, closed_over = jax.closure_convert(
        lambda w: fn(w), jnp.zeros((rows, *window, channels), x.dtype)
    )
    result = jax.eval_shape(converted, jax.ShapeDtypeStruct((rows, *window, channels), x.dtype), *closed_over)
    if result.shape != (rows, init.shape[-1]):
        raise ValueError(
            f"map_active: fn must map {(rows, *window, channels)} to {(rows, init.shape[-1])} (the channels "
            f"of init), it returns {result.shape}"
        )
    out = _run(
        converted,
        plan,
        padded.reshape(-1, channels),
        init.reshape(-1, init.shape[-1]),
        closed_over,
        active.indices,
        active.count,
    )
    return out.reshape(init.shape)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The static side of one call: sizes, window, chunk."""

    output: tuple[int, int, int]
    padded: Pair
    window: Pair
    dilation: Pair
    strides: Pair
    chunk: int
    combine: Combine

    @property
    def positions(self) -> int:
        return self.output[0] * self.output[1] * self.output[2]

    def trips(self, count: Array) -> Array:
        return (count + self.chunk - 1) // self.chunk

    def pad_indices(self, indices: Array) -> Array:
        # The last slice of a chunk must not be shifted back by dynamic_slice's clamping.
        return jnp.pad(indices, (0, -indices.size % self.chunk), constant_values=self.positions)

    def lanes(self, indices: Array, i: Array) -> tuple[Array, Array, Array]:
        """Of chunk ``i``: output rows to write (past the end where idle), padded-input rows to read, live."""
        positions = lax.dynamic_slice(indices, (i * self.chunk,), (self.chunk,))
        live = positions < self.positions
        targets = jnp.where(live, positions, self.positions + jnp.arange(self.chunk, dtype=jnp.int32))
        # Idle lanes read the window of the first active position: finite wherever the active ones are, so
        # that the zero cotangents which they get in the backward pass meet no inf or nan of an inactive
        # position.
        source = jnp.where(live, positions, jnp.minimum(indices[0], self.positions - 1))
        _, out_height, out_width = self.output
        height, width = self.padded
        image, within = source // (out_height * out_width), source % (out_height * out_width)
        row, col = within // out_width * self.strides[0], within % out_width * self.strides[1]
        corner = (image * height + row) * width + col
        taps = [
            i * self.dilation[0] * width + j * self.dilation[1]
            for i in range(self.window[0])
            for j in range(self.window[1])
        ]
        return targets, corner[:, None] + jnp.array(taps, jnp.int32), live

    def gather(self, flat: Array, rows: Array) -> Array:
        windows = flat.at[rows].get(mode="promise_in_bounds")
        return windows.reshape(self.chunk, *self.window, flat.shape[-1])


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _run(
    fn: Callable[..., Array],
    plan: _Plan,
    flat: Array,
    init: Array,
    closed_over: list[Array],
    indices: Array,
    count: Array,
) -> Array:
    """map_active on flat rows: flat (B*Hp*Wp, C), init (B*Ho*Wo, Cout)."""
    indices = plan.pad_indices(indices)

    def body(i: Array, out: Array) -> Array:
        targets, rows, _ = plan.lanes(indices, i)
        y = fn(plan.gather(flat, rows), *closed_over).astype(out.dtype)
        place = out.at[targets]
        write = place.add if plan.combine == "add" else place.set
        return write(y, mode="drop", unique_indices=True, indices_are_sorted=True)

    return lax.fori_loop(0, plan.trips(count), body, init)


def _run_fwd(
    fn: Callable[..., Array],
    plan: _Plan,
    flat: Array,
    init: Array,
    closed_over: list[Array],
    indices: Array,
    count: Array,
) -> tuple[Array, tuple[Array, list[Array], Array, Array]]:
    return _run(fn, plan, flat, init, closed_over, indices, count), (flat, closed_over, indices, count)


def _run_bwd(
    fn: Callable[..., Array],
    plan: _Plan,
    residuals: tuple[Array, list[Array], Array, Array],
    cotangent: Array,
) -> tuple[Array, Array, list[Array | None], None, None]:
    flat, closed_over, raw_indices, count = residuals
    indices = plan.pad_indices(raw_indices)
    # Integers that fn closes over have no gradient; they pass through as they are.
    inexact = [jnp.issubdtype(value.dtype, jnp.inexact) for value in closed_over]
    weights = [value for value, keep in zip(closed_over, inexact, strict=True) if keep]

    def body(i: Array, carry: tuple[Array, list[Array]]) -> tuple[Array, list[Array]]:
        grad_flat, grad_weights = carry
        targets, rows, live = plan.lanes(indices, i)

        def apply(windows: Array, values: list[Array]) -> Array:
            given = iter(values)
            return fn(
                windows,
                *(next(given) if keep else value for value, keep in zip(closed_over, inexact, strict=True)),
            )

        y, vjp = jax.vjp(apply, plan.gather(flat, rows), weights)
        upstream = cotangent.at[targets].get(
            mode="fill", fill_value=0, unique_indices=True, indices_are_sorted=True
        )
        grad_windows, grads = vjp(upstream.astype(y.dtype))
        # Windows overlap: not unique. Idle lanes are dropped.
        target_rows = jnp.where(live[:, None], rows, flat.shape[0])
        grad_windows = grad_windows.reshape(*rows.shape, flat.shape[-1]).astype(grad_flat.dtype)
        grad_flat = grad_flat.at[target_rows].add(grad_windows, mode="drop")
        grad_weights = [total + g.astype(total.dtype) for total, g in zip(grad_weights, grads, strict=True)]
        return grad_flat, grad_weights

    # Sums over many windows and chunks are kept in float32 for low-precision arrays.
    start = (_wide_zeros(flat), [_wide_zeros(value) for value in weights])
    grad_flat, grad_weights = lax.fori_loop(0, plan.trips(count), body, start)
    given = iter(grad_weights)
    grad_closed = [
        next(given).astype(value.dtype) if keep else None
        for value, keep in zip(closed_over, inexact, strict=True)
    ]
    return grad_flat.astype(flat.dtype), _grad_init(plan, cotangent, raw_indices), grad_closed, None, None


def _grad_init(plan: _Plan, cotangent: Array, indices: Array) -> Array:
    if plan.combine == "add":
        return cotangent
    replaced = jnp.zeros((plan.positions,), jnp.bool_).at[indices].set(True, mode="drop")
    return jnp.where(replaced[:, None], 0, cotangent)


def _wide_zeros(value: Array) -> Array:
    return jnp.zeros(value.shape, jnp.promote_types(value.dtype, jnp.float32))


_run.defvjp(_run_fwd, _run_bwd)
