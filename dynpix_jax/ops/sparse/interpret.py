"""The switch by which Pallas kernels run on any machine: slowly, for tests of whole models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_INTERPRETING = ContextVar("interpreting", default=False)


@contextmanager
def interpreted() -> Iterator[None]:
    """Within it, named Pallas implementations run on every platform.

    ``pallas_tpu`` runs its kernel in Pallas' interpreter. Mosaic GPU has none for what ``pallas_gpu`` is made
    of: there the loop of the kernel runs as its plan states it, in plain XLA. What is traced inside stays so
    when it is called outside.
    """
    token = _INTERPRETING.set(True)
    try:
        yield
    finally:
        _INTERPRETING.reset(token)


def interpreting() -> bool:
    """Whether :func:`interpreted` holds."""
    return _INTERPRETING.get()
