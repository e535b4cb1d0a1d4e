"""A switch that runs Pallas kernels on any machine, slowly, for tests of whole models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_INTERPRETING = ContextVar("interpreting", default=False)


@contextmanager
def interpreted() -> Iterator[None]:
    """Inside it, named Pallas implementations run on every platform.

    ``pallas_tpu`` runs its kernel in Pallas' interpreter. Mosaic GPU has no interpreter for the operations of
    ``pallas_gpu``: the kernel's plan runs in plain XLA instead. A function traced inside keeps this outside.
    """
    token = _INTERPRETING.set(True)
    try:
        yield
    finally:
        _INTERPRETING.reset(token)


def interpreting() -> bool:
    """Whether :func:`interpreted` is active."""
    return _INTERPRETING.get()
