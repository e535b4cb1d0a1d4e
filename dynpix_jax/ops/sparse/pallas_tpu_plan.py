"""The plan of the TPU kernel: taps, tiles, blocks of channels, layers that follow, and their VMEM."""

from __future__ import annotations

import dataclasses
import itertools
import math

import jax.numpy as jnp

from dynpix_jax.ops.conv import Pair

LANES = 128
VMEM_LIMIT = 16 * 2**20
"""Bytes of vector memory that the kernel of a convolution requests: the default of a TPU v5e."""
VMEM_LIMIT_OF_CHAINS = 48 * 2**20
"""With 1x1 convolutions behind it, whose weights stay in vector memory, too; a v5e, v5p or v6e has more."""
# What a plan may take of it by its own estimate; the rest is left to the compiler.
VMEM_SHARE = 15 / 16

# (rows, columns) of output positions, small ones first: a small tile wastes less at the edges of a mask.
_TILES = ((8, 16), (16, 16), (16, 32))
# Multiply-accumulates that a step in bfloat16 should have, so that its fixed cost (a third of a microsecond)
# is the smaller part: 0.7 microseconds at the nominal speed of a v5e. Calculated, not measured.
_STEP_MACS = 2**26
# A float32 product at full precision takes six bfloat16 products.
PASSES = {"float32": 6, "bfloat16": 1}


@dataclasses.dataclass(frozen=True)
class Axis:
    """Reads of the taps along rows or columns, in the padded input that is split into phases.

    A phase is every ``stride``-th row; within phases, a strided convolution has stride 1.

    Attributes:
        taps: (index of the phase, offset in positions) of each tap.
        phases: Phases that are read, ascending.
    """

    taps: tuple[Pair, ...]
    phases: tuple[int, ...]

    @classmethod
    def of(cls, size: int, stride: int, dilation: int) -> Axis:
        """The axis of a kernel with ``size`` taps."""
        phases = tuple(sorted({tap * dilation % stride for tap in range(size)}))
        taps = ((phases.index(tap * dilation % stride), tap * dilation // stride) for tap in range(size))
        return cls(tuple(taps), phases)

    @property
    def reach(self) -> int:
        """Length of a window beyond its tile, in positions."""
        return max(shift for _, shift in self.taps)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The static plan of one convolution.

    Attributes:
        rows: Taps along rows.
        columns: Taps along columns.
        tile: Output rows and columns of a step.
        channels: Input channels of a step, a multiple of 128.
        features: Output channels of a step, a multiple of 128.
        blocks: Numbers of steps over the input channels and over the output channels.
        itemsize: Bytes of a value.
        chain: Output channels of each 1x1 convolution that follows in the same step, multiples of 128.
        reads_output: Whether a step reads the tile that it writes.
    """

    rows: Axis
    columns: Axis
    tile: Pair
    channels: int
    features: int
    blocks: Pair
    itemsize: int
    chain: tuple[int, ...] = ()
    reads_output: bool = False

    @property
    def taps(self) -> int:
        """Taps of the kernel."""
        return len(self.rows.taps) * len(self.columns.taps)

    @property
    def positions(self) -> int:
        """Positions of a tile."""
        return self.tile[0] * self.tile[1]

    @property
    def out_features(self) -> int:
        """Channels that a step writes."""
        return self.chain[-1] if self.chain else self.features

    @property
    def chain_weights(self) -> int:
        """Weights of the 1x1 convolutions that follow."""
        return sum(math.prod(pair) for pair in itertools.pairwise((self.features, *self.chain)))

    @property
    def vmem_limit(self) -> int:
        """Bytes of vector memory that the kernel requests."""
        return VMEM_LIMIT_OF_CHAINS if self.chain else VMEM_LIMIT

    @property
    def copies(self) -> int:
        """Copies of a step: 1, a window around all rows of taps; or a slab of rows for each row of taps.

        Slabs are chosen if they have fewer rows in all (large dilations).
        """
        window = len(self.rows.phases) * (self.tile[0] + self.rows.reach)
        slabs = len(self.rows.taps) * self.tile[0]
        return len(self.rows.taps) if slabs < window else 1

    @property
    def copied(self) -> tuple[int, int, int]:
        """(phases, rows, columns) of one copy; whole sublanes of columns."""
        sublanes = 32 // self.itemsize
        columns = -(-(self.tile[1] + self.columns.reach) // sublanes) * sublanes
        if self.copies > 1:
            return len(self.columns.phases), self.tile[0], columns
        phases = len(self.rows.phases) * len(self.columns.phases)
        return phases, self.tile[0] + self.rows.reach, columns

    @property
    def step_macs(self) -> int:
        """Multiply-accumulates of a step."""
        return self.positions * (self.taps * self.channels * self.features + self.chain_weights)

    @property
    def vmem(self) -> int:
        """Upper bound on the bytes of vector memory; compilers needed .5 to .95 of it."""
        phases, rows, columns = self.copied
        window = self.copies * phases * rows * columns * self.channels * self.itemsize
        weights = self.taps * self.channels * self.features * self.itemsize
        result = (2 if self.reads_output else 1) * self.positions * self.out_features * self.itemsize
        sums = self.positions * (self.features + (max(self.chain) if self.chain else 0)) * 4
        operands = (self.taps * self.positions + self.features) * self.channels * self.itemsize
        small = 2 * (self.tile[0] * LANES + 8 * self.features) * 4
        # Copies in and out are double-buffered. Of float32 weights a v6e keeps another copy, split for its
        # matrix unit.
        split = 1 if self.itemsize == 4 else 0
        weights *= self.weight_buffers + split
        weights += (1 + split) * self.chain_weights * self.itemsize
        return 2 * window + weights + 2 * result + 2 * sums + operands + small

    @property
    def weight_buffers(self) -> int:
        """1 if the weights stay for all tiles, 2 if they change from step to step."""
        return 1 if self.blocks[0] == 1 else 2


def make_plan(
    channels: int,
    features: int,
    window: Pair,
    strides: Pair,
    dilation: Pair,
    dtype: jnp.dtype,
    *,
    chain: tuple[int, ...] = (),
    reads_output: bool = False,
) -> Plan | None:
    """The first plan that fits into VMEM, or None.

    Preferred are few blocks of input channels, then few of output channels, then the smallest tile with
    enough work for a step.

    Args:
        chain: Output channels of the 1x1 convolutions that follow, which read all features at once.
        reads_output: Whether a step reads the tile that it writes.
    """
    rows, columns = (Axis.of(*axis) for axis in zip(window, strides, dilation, strict=True))
    enough = _STEP_MACS // PASSES[dtype.name]
    last = (tuple(_blocks(width)[0] for width in chain), reads_output)
    for cin, cout in itertools.product(_blocks(channels), _blocks(features)[: 1 if chain else None]):
        blocks = (-(-channels // cin), -(-features // cout))
        plans = [Plan(rows, columns, tile, cin, cout, blocks, dtype.itemsize, *last) for tile in _TILES]
        fitting = [plan for plan in plans if plan.vmem <= VMEM_SHARE * plan.vmem_limit]
        if fitting:
            return next((plan for plan in fitting if plan.step_macs >= enough), fitting[-1])
    return None


def _blocks(channels: int) -> list[int]:
    """Sizes of a block, descending, each the smallest that needs no more blocks than it does."""
    lanes = -(-channels // LANES)
    return sorted({-(-lanes // blocks) * LANES for blocks in range(1, lanes + 1)}, reverse=True)
