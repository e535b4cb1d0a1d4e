"""A switch that runs Pallas kernels on any machine, slowly, for tests of whole models."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import jax

_INTERPRETING = jax.make_user_context(False)
"""Part of the key of what jax keeps: no program traced with it is run without."""


@contextmanager
def interpreted(mode: Hashable = True) -> Iterator[None]:
    """Inside it, named Pallas implementations run on every platform.

    Args:
        mode: True: ``pallas_tpu`` runs its kernel in Pallas' interpreter, ``pallas_gpu`` its plan in plain
            XLA. ``pltpu.InterpretParams`` or ``InterpretGPUParams``, for one of them: its kernel runs in the
            interpreter of that platform, which knows its memories, copies and barriers.
    """
    with _INTERPRETING(mode):
        yield


def interpreting() -> Any:
    """The mode of :func:`interpreted`; False outside."""
    return _INTERPRETING.value
