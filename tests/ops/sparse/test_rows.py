"""Runs of masked residual blocks on compact rows, against the same by whole maps in NumPy-like steps."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax.ops.conv import conv
from dynpix_jax.ops.interpolation import interpolate_masked
from dynpix_jax.ops.sparse.rows import Layer, active_rows, fill_rows, residual_blocks

SHAPE = (2, 9, 11)
CHANNELS = 5
RNG = np.random.default_rng(0)


def spread(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, ((0, 0), (1, 1), (1, 1)))
    return np.any([padded[:, i : i + SHAPE[1], j : j + SHAPE[2]] for i in range(3) for j in range(3)], 0)


def layer() -> Layer:
    kernel = RNG.normal(0, 0.2, (3, 3, CHANNELS, CHANNELS)).astype(np.float32)
    affine = tuple(jnp.asarray(RNG.uniform(0.5, 1.5, CHANNELS), jnp.float32) for _ in range(2))
    return Layer(jnp.asarray(kernel), affine, jnp.float32(RNG.uniform(0.6, 3.0)))


BLOCKS = [(layer(), layer()) for _ in range(2)]
X = jnp.asarray(RNG.normal(size=(*SHAPE, CHANNELS)), jnp.float32)
MASKS = {
    "empty": np.zeros(SHAPE, bool),
    "half": RNG.random(SHAPE) < 0.5,
    "few": RNG.random(SHAPE) < 0.05,
    "full": np.ones(SHAPE, bool),
}


@partial(jax.jit, static_argnames="normalize")
def by_maps(x, mask, normalize):
    def run(x, layer):
        y = interpolate_masked(conv(x, layer.kernel), mask, layer.lam, normalize=normalize)
        return y * layer.affine[0] + layer.affine[1]

    for first, second in BLOCKS:
        x = jax.nn.relu(x + run(jax.nn.relu(run(x, first)), second))
    return x


@partial(jax.jit, static_argnames="normalize")
def by_rows(x, mask, needed, normalize):
    rows = active_rows(mask, needed, CHANNELS, radius=3)
    return residual_blocks(x, BLOCKS, rows, normalize=normalize)


@jax.jit
def filled(y, mask, needed, lam):
    return fill_rows(y, active_rows(mask, needed, CHANNELS, radius=3), lam, normalize="full")


@pytest.mark.parametrize("normalize", ["full", "present"])
def test_rows_equal_maps(normalize):
    for mask in MASKS.values():
        needed = spread(mask)
        found, expected = by_rows(X, mask, needed, normalize), by_maps(X, mask, normalize)
        np.testing.assert_allclose(found[needed], expected[needed], atol=1e-4, rtol=1e-4)
        np.testing.assert_array_equal(found[~needed], np.asarray(X)[~needed])


def test_filling_touches_what_is_needed_only():
    for mask in MASKS.values():
        needed = spread(mask)
        found = filled(X, mask, needed, 0.8)
        expected = np.asarray(interpolate_masked(X, jnp.asarray(mask), 0.8))
        np.testing.assert_allclose(found[needed], expected[needed], atol=1e-5)
        np.testing.assert_array_equal(found[~needed], np.asarray(X)[~needed])
