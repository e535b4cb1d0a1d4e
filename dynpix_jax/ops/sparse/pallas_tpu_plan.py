"""How the TPU kernel cuts a convolution up: taps, tiles, blocks of channels, and what they take of VMEM."""

from __future__ import annotations

import dataclasses
import itertools

import jax.numpy as jnp

from dynpix_jax.ops.conv import Pair

LANES = 128
VMEM_LIMIT = 16 * 2**20
"""Bytes of vector memory that the kernel asks for: what a TPU v5e gives by default."""
# What a plan may take by its own account, which leaves the compiler something for its purposes.
VMEM_BUDGET = 15 * 2**20

# (rows, columns) of output positions, small ones first: a small tile wastes less at the edges of a mask.
_TILES = ((8, 16), (16, 16), (16, 32))
# Multiply-accumulates that a step in bfloat16 should have, so that its fixed cost (a third of a microsecond)
# is the smaller part: 0.7 microseconds at the nominal speed of a v5e. Arithmetic, not measured on a device.
_STEP_MACS = 2**26
# A product of float32 at full precision is six of bfloat16.
PASSES = {"float32": 6, "bfloat16": 1}


@dataclasses.dataclass(frozen=True)
class Axis:
    """Where the taps of rows, or of columns, read the padded input that is split into phases.

    A phase is every ``stride``-th row; within phases, a strided convolution is one of stride 1.

    Attributes:
        taps: (index of the phase, how many positions further) of each.
        phases: Those that are read at all, ascending.
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
        """Positions that a window is longer than its tile."""
        return max(shift for _, shift in self.taps)


@dataclasses.dataclass(frozen=True)
class Plan:
    """How one convolution is cut up; static.

    Attributes:
        rows, columns: The taps.
        tile: Output rows and columns of a step.
        channels, features: Input and output channels of a step, multiples of 128.
        blocks: How many steps there are for all input channels, and for all output channels.
        itemsize: Bytes of a value.
    """

    rows: Axis
    columns: Axis
    tile: Pair
    channels: int
    features: int
    blocks: Pair
    itemsize: int

    @property
    def taps(self) -> int:
        """Taps of the kernel."""
        return len(self.rows.taps) * len(self.columns.taps)

    @property
    def positions(self) -> int:
        """Positions of a tile."""
        return self.tile[0] * self.tile[1]

    @property
    def copies(self) -> int:
        """1: a step copies one window around all rows of taps; else a slab of rows for each row of taps,
        where these are fewer rows in all (large dilations).
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
        return self.positions * self.taps * self.channels * self.features

    @property
    def vmem(self) -> int:
        """Bytes of vector memory, at most; compilers were found to need .5 to .95 of it."""
        phases, rows, columns = self.copied
        window = self.copies * phases * rows * columns * self.channels * self.itemsize
        weights = self.taps * self.channels * self.features * self.itemsize
        result = self.positions * self.features * self.itemsize
        sums = self.positions * self.features * 4
        operands = (self.taps * self.positions + self.features) * self.channels * self.itemsize
        small = 2 * (self.tile[0] * LANES + 8 * self.features) * 4
        # What is copied in and out is there twice: in use, and on its way. Of float32 weights a v6e keeps
        # another copy, split for its matrix unit.
        weight_copies = self.weight_buffers + (1 if self.itemsize == 4 else 0)
        return 2 * window + weight_copies * weights + 2 * result + 2 * sums + operands + small

    @property
    def weight_buffers(self) -> int:
        """1 where the weights stay for all tiles, 2 where they change from step to step."""
        return 1 if self.blocks[0] == 1 else 2


def make_plan(
    channels: int, features: int, window: Pair, strides: Pair, dilation: Pair, dtype: jnp.dtype
) -> Plan | None:
    """The first that fits into VMEM: few blocks of input channels, then few of output channels, then the
    smallest tile with enough work for a step. None if none fits.
    """
    rows, columns = (Axis.of(*axis) for axis in zip(window, strides, dilation, strict=True))
    enough = _STEP_MACS // PASSES[dtype.name]
    for cin, cout in itertools.product(_blocks(channels), _blocks(features)):
        blocks = (-(-channels // cin), -(-features // cout))
        plans = [Plan(rows, columns, tile, cin, cout, blocks, dtype.itemsize) for tile in _TILES]
        fitting = [plan for plan in plans if plan.vmem <= VMEM_BUDGET]
        if fitting:
            return next((plan for plan in fitting if plan.step_macs >= enough), fitting[-1])
    return None


def _blocks(channels: int) -> list[int]:
    """Sizes of a block, descending, each the smallest that needs no more blocks than it does."""
    lanes = -(-channels // LANES)
    return sorted({-(-lanes // blocks) * LANES for blocks in range(1, lanes + 1)}, reverse=True)
