"""3x3 convolution by F(4x4, 3x3) (Winograd; Lavin and Gray, CVPR 2016): a quarter of the multiplications.

Tiles of 6x6 values give 4x4 results. Tiles, kernel and results go through a fixed transform each; between, 36
products of (tiles, Cin) and (Cin, Cout) take the place of nine for each of 16 results. All of it is
matrix products and copies of rows, which XLA does well on a CPU; sums of slices took twice as long. A dilated
kernel reads tiles whose values lie ``dilation`` apart.

Results differ from those of a direct convolution by up to 3e-5 of the largest one, and by 5e-6 in the mean
square; gradients likewise.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dynpix_jax.core.typing import Array

Pair = tuple[int, int]

_OUT, _IN = 4, 6  # results and values on a side of a tile

# Tiles at a time: with fewer the kernel is read more often, with more the values between take more memory.
_TILES = 2048
# It pays with at least so many channels and tiles, and at most so many results a position: a convolution, and
# its gradients. Measured.
_CONVOLUTION = (192, 192, 1.35)
_GRADIENTS = (96, 64, 1.5)

_OF_TILE = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_OF_KERNEL = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
_OF_RESULT = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])


def pays(x: Array, kernel: Array, dilation: Pair, *, gradients: bool = False) -> bool:
    """Whether a CPU is faster with it than with XLA's convolution of stride 1 (docs/sparse-execution.md).

    Never for ``jax.default_matmul_precision("highest")``, which asks for the last digits.

    Args:
        x: (B, H, W, Cin).
        kernel: (kh, kw, Cin, Cout).
        dilation: Of the kernel's rows and columns.
        gradients: Whether it is for the gradients of both.
    """
    precise = getattr(jax.config, "jax_default_matmul_precision", None) in ("highest", "float32")
    known = all(isinstance(side, int) and side > 0 for side in x.shape)  # not in an export for any size
    if precise or kernel.shape[:2] != (3, 3) or not x.dtype == kernel.dtype == jnp.float32 or not known:
        return False
    channels, fewest, beyond = _GRADIENTS if gradients else _CONVOLUTION
    # The kernel is transformed for as many tiles as there are; those beyond the border are for nothing.
    tiles = math.prod((len(x), *_tiles_along(x.shape, dilation)))
    enough = min(kernel.shape[2:]) >= channels and tiles >= fewest
    return enough and tiles * _OUT**2 <= beyond * math.prod(x.shape[:3])


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def winograd_conv(x: Array, kernel: Array, dilation: Pair) -> Array:
    """3x3 convolution of stride 1 with the padding of PyTorch; differentiable in reverse mode.

    Args:
        x: (B, H, W, Cin).
        kernel: (3, 3, Cin, Cout).
        dilation: Of the kernel's rows and columns.

    Returns:
        (B, H, W, Cout).
    """
    y: Array = _winograd_conv(x, kernel, dilation)
    return y


def _forward(x: Array, kernel: Array, dilation: Pair) -> tuple[Array, tuple[Array, Array]]:
    return winograd_conv(x, kernel, dilation), (x, kernel)


def winograd_gradients(dilation: Pair, saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    """The gradients of x and kernel, which are ``saved``, for that of the result."""
    x, kernel = saved
    to_x = winograd_conv(gradient, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), dilation)
    return to_x, _winograd_to_kernel(x, gradient, dilation)


winograd_conv.defvjp(_forward, winograd_gradients)


@partial(jax.jit, static_argnums=2)
def _winograd_conv(x: Array, kernel: Array, dilation: Pair) -> Array:
    shape, features = x.shape, kernel.shape[-1]
    weights = _transform(_OF_KERNEL, kernel, features)
    chunks, size = _chunks(shape, dilation)

    def results(first: Array) -> Array:
        tiles = _transform(_OF_TILE, _gather(x, dilation, first, size, _IN), shape[-1])
        products = lax.dot_general(tiles, weights, (((2,), (1,)), ((0,), (0,))))
        return _transform(_OF_RESULT, products, features)

    if chunks == 1:
        found = results(jnp.int32(0))
    else:
        found = lax.map(results, size * jnp.arange(chunks, dtype=jnp.int32))
    y = _read(found.reshape(-1, features), _places(shape, dilation, size).reshape(-1))
    return y.reshape(*shape[:3], features)


@partial(jax.jit, static_argnums=2)
def _winograd_to_kernel(x: Array, gradient: Array, dilation: Pair) -> Array:
    chunks, size = _chunks(x.shape, dilation)

    def products(chunk: Array | int) -> Array:
        first = jnp.int32(chunk * size)
        tiles = _transform(_OF_TILE, _gather(x, dilation, first, size, _IN), x.shape[-1])
        upstream = _gather(gradient, dilation, first, size, _OUT)
        upstream = _transform(_OF_RESULT.T, upstream, gradient.shape[-1])
        return lax.dot_general(tiles, upstream, (((1,), (1,)), ((0,), (0,))))

    total = lax.fori_loop(1, chunks, lambda chunk, total: total + products(chunk), products(0))
    return _transform(_OF_KERNEL.T, total, gradient.shape[-1]).reshape(3, 3, x.shape[-1], -1)


PROGRAMS = ("_winograd_conv", "_winograd_to_kernel")
"""Names of the programs whose products `flops` counts as those of a convolution: see `convolution_macs`."""


def convolution_macs(first: tuple[int, ...], second: tuple[int, ...]) -> float:
    """MACs of a convolution of the shapes that a program of `PROGRAMS` takes."""
    *positions, inputs = first
    return 9.0 * math.prod(positions) * inputs * second[-1]


def _transform(matrix: np.ndarray, values: Array, channels: int) -> Array:
    """The transform along both sides: (side * side, ...) -> (side' * side', rows, channels)."""
    both = jnp.asarray(np.kron(matrix, matrix), values.dtype)
    return (both @ values.reshape(both.shape[1], -1)).reshape(len(both), -1, channels)


def _tiles_along(shape: tuple[int, ...], dilation: Pair) -> Pair:
    rows, cols = (-(-side // (_OUT * d)) * d for side, d in zip(shape[1:3], dilation, strict=True))
    return rows, cols


def _chunks(shape: tuple[int, ...], dilation: Pair) -> Pair:
    """How many chunks of how many tiles; the last tiles may be idle."""
    tiles = math.prod((shape[0], *_tiles_along(shape, dilation)))
    chunks = -(-tiles // _TILES)
    return chunks, -(-tiles // chunks)


def _gather(x: Array, dilation: Pair, first: Array, size: int, side: int) -> Array:
    """(side * side * size, C): the values of tiles ``first`` to ``first + size``, around their results."""
    batch, height, width, channels = x.shape
    along = _tiles_along(x.shape, dilation)
    tile = first + jnp.arange(size, dtype=jnp.int32)
    image, row, col = tile // (along[0] * along[1]), tile // along[1] % along[0], tile % along[1]
    steps = np.arange(side, dtype=np.int32)[:, None] - (side - _OUT) // 2
    row, col = (t // d * (_OUT * d) + t % d + d * steps for t, d in zip((row, col), dilation, strict=True))
    row, col = row[:, None], col[None]
    inside = (image < batch) & (row >= 0) & (row < height) & (col >= 0) & (col < width)
    index = jnp.where(inside, (image * height + row) * width + col, batch * height * width)
    return _read(x.reshape(-1, channels), index.reshape(-1))


def _read(rows: Array, index: Array) -> Array:
    """The rows of an index; zeros past the end.

    In a branch that is always taken, as in `ops.sparse.chunks.read_rows`: XLA would compute the index of
    every element anew.
    """
    any_value = rows[0, 0]
    always = (any_value == any_value) | (any_value != any_value)
    y: Array = lax.cond(
        always,
        lambda: rows.at[index].get(mode="fill", fill_value=0),
        lambda: jnp.zeros((index.size, rows.shape[-1]), rows.dtype),
    )
    return y


def _places(shape: tuple[int, ...], dilation: Pair, size: int) -> Array:
    """int32 (B, H, W): where among the results, (chunks, 16, size), each position is found."""
    along, of_sides = _tiles_along(shape, dilation), []
    for side, d in zip(shape[1:3], dilation, strict=True):
        block, rest = np.divmod(np.arange(side, dtype=np.int32), _OUT * d)
        of_sides.append((block * d + rest % d, rest // d))
    (row, of_rows), (col, of_cols) = of_sides
    image = jnp.arange(shape[0], dtype=jnp.int32)[:, None, None]
    tile = (image * along[0] + row[:, None]) * along[1] + col
    places: Array = (tile // size * _OUT**2 + of_rows[:, None] * _OUT + of_cols) * size + tile % size
    return places
