"""Named random streams, all derived from one seed.

A stream is the seed folded with a hash of its name and then with the step. No key is stored in a checkpoint:
a run that resumes at step n draws exactly what the uninterrupted run draws at step n, and adding a stream
changes no other.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import jax
import numpy as np

from dynpix_jax.core.typing import Array, PRNGKey

STREAMS = ("params", "dropout", "gumbel", "points", "augment")
"""The streams that the library draws from."""


def stream(seed: int | PRNGKey, name: str, step: int | Array = 0) -> PRNGKey:
    """The key of stream `name` at `step`.

    Args:
        seed: The run's seed, or a typed key to derive from.
        name: Stream name. The hash is CRC-32, stable over processes and Python versions (`hash` is neither).
        step: Step number, non-negative, concrete or traced.
    """
    key = jax.random.key(seed) if isinstance(seed, int | np.integer) else seed
    key = jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode())))
    return jax.random.fold_in(key, step)


def streams(seed: int | PRNGKey, names: Iterable[str], step: int | Array = 0) -> dict[str, PRNGKey]:
    """The keys of several streams at one step, in the form that Flax's `rngs=` takes."""
    return {name: stream(seed, name, step) for name in names}
