"""A switch that runs Pallas kernels on any machine, slowly, for tests of whole models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jax

_INTERPRETING = jax.make_user_context(False)
"""Part of the key of what jax keeps: no program traced with it is run without."""


@contextmanager
def interpreted() -> Iterator[None]:
    """Inside it, named Pallas implementations run on every platform.

    ``pallas_tpu`` runs its kernel in Pallas' interpreter. Mosaic GPU has no interpreter for the operations of
    ``pallas_gpu``: the kernel's plan runs in plain XLA instead.
    """
    with _INTERPRETING(True):
        yield


def interpreting() -> bool:
    """Whether :func:`interpreted` is active."""
    return bool(_INTERPRETING.value)
