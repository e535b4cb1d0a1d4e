"""Over which images batch norms take their moments in training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import jax

from dynpix_jax.core.errors import UserError

NormGroup = Literal["global", "host"] | int
"""All images of a batch, those of each host, or so many consecutive images.

A training stage knows its mesh and gives ``host`` as a number; elsewhere each process of the job is a host.
"""

_group: ContextVar[NormGroup] = ContextVar("norm group", default="global")


@contextmanager
def norms_over(group: NormGroup) -> Iterator[None]:
    """A context in which the batch norms of a network take their moments over these images."""
    before = _group.set(group)
    try:
        yield
    finally:
        _group.reset(before)


def norm_groups(images: int) -> int:
    """Number of groups into which the norms divide a batch of so many images.

    Raises:
        UserError: The groups do not divide the batch.
    """
    group = _group.get()
    if group == "global":
        return 1
    groups, rest = (jax.process_count(), 0) if group == "host" else divmod(images, group)
    if rest or images % max(groups, 1) or not groups:
        what = f"{groups} hosts" if group == "host" else f"groups of {group} images"
        raise UserError(f"config.model.norm_group: {what} do not divide a batch of {images} images")
    return groups
