"""The reads of the GPU kernel at each step: plain integers and tables, checked without a device.

The convolution is a matrix product whose sum runs over the taps of the window and the channels of the input.
A step of the kernel takes 64 terms, 128 bytes of 16-bit numbers: eight pieces of 16 bytes, each from one tap
and eight neighbouring channels of the input, and the 64 rows of the weights that belong to them.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from dynpix_jax.core.typing import Array
from dynpix_jax.ops.conv import Pair, conv_output_size, torch_padding

ROWS = 128
"""Active positions of a block: 64 for each of two warpgroups, the rows of one wgmma instruction."""

DEPTH = 64
"""Terms of the sum of one step: one 128-byte row of swizzled shared memory."""

PIECE = 8
"""Numbers of 16 bits in the 16 bytes of one asynchronous copy."""

STAGES = 4
"""Steps whose copies and products overlap."""

MAX_TAPS = 31
"""The bits of an int32 mark the taps inside the image; the sign bit stays clear."""

# Stands for no tap: its bit is never set, so the copy writes zeros.
_NO_TAP = 31

# (part of the input, part of the weights): float32 is split into two 16-bit numbers, high + low. The fourth
# product is below the rounding of the others.
_EXACT_PARTS = ((0, 0), (0, 1), (1, 0))


class Lists(NamedTuple):
    """The rows of the product.

    Attributes:
        sources: int32 (positions,); the output position whose window a row reads.
        targets: int32 (positions,); the row of the output that it is written to.
        number: int32 scalar; number of rows.
    """

    sources: Array
    targets: Array
    number: Array


class Finish(NamedTuple):
    """What happens to sums before they are written.

    Attributes:
        steps: The arithmetic on single channels, see `fusion.apply`.
        shortcut: See `fusion.shortcut_steps`.
    """

    steps: tuple[str, ...]
    shortcut: tuple[tuple[str, ...], bool] | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """The static side of one call.

    Attributes:
        input: (B, H, W).
        output: (B, Ho, Wo).
        window: (kh, kw).
        strides: Strides of the output positions in the input.
        dilation: Dilation of the window.
        channels: Cin, padded to a multiple of 8.
        features: Cout.
        columns: Features of a block.
        exact: Whether the input is float32, split into high and low halves in bfloat16.
        blocks: Number of blocks that run at a time; each takes tiles until none is left.
    """

    input: tuple[int, int, int]
    output: tuple[int, int, int]
    window: Pair
    strides: Pair
    dilation: Pair
    channels: int
    features: int
    columns: int
    exact: bool
    blocks: int

    @property
    def positions(self) -> int:
        """Number of output positions."""
        return math.prod(self.output)

    @property
    def taps(self) -> int:
        """Number of taps of the window."""
        return self.window[0] * self.window[1]

    @property
    def parts(self) -> int:
        """Number of parts of the input, side by side along its channels, and of the weights."""
        return 2 if self.exact else 1

    @property
    def weight_rows(self) -> int:
        """Rows of one part of the weights: taps x channels, padded to whole steps."""
        return _round_up(self.taps * self.channels, DEPTH)

    @property
    def column_blocks(self) -> int:
        """Number of blocks over the features."""
        return -(-self.features // self.columns)

    @property
    def steps(self) -> int:
        """Number of steps of the sum."""
        return self.weight_rows // DEPTH * (len(_EXACT_PARTS) if self.exact else 1)

    @property
    def pieces(self) -> int:
        """Number of 16-byte pieces of one position of the input, over all parts."""
        return self.parts * self.channels // PIECE

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block, without barriers."""
        return STAGES * DEPTH * 2 * (ROWS + self.columns)

    def tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tables of the reads of each step.

        Returns:
            Offsets of the pieces from the window's corner in pieces, int32 (steps, 8); the tap of each piece,
            int32 (steps, 8), or a tap that is never inside; the first of the 64 rows of weights, int32
            (steps,).
        """
        per_tap = self.channels // PIECE
        blocks = np.arange(self.weight_rows // PIECE).reshape(-1, DEPTH // PIECE)
        if self.channels % DEPTH == 0:
            # All taps of 64 channels in turn: neighbouring windows overlap, and the first-level cache still
            # holds the reads of the previous tap.
            blocks = blocks[np.arange(len(blocks)).reshape(self.taps, -1).T.reshape(-1)]
        tap, piece = blocks // per_tap, blocks % per_tap
        row, column = tap // self.window[1] * self.dilation[0], tap % self.window[1] * self.dilation[1]
        offset = (row * self.input[2] + column) * self.pieces + piece
        outside = tap >= self.taps
        offset, tap = np.where(outside, 0, offset), np.where(outside, _NO_TAP, tap)
        parts = _EXACT_PARTS if self.exact else ((0, 0),)
        offsets = np.stack([offset + part * per_tap for part, _ in parts], 1)
        first = np.stack([blocks[:, 0] * PIECE + part * self.weight_rows for _, part in parts], 1)
        taps = np.repeat(tap, len(parts), 0)
        return (
            offsets.reshape(-1, DEPTH // PIECE).astype(np.int32),
            taps.astype(np.int32),
            first.reshape(-1).astype(np.int32),
        )

    def corners(self, positions: Array) -> tuple[Array, Array]:
        """The corners of the windows of output positions, and their taps inside the image.

        Only elementwise arithmetic on int32: the kernel runs it on registers.

        Args:
            positions: int32, any shape; flat positions of the output. Values from :attr:`positions` on are
                idle.

        Returns:
            The piece at the window's upper left corner, which may lie outside the image; and a bit set, in
            which bit ``i * kw + j`` is set if tap (i, j) lies inside, 0 for idle positions. Both int32.
        """
        _, out_height, out_width = self.output
        _, height, width = self.input
        pad = torch_padding(self.window, self.dilation)
        image, within = _divmod(positions, out_height * out_width)
        row, col = _divmod(within, out_width)
        row, col = row * self.strides[0] - pad[0], col * self.strides[1] - pad[1]
        # The product has one bit for each pair of bits.
        inside = _inside(row, height, self.window[0], self.dilation[0], self.window[1]) * _inside(
            col, width, self.window[1], self.dilation[1], 1
        )
        corner = ((image * height + row) * width + col) * self.pieces
        return corner, jnp.where(positions < self.positions, inside, jnp.int32(0))


def make_plan(
    size: tuple[int, int, int],
    kernel: tuple[int, ...],
    strides: Pair,
    dilation: Pair,
    *,
    exact: bool,
    cores: int,
) -> Plan:
    """The plan for an input of ``size`` (B, H, W) and a kernel of shape (kh, kw, Cin, Cout).

    Args:
        cores: Streaming multiprocessors of the device.
    """
    window = (kernel[0], kernel[1])
    output = (size[0], *conv_output_size((size[1], size[2]), window, strides, dilation))
    return Plan(
        input=size,
        output=output,
        window=window,
        strides=strides,
        dilation=dilation,
        channels=_round_up(max(kernel[2], 1), PIECE),
        features=kernel[3],
        columns=_columns(math.prod(output), max(kernel[3], 1), cores, exact=exact),
        exact=exact,
        blocks=cores,
    )


def _columns(positions: int, features: int, cores: int, *, exact: bool) -> int:
    """Features of a block.

    Wide blocks gather the input fewer times, narrow ones leave fewer cores idle in the last round. The cost
    model assumes density 0.5, and that a step costs a block's columns plus half its rows. Not measured.
    """
    choices = []
    # The exact product holds a second set of accumulators in registers.
    for widest in (128,) if exact else (256, 192, 128):
        count = -(-features // widest)
        columns = _round_up(-(-features // count), DEPTH)
        rounds = -(-(-(-positions // (2 * ROWS)) * count) // cores)
        choices.append((rounds * (columns + ROWS // 2), -columns))
    return -min(choices)[1]


def _inside(start: Array, size: int, taps: int, dilation: int, shift: int) -> Array:
    """Bit ``i * shift`` is set where ``start + i * dilation`` lies in [0, size)."""
    bits = jnp.zeros_like(start)
    for i in range(taps):
        at = start + i * dilation
        bits = bits + jnp.where((at >= 0) & (at < size), jnp.int32(1 << (i * shift)), jnp.int32(0))
    return bits


def _divmod(value: Array, divisor: int) -> tuple[Array, Array]:
    by = jnp.full_like(value, divisor)
    return lax.div(value, by), lax.rem(value, by)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
