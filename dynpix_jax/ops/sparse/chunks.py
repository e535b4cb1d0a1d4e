"""The loop of every sparse program: chunks of listed rows, small enough to stay in cache.

The number of chunks is known only at run time, so that no shape depends on a mask. A single gather of all
windows would write kh * kw times the input to memory, and is 2 to 3 times slower on a CPU.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TypeVar

import jax.numpy as jnp
from jax import lax

from dynpix_jax.core.typing import Array
from dynpix_jax.ops.conv import Pair

Carry = TypeVar("Carry")

# Bytes of float32 windows in a full chunk. Measured best, or within noise of it, from 48 to 512 channels on a
# CPU with 1 MiB of second-level cache per core and 32 MiB shared: with fewer rows the product reads weights
# more often, with more rows the windows leave the cache.
_CHUNK_BYTES = 11 << 19


def chunk_size(channels: int, window: Pair) -> int:
    """Rows of a full chunk: the power of two in 128..4096 whose float32 windows come nearest to 5.5 MiB.

    4096 rows of 3x3x48, 1024 of 3x3x128, 512 of 3x3x256, 256 of 3x3x512.
    """
    rows = _CHUNK_BYTES / (4 * window[0] * window[1] * max(channels, 1))
    return int(min(max(2 ** round(math.log2(max(rows, 1))), 128), 4096))


@dataclasses.dataclass(frozen=True)
class Chunks:
    """Full chunks, then short ones for the rest, so that few idle rows are computed.

    Make it with `of`.

    Attributes:
        full: Rows of a full chunk; that of a short one if all are short.
        rest: Rows of a short chunk.
    """

    full: int
    rest: int

    @classmethod
    def of(cls, positions: int, full: int) -> Chunks:
        """Chunks of ``full`` rows and of an eighth of it, for at most ``positions`` rows.

        Short ones have at least 128 rows: each product rearranges its weights first, so 32 rows of 3x3x512
        take a quarter of the time of 256. Where a full one would come once at most, all are short: each size
        is a loop of its own, which must be compiled.
        """
        longest = min(full, positions)
        rest = min(longest, max(longest // 8, 128))
        return cls(longest if positions >= 2 * full else rest, rest)

    def sweep(
        self,
        count: Array,
        body: Callable[[int, Array, Carry], Carry],
        carry: Carry,
        *,
        first: Array | int = 0,
        short: bool = False,
    ) -> Carry:
        """Runs ``body(rows, first row, carry)`` over ``count`` rows; the last chunk may extend beyond them.

        Args:
            count: int32 scalar.
            body: Returns the next carry.
            carry: The initial carry.
            first: The first row.
            short: Short chunks only, for a body without products: one loop to compile.
        """
        both = self.rest < self.full and not short
        full = count // self.full if both else 0
        done = full * self.full
        trips = (count - done + self.rest - 1) // self.rest
        if both:
            carry = lax.fori_loop(0, full, lambda i, c: body(self.full, first + i * self.full, c), carry)
        carry = lax.fori_loop(0, trips, lambda i, c: body(self.rest, first + done + i * self.rest, c), carry)
        return carry


def read_rows(flat: Array, index: Array, count: Array, *, inside: bool = False) -> Array:
    """The rows (index.size, C) of ``flat``; zeros where an index lies past the end.

    Args:
        flat: (N, C).
        index: int32, of any shape.
        count: int32 scalar, above zero wherever this runs within :meth:`Chunks.sweep`.
        inside: The caller promises that no index lies past the end.
    """

    def read() -> Array:
        rows = flat.at[index.reshape(-1)]
        return rows.get(mode="promise_in_bounds") if inside else rows.get(mode="fill", fill_value=0)

    def apart() -> Array:
        # XLA's CPU compiler would fuse the next operation into the gather and compute an address for every
        # element, three times slower. It does not fuse across a branch; this one is always taken.
        rows: Array = lax.cond(count > 0, read, lambda: jnp.zeros((index.size, flat.shape[-1]), flat.dtype))
        return rows

    rows: Array = lax.platform_dependent(cpu=apart, default=read)
    return rows
