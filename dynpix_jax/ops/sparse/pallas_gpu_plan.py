"""What the GPU kernel reads at each step: plain integers and tables, checked without a device.

The convolution is a matrix product whose sum runs over the taps of the window and the channels of the input.
The kernel takes it in steps of 64 terms, 128 bytes of 16-bit numbers: eight pieces of 16 bytes, each from one
tap and eight neighbouring channels of the input, and the 64 rows of the weights that belong to them.
"""

from __future__ import annotations

import dataclasses
import math

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
"""Taps inside the image are told by the bits of an int32; the sign bit stays clear."""

# Where no tap of the window is meant: its bit is never set, the copy fills in zeros.
_NO_TAP = 31

# float32 is two 16-bit numbers, high + low. Of their four products the last is below the rounding of the
# others. (part of the input, part of the weights)
_EXACT_PARTS = ((0, 0), (0, 1), (1, 0))


@dataclasses.dataclass(frozen=True)
class Plan:
    """The static side of one call.

    Attributes:
      input: (B, H, W).
      output: (B, Ho, Wo).
      window: (kh, kw).
      strides: of the output positions in the input.
      dilation: of the window.
      channels: Cin, filled up to a multiple of 8.
      features: Cout.
      columns: features of a block.
      exact: float32, as high and low halves in bfloat16.
      blocks: that run at a time, each taking tiles until none is left.
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
        """Of the output."""
        return math.prod(self.output)

    @property
    def taps(self) -> int:
        """Of the window."""
        return self.window[0] * self.window[1]

    @property
    def parts(self) -> int:
        """Arrays that stand for the input, side by side along its channels, and for the weights."""
        return 2 if self.exact else 1

    @property
    def weight_rows(self) -> int:
        """Of one part of the weights: taps x channels, filled up to whole steps."""
        return _round_up(self.taps * self.channels, DEPTH)

    @property
    def column_blocks(self) -> int:
        """Blocks over the features."""
        return -(-self.features // self.columns)

    @property
    def steps(self) -> int:
        """Of the sum."""
        return self.weight_rows // DEPTH * (len(_EXACT_PARTS) if self.exact else 1)

    @property
    def pieces(self) -> int:
        """16-byte pieces of one position of the input, all parts."""
        return self.parts * self.channels // PIECE

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block, barriers left out."""
        return STAGES * DEPTH * 2 * (ROWS + self.columns)

    def tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What each step reads.

        Returns:
          int32 (steps, 8): from the window's corner to each piece, counted in pieces.
          int32 (steps, 8): the tap that each piece belongs to; one that is never inside where there is none.
          int32 (steps,): the first of the 64 rows of weights.
        """
        per_tap = self.channels // PIECE
        blocks = np.arange(self.weight_rows // PIECE).reshape(-1, DEPTH // PIECE)
        if self.channels % DEPTH == 0:
            # All taps of 64 channels in turn: neighbouring windows overlap, and the first-level cache still
            # holds what the tap before read.
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
        """Where the windows of output positions begin, and which of their taps lie inside the image.

        Only elementwise arithmetic on int32: the kernel runs it on registers.

        Args:
          positions: int32, any shape; flat positions of the output. From :attr:`positions` on: none.

        Returns:
          int32: the piece at the window's upper left corner, which may lie outside the image.
          int32: bit ``i * kw + j`` is set where tap (i, j) lies inside; 0 where the position is none.
        """
        _, out_height, out_width = self.output
        _, height, width = self.input
        pad = torch_padding(self.window, self.dilation)
        image, within = _divmod(positions, out_height * out_width)
        row, col = _divmod(within, out_width)
        row, col = row * self.strides[0] - pad[0], col * self.strides[1] - pad[1]
        # No bit meets another in the product: it holds one bit for each pair.
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
    exact: bool,
    cores: int,
) -> Plan:
    """The plan for an input of ``size`` (B, H, W) and a kernel of shape (kh, kw, Cin, Cout).

    Args:
      cores: streaming multiprocessors of the device.
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
        columns=_columns(math.prod(output), max(kernel[3], 1), exact, cores),
        exact=exact,
        blocks=cores,
    )


def _columns(positions: int, features: int, exact: bool, cores: int) -> int:
    """Features of a block.

    Wide blocks gather the input fewer times, narrow ones leave fewer cores idle in the last round. Rounds are
    reckoned at density 0.5, a step of a block as its columns plus half its rows. Not measured on a device.
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
