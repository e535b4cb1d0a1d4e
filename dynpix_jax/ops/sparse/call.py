"""The arguments of one call, checked and bound: the input of every implementation."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import cast as typed

import jax
import jax.numpy as jnp

from dynpix_jax.core.typing import Array, Mask
from dynpix_jax.ops.conv import conv_output_size
from dynpix_jax.ops.sparse.active import ActiveSet, active_set
from dynpix_jax.ops.sparse.layers import (
    Convolution,
    Depthwise,
    Layer,
    ResidualBlock,
    Shortcut,
    WindowLayer,
    cast,
    on_rows,
)
from dynpix_jax.ops.sparse.rows import ActiveRows

Active = Mask | ActiveSet | ActiveRows
"""The positions to compute: a mask bool (B, Ho, Wo), its active set, or rows that share a mask."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["x", "active", "layers", "combine", "init"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Call:
    """The arguments of `sparse_block`, checked by :func:`bind`; a pytree.

    Attributes:
        x: (B, H, W, Cin).
        active: The positions to compute, in the output.
        layers: The chain, in the dtype of ``x``.
        combine: How to combine the result with ``init``; None: it replaces ``init``.
        init: (B, Ho, Wo, Cout), the map that results are written into; None: zeros.
    """

    x: Array
    active: Active
    layers: tuple[Layer, ...]
    combine: Shortcut | None = None
    init: Array | None = None

    @property
    def mask(self) -> Mask:
        """bool (B, Ho, Wo)."""
        return self.active.mask if isinstance(self.active, ActiveSet | ActiveRows) else self.active

    @property
    def positions(self) -> ActiveSet:
        """The active set; made here if only a mask was given."""
        return self.active if isinstance(self.active, ActiveSet) else active_set(self.mask)

    @property
    def count(self) -> Array:
        """int32 scalar; number of active positions."""
        if isinstance(self.active, ActiveSet | ActiveRows):
            return self.active.count
        return jnp.sum(self.active, dtype=jnp.int32)

    @property
    def first(self) -> WindowLayer:
        """The first layer of a chain."""
        return typed(WindowLayer, self.layers[0])

    @property
    def convolution(self) -> Convolution:
        """The first layer, where it is no depthwise convolution."""
        return typed(Convolution, self.layers[0])

    @property
    def features(self) -> int:
        """Cout of a chain."""
        windows = jax.ShapeDtypeStruct((1, *self.first.window, self.x.shape[-1]), self.x.dtype)
        return int(jax.eval_shape(on_rows, self.layers, windows).shape[-1])

    @property
    def empty(self) -> bool:
        """Whether there is nothing to compute."""
        return any(0 in value.shape for value in jax.tree.leaves((self.x, self.mask, self.layers)))

    def convolutions(self) -> list[WindowLayer]:
        """The convolutions that read windows: the first of a chain, and those of residual blocks."""
        if not isinstance(self.active, ActiveRows):
            return [self.first]
        blocks = [layer.layers for layer in self.layers if isinstance(layer, ResidualBlock)]
        return [layer for layers in blocks for layer in layers if isinstance(layer, Convolution | Depthwise)]

    def single(self, x: Array, layer: WindowLayer) -> Call:
        """A call of a single convolution, at the positions of this call."""
        return Call(x, self.active, (layer,))

    def with_idle(self, written: Array) -> Array:
        """The result, given the map ``init`` with its active positions written."""
        if self.combine is None or self.combine.untouched:
            return written
        return jnp.where(self.mask[..., None], written, self.combine.idle(written))


def bind(
    x: Array,
    active: Active,
    layers: tuple[Layer, ...],
    combine: Shortcut | None = None,
    init: Array | None = None,
) -> Call:
    """Checks the arguments of `sparse_block`; a ValueError names the one that does not fit."""
    if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise _wrong("x", "floating (B, H, W, Cin)", f"{x.dtype} {x.shape}")
    layers = cast(tuple(layers), x.dtype)
    call = Call(x, active, layers, cast(combine, x.dtype if init is None else init.dtype), init)
    if isinstance(active, ActiveRows):
        _check_rows(call)
    else:
        _check_chain(call)
    return call


def _check_chain(call: Call) -> None:
    _check_layers(call)
    _check_weights(call)
    _check_maps(call)


def _check_layers(call: Call) -> None:
    """Checks that the chain is a convolution, then functions of single positions."""
    if not call.layers or not isinstance(call.layers[0], Convolution | Depthwise):
        raise _wrong("layers", "a chain that begins with a convolution", _names(call))
    for layer in call.layers[1:]:
        single = layer.pointwise if isinstance(layer, Convolution) else callable(layer)
        if not single:
            raise _wrong("layers", "functions of single positions after the first", _names(call))


def _check_weights(call: Call) -> None:
    """Checks the convolution's kernel, bias, strides and dilation."""
    first, x, channels = call.first, call.x, call.x.shape[-1]
    for name, pair in (("strides", first.strides), ("dilation", first.dilation)):
        if isinstance(pair, int) or len(pair) != 2 or min(pair) < 1:
            raise _wrong(name, "two positive integers", pair)
    expected = f"(kh, kw, {channels}, Cout)" if isinstance(first, Convolution) else f"(kh, kw, 1, {channels})"
    inside = (1, channels) if isinstance(first, Depthwise) else (channels,)
    if first.kernel.ndim != 4 or first.kernel.shape[2:][: len(inside)] != inside:
        raise _wrong("kernel", f"{expected} for x of shape {x.shape}", first.kernel.shape)
    bias = first.bias if isinstance(first, Convolution) else None
    if bias is not None and bias.shape != first.kernel.shape[-1:]:
        raise _wrong("bias", f"{first.kernel.shape[-1:]}", bias.shape)


def _check_maps(call: Call) -> None:
    """Checks the mask and ``init``."""
    first, x = call.first, call.x
    geometry = f"x {x.shape}, window {first.window}, strides {first.strides}, dilation {first.dilation}"
    shape = (
        x.shape[0],
        *conv_output_size((x.shape[1], x.shape[2]), first.window, first.strides, first.dilation),
    )
    if isinstance(call.active, ActiveSet):
        if call.active.shape != shape:
            raise _wrong("active", f"the active set of a mask {shape}", call.active.shape)
    elif call.mask.dtype != jnp.bool_ or call.mask.shape != shape:
        raise _wrong("mask", f"bool {shape} ({geometry})", f"{call.mask.dtype} {call.mask.shape}")
    if call.init is not None and call.init.shape != (*shape, call.features):
        raise _wrong("init", f"{(*shape, call.features)}", call.init.shape)
    if call.combine is not None and call.init is None:
        raise _wrong("init", "the map that a shortcut comes from", None)


def _check_rows(call: Call) -> None:
    if call.combine is not None or call.init is not None:
        raise _wrong("combine and init", "None on rows that share a mask", "others")
    if call.mask.shape != call.x.shape[:3]:
        raise _wrong("active", f"rows of a mask {call.x.shape[:3]}", call.mask.shape)
    if not call.layers or not all(isinstance(layer, ResidualBlock) for layer in call.layers):
        raise _wrong("layers", "residual blocks on rows that share a mask", _names(call))
    channels = call.x.shape[-1]
    for convolution in call.convolutions():
        shape = (3, 3, channels, channels)
        if convolution.kernel.shape != shape or not isinstance(convolution, Convolution):
            raise _wrong("kernel", f"{shape}", convolution.kernel.shape)
        if convolution.strides != (1, 1) or convolution.dilation != (1, 1):
            raise _wrong("strides and dilation", "(1, 1)", (convolution.strides, convolution.dilation))


def _names(call: Call) -> str:
    return ", ".join(type(layer).__name__ for layer in call.layers) or "none"


def _wrong(what: str, expected: str, got: object) -> ValueError:
    return ValueError(f"sparse_block: {what} must be {expected}, got {got}")
