from __future__ import annotations

import itertools
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from dynpix_jax.core.rng import STREAMS, stream, streams

GUMBEL = 1267758079


def data(key) -> tuple[int, ...]:
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_is_the_seed_folded_with_crc32_of_the_name_and_the_step():
    # CRC-32 of "gumbel" as an independent constant: if the hash ever changed, runs would not repeat.
    assert zlib.crc32(b"gumbel") == GUMBEL
    expected = jax.random.fold_in(jax.random.fold_in(jax.random.key(7), np.uint32(GUMBEL)), 3)
    assert data(stream(7, "gumbel", 3)) == data(expected)


def test_all_names_and_steps_differ():
    keys = {
        data(stream(seed, name, step)) for seed, name, step in itertools.product((0, 1), STREAMS, range(3))
    }
    assert len(keys) == 2 * len(STREAMS) * 3


def test_takes_a_key_or_a_numpy_seed_and_a_traced_step():
    plain = data(stream(5, "points", 2))
    assert data(stream(jax.random.key(5), "points", 2)) == plain
    assert data(stream(np.int64(5), "points", 2)) == plain
    assert data(jax.jit(lambda step: stream(5, "points", step))(jnp.int32(2))) == plain


def test_streams_are_the_single_ones():
    keys = streams(0, ("dropout", "gumbel"), 4)
    assert {name: data(key) for name, key in keys.items()} == {
        name: data(stream(0, name, 4)) for name in ("dropout", "gumbel")
    }
