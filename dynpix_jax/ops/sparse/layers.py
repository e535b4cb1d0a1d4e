"""Layers of a chain as plain data, and their application to rows or to whole maps.

``x -> Convolution -> Affine -> Relu -> Convolution (1x1) -> Affine`` is the inside of a bottleneck; a norm by
stored moments is an :class:`Affine`. After the first layer, any function of single positions can be used that
is a pytree and takes (..., C), such as ``jax.tree_util.Partial(layer_norm, scale, bias)``. :class:`Shortcut`
defines how the result is added to the map that it is written into. On rows that share a mask, a chain
consists of :class:`ResidualBlock`, whose convolutions are each followed by an :class:`Interpolation`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar
from typing import cast as typed

import jax
import jax.numpy as jnp

from dynpix_jax.core.typing import Array
from dynpix_jax.ops import winograd
from dynpix_jax.ops.affine import affine
from dynpix_jax.ops.conv import Pair, conv
from dynpix_jax.ops.depthwise import depthwise_conv
from dynpix_jax.ops.interpolation import Normalize

Tree = TypeVar("Tree")


@partial(
    jax.tree_util.register_dataclass, data_fields=["kernel", "bias"], meta_fields=["strides", "dilation"]
)
@dataclasses.dataclass(frozen=True)
class Convolution:
    """A convolution, padded with ``dilation * (k // 2)`` zeros on every side.

    Attributes:
        kernel: (kh, kw, Cin, Cout).
        bias: (Cout,) or None.
        strides: Strides of rows and columns.
        dilation: Dilation of the kernel's rows and columns.
    """

    kernel: Array
    bias: Array | None = None
    strides: Pair = (1, 1)
    dilation: Pair = (1, 1)

    @property
    def window(self) -> Pair:
        """(kh, kw)."""
        return self.kernel.shape[0], self.kernel.shape[1]

    @property
    def pointwise(self) -> bool:
        """Whether it reads single positions."""
        return self.window == (1, 1) and self.strides == (1, 1)

    def by_winograd(self, x: Array) -> bool:
        """Whether `everywhere` runs by Winograd on a CPU."""
        return self.strides == (1, 1) and winograd.pays(x, self.kernel, self.dilation)

    def on_rows(self, rows: Array) -> Array:
        """(n, kh, kw, Cin), or (n, Cin) for a 1x1 kernel, -> (n, Cout); summed in float32 at least."""
        wide = jnp.promote_types(rows.dtype, jnp.float32)
        kernel = self.kernel.reshape(-1, self.kernel.shape[-1])
        y = jnp.dot(rows.reshape(len(rows), -1), kernel, preferred_element_type=wide)
        return (y if self.bias is None else y + self.bias).astype(rows.dtype)

    def everywhere(self, x: Array) -> Array:
        """(B, H, W, Cin) -> (B, Ho, Wo, Cout)."""
        return conv(x, self.kernel, strides=self.strides, dilation=self.dilation, bias=self.bias)


@partial(jax.tree_util.register_dataclass, data_fields=["kernel"], meta_fields=["strides", "dilation"])
@dataclasses.dataclass(frozen=True)
class Depthwise:
    """A depthwise convolution, padded like :class:`Convolution`.

    Attributes:
        kernel: (kh, kw, 1, C).
        strides: Strides of rows and columns.
        dilation: Dilation of the kernel's rows and columns.
    """

    kernel: Array
    strides: Pair = (1, 1)
    dilation: Pair = (1, 1)

    @property
    def window(self) -> Pair:
        """(kh, kw)."""
        return self.kernel.shape[0], self.kernel.shape[1]

    def on_rows(self, rows: Array) -> Array:
        """(n, kh, kw, C) -> (n, C)."""
        return (rows * self.kernel[:, :, 0]).sum((1, 2))

    def everywhere(self, x: Array) -> Array:
        """(B, H, W, C) -> (B, Ho, Wo, C)."""
        return depthwise_conv(x, self.kernel, strides=self.strides, dilation=self.dilation)


WindowLayer = Convolution | Depthwise
"""First layer of a chain."""


@partial(jax.tree_util.register_dataclass, data_fields=["multiplier", "offset"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Affine:
    """``x * multiplier + offset``, each (C,), in float32: a norm by its stored moments."""

    multiplier: Array
    offset: Array

    def __call__(self, x: Array) -> Array:
        return affine(x, self.multiplier, self.offset)


@partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Relu:
    """max(x, 0)."""

    def __call__(self, x: Array) -> Array:
        return jax.nn.relu(x)


@partial(jax.tree_util.register_dataclass, data_fields=["lam"], meta_fields=["normalize"])
@dataclasses.dataclass(frozen=True)
class Interpolation:
    """Interpolates skipped positions from computed neighbours; see `ops.interpolate_masked`.

    Attributes:
        lam: float32 scalar; parameter of the weights.
        normalize: Normalisation of the weights.
    """

    lam: Array
    normalize: Normalize = "full"


@partial(jax.tree_util.register_dataclass, data_fields=["layers"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class ResidualBlock:
    """ReLU(x + layers(x)); on rows that share a mask, where each convolution is interpolated."""

    layers: tuple[Layer, ...]


Layer = Convolution | Depthwise | Interpolation | ResidualBlock | Callable[[Array], Array]
"""A callable is a function of single positions: Affine, Relu, or a user's own."""


@partial(jax.tree_util.register_dataclass, data_fields=["affine"], meta_fields=["relu", "rectified"])
@dataclasses.dataclass(frozen=True)
class Shortcut:
    """Adds a chain's result y to the map that it is written into, as in a residual block.

    I is made of the map; O = ReLU(I + y) at active positions and ReLU(I) at the others, or without ReLU.

    Attributes:
        affine: Makes I of the map; None: the map is I.
        relu: Whether a ReLU follows the sum.
        rectified: Whether the map is known to have no negative values.
    """

    affine: Affine | None = None
    relu: bool = True
    rectified: bool = False

    @property
    def untouched(self) -> bool:
        """Whether skipped positions keep the values of the map."""
        return self.affine is None and (self.rectified or not self.relu)

    def join(self, init: Array, y: Array) -> Array:
        """O at active positions."""
        return self._activate((init if self.affine is None else self.affine(init)) + y)

    def idle(self, init: Array) -> Array:
        """O at skipped positions."""
        if self.untouched:
            return init
        return self._activate(init if self.affine is None else self.affine(init))

    def _activate(self, out: Array) -> Array:
        return jax.nn.relu(out) if self.relu else out


def cast(layers: Tree, dtype: jnp.dtype) -> Tree:
    """The layers with their floating arrays in ``dtype``; interpolations and norms stay as they are."""
    kept = Interpolation | Affine

    def leaf(value: Array) -> Array:
        return jnp.asarray(value, dtype) if jnp.issubdtype(jnp.result_type(value), jnp.floating) else value

    def layer(node: object) -> object:
        return node if isinstance(node, kept) else leaf(typed(Array, node))

    cast_layers: Tree = jax.tree.map(layer, layers, is_leaf=lambda node: isinstance(node, kept))
    return cast_layers


def on_rows(layers: Sequence[Layer], rows: Array) -> Array:
    """The chain at single positions: windows (n, kh, kw, Cin) or rows (n, Cin) -> (n, Cout)."""
    for layer in layers:
        if isinstance(layer, Convolution | Depthwise):
            rows = layer.on_rows(rows)
        else:
            assert callable(layer)  # `bind` has checked that these are layers of single positions
            rows = layer(rows)
    return rows


def everywhere(
    layers: Sequence[Layer],
    x: Array,
    *,
    convolve: Callable[[WindowLayer, Array], Array] | None = None,
    interpolate: Callable[[Interpolation, Array], Array] | None = None,
) -> Array:
    """The chain on whole maps, (B, H, W, Cin) -> (B, Ho, Wo, Cout).

    Args:
        layers: The layers in order.
        x: The input.
        convolve: Runs a convolution; None: XLA's.
        interpolate: Runs an interpolation; required if the chain has one.
    """
    for layer in layers:
        if isinstance(layer, Convolution | Depthwise):
            x = layer.everywhere(x) if convolve is None else convolve(layer, x)
        elif isinstance(layer, ResidualBlock):
            inside = everywhere(layer.layers, x, convolve=convolve, interpolate=interpolate)
            x = jax.nn.relu(x + inside)
        elif isinstance(layer, Interpolation):
            assert interpolate is not None  # chains with interpolations are run on rows that share a mask
            x = interpolate(layer, x)
        else:
            x = layer(x)
    return x
