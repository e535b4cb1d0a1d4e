"""The active positions of a mask, as a list that every op with this mask shares."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from dynpix_jax.core.typing import Array, Mask


@partial(jax.tree_util.register_dataclass, data_fields=["mask", "indices", "count"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class ActiveSet:
    """The active positions of a mask; a pytree, made by :func:`active_set`.

    Attributes:
        mask: bool (B, H, W); True = compute.
        indices: int32 (B*H*W,); flat indices of the active positions, ascending, padded with B*H*W.
        count: int32 scalar; number of active positions.
    """

    mask: Mask
    indices: Array
    count: Array

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, H, W) of the mask."""
        batch, height, width = self.mask.shape
        return batch, height, width


def active_set(mask: Mask) -> ActiveSet:
    """The positions where ``mask`` is True. Make it once per mask, and share it among all ops with that mask.

    Args:
        mask: bool (B, H, W); True = compute.

    Raises:
        ValueError: The mask is not bool or not three-dimensional.
    """
    if mask.ndim != 3 or mask.dtype != jnp.bool_:
        raise ValueError(f"active_set: mask must be bool (B, H, W), got {mask.dtype} {mask.shape}")
    flat = mask.reshape(-1)
    size = flat.size
    position = jnp.arange(size, dtype=jnp.int32)
    rank = jnp.cumsum(flat, dtype=jnp.int32)
    # Inactive positions write past the end, each to its own index: the promise of unique indices holds.
    target = jnp.where(flat, rank - 1, size + position)
    filling = jnp.full((size,), size, jnp.int32)
    indices = filling.at[target].set(position, mode="drop", unique_indices=True)
    return ActiveSet(mask, indices, jnp.sum(flat, dtype=jnp.int32))
