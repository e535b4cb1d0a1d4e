"""What ``pallas_gpu_threads.py`` does on a GPU, in operations that Mosaic GPU's interpreter knows.

The functions have the names and arguments of those, and the values: a warpgroup's array holds what its
threads hold together. Copies are done when the function returns. wgmma reads shared memory unseen by the
interpreter's search for races, so :func:`read_by_products` reads the same places.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from dynpix_jax.core.typing import Array
from dynpix_jax.ops.sparse.pallas_gpu_plan import DEPTH, PIECE, ROWS, Plan

_PIECES = DEPTH // PIECE
TILED = ()


def listed(plan: Plan, indices: Any, row: Array, active: Array) -> Array:
    """The active position of each copy: int32 (1024,), eight for every row from ``row`` on."""
    return _positions(plan, indices[...], row + jnp.repeat(jnp.arange(ROWS), _PIECES), active)


def reads(offsets: Any, taps: Any, step: Array) -> tuple[Array, Array]:
    """Offset and tap of the piece that each thread copies from its rows: int32 (128,) each."""
    at = step * _PIECES + jnp.arange(ROWS) % _PIECES
    return offsets[...][at], taps[...][at]


def copy_rows(rows: Any, stage: Any, corners: Array, inside: Array, offset: Array, tap: Array) -> None:
    """Copies the rows of one step into its stage of shared memory."""
    live = (inside >> jnp.tile(tap, _PIECES)) & 1
    at = jnp.where(live, corners + jnp.tile(offset, _PIECES), 0)
    read = rows[...].reshape(-1, PIECE).at[at].get(mode="fill", fill_value=jnp.nan)
    stage[...] = jnp.where(live[:, None], read, 0).reshape(stage.shape)


def wait_for_copies(pending: int) -> None:
    """Nothing: they are done."""
    del pending


def read_by_products(*stages: Any) -> None:
    """Reads what the next products read."""
    for stage in stages:
        stage[...]


def spread(vectors: Any, index: int, column: Array, shape: tuple[int, int]) -> Array:
    """A vector's columns from ``column`` on, in every row of ``shape``."""
    return jnp.broadcast_to(lax.dynamic_slice(vectors[index], (column,), shape[1:]), shape)


def load(plan: Plan, like: Array, out: Any, targets: Any, row: Array, active: Array, column: Array) -> Array:
    """What :func:`store` would write over, where it would write; other values are arbitrary."""
    positions = _positions(plan, targets[...], row + jnp.arange(len(like)), active)

    def read(i: Array, rows: Array) -> Array:
        return rows.at[i].set(jnp.pad(out[positions[i]], (0, wide - plan.features)))

    # Row by row: the others may be written meanwhile.
    wide, number = plan.columns * plan.column_blocks, jnp.clip(active - row, 0, len(like))
    rows = lax.fori_loop(0, number, read, jnp.zeros((len(like), wide), like.dtype))
    return lax.dynamic_slice(rows, (0, column), like.shape)


def store(plan: Plan, total: Array, out: Any, targets: Any, row: Array, active: Array, column: Array) -> None:
    """Writes rows to the positions from row ``row`` of the list on, from ``column`` on."""
    positions = _positions(plan, targets[...], row + jnp.arange(len(total)), active)

    def write(i: Array, first: int) -> None:
        width = min(plan.columns, plan.features - first)
        out[positions[i], first : first + width] = total[i, :width]

    @pl.loop(0, jnp.clip(active - row, 0, len(total)))
    def _(i: Array) -> None:
        for first in range(0, plan.features, plan.columns):
            pl.when(column == first)(partial(write, i, first))


def _positions(plan: Plan, indices: Array, rows: Array, active: Array) -> Array:
    """The positions in rows of the list; ``plan.positions`` past the last."""
    at = indices[jnp.minimum(rows, plan.positions - 1)]
    return jnp.where(rows < active, at, plan.positions)
