"""Runs of masked residual blocks on compact rows, against the same by whole maps in NumPy-like steps."""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax.ops.conv import conv
from dynpix_jax.ops.interpolation import interpolate_masked
from dynpix_jax.ops.sparse import (
    Affine,
    Convolution,
    Interpolation,
    Relu,
    ResidualBlock,
    active_rows,
    interpolate_rows,
    interpreted,
    sparse_block,
)

SHAPE = (2, 9, 11)
CHANNELS = 5
RNG = np.random.default_rng(0)


def spread(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, ((0, 0), (1, 1), (1, 1)))
    return np.any([padded[:, i : i + SHAPE[1], j : j + SHAPE[2]] for i in range(3) for j in range(3)], 0)


def layers(normalize: str) -> list[tuple]:
    """Convolution, interpolation and norm of four layers."""
    rng, made = np.random.default_rng(1), []
    for _ in range(4):
        kernel = rng.normal(0, 0.2, (3, 3, CHANNELS, CHANNELS)).astype(np.float32)
        affine = Affine(*(jnp.asarray(rng.uniform(0.5, 1.5, CHANNELS), jnp.float32) for _ in range(2)))
        interpolation = Interpolation(jnp.float32(rng.uniform(0.6, 3.0)), normalize)
        made.append((Convolution(jnp.asarray(kernel)), interpolation, affine))
    return made


def blocks(normalize: str) -> tuple[ResidualBlock, ...]:
    first, second, third, fourth = layers(normalize)
    return ResidualBlock((*first, Relu(), *second)), ResidualBlock((*third, Relu(), *fourth))


X = jnp.asarray(RNG.normal(size=(*SHAPE, CHANNELS)), jnp.float32)
WEIGHTS = jnp.asarray(RNG.normal(size=X.shape), jnp.float32)
MASKS = {
    "empty": np.zeros(SHAPE, bool),
    "half": RNG.random(SHAPE) < 0.5,
    "few": RNG.random(SHAPE) < 0.05,
    "full": np.ones(SHAPE, bool),
}


def by_maps(blocks, x, mask):
    """The same on whole maps, plainly."""

    def run(x, convolution, interpolation, affine):
        y = conv(x, convolution.kernel)
        y = interpolate_masked(y, mask, interpolation.lam, normalize=interpolation.normalize)
        return y * affine.multiplier + affine.offset

    for block in blocks:
        first, (_, *second) = block.layers[:3], block.layers[3:]
        x = jax.nn.relu(x + run(jax.nn.relu(run(x, *first)), *second))
    return x


def by_rows(blocks, x, mask, needed, implementation):
    rows = active_rows(mask, needed, CHANNELS, radius=3)
    return sparse_block(x, rows, blocks, implementation=implementation)


def with_gradients(run):
    def loss(blocks, x, mask, needed):
        y = run(blocks, x, mask, needed)
        return jnp.where(needed[..., None], y * WEIGHTS, 0).sum(), y

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))


@cache
def definition(normalize):
    """Values and gradients by whole maps, for each mask."""
    run = with_gradients(lambda blocks, x, mask, needed: by_maps(blocks, x, mask))
    return {name: run(blocks(normalize), X, mask, spread(mask)) for name, mask in MASKS.items()}


@jax.jit
def filled(y, mask, needed, lam):
    return interpolate_rows(y, active_rows(mask, needed, CHANNELS, radius=3), Interpolation(lam))


@pytest.mark.parametrize("normalize", ["full", "present"])
@pytest.mark.parametrize("implementation", ["gather", "masked", "pallas_tpu", "pallas_gpu", None])
def test_rows_equal_maps_in_values_and_gradients(implementation, normalize):
    given = blocks(normalize)
    find = with_gradients(partial(by_rows, implementation=implementation))
    for name, mask in MASKS.items():
        needed = spread(mask)
        (_, expected), gradients = definition(normalize)[name]
        with interpreted():
            (_, found), found_gradients = find(given, X, mask, needed)
        np.testing.assert_allclose(found[needed], expected[needed], atol=1e-4, rtol=1e-4)
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-3, rtol=1e-3), found_gradients, gradients)
        if implementation == "gather":
            np.testing.assert_array_equal(found[~needed], np.asarray(X)[~needed])
        assert np.isfinite(found).all()


def test_filling_touches_what_is_needed_only():
    for mask in MASKS.values():
        needed = spread(mask)
        found = filled(X, mask, needed, 0.8)
        expected = np.asarray(interpolate_masked(X, jnp.asarray(mask), 0.8))
        np.testing.assert_allclose(found[needed], expected[needed], atol=1e-5)
        np.testing.assert_array_equal(found[~needed], np.asarray(X)[~needed])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([Relu()], "layers must be residual blocks on rows that share a mask, got Relu"),
        ([], "layers must be residual blocks on rows that share a mask, got none"),
        ([ResidualBlock((Convolution(jnp.ones((1, 1, 5, 5))),))], r"kernel must be \(3, 3, 5, 5\)"),
        ([ResidualBlock((Convolution(jnp.ones((3, 3, 5, 5))), Relu()))], "needs its interpolation"),
        (
            [ResidualBlock((Convolution(jnp.ones((3, 3, 5, 5)), None, (2, 2)),))],
            r"strides and dilation must be \(1, 1\)",
        ),
    ],
)
def test_chains_that_rows_cannot_run(wrong, message):
    mask = MASKS["half"]
    with pytest.raises(ValueError, match=message):
        by_rows(wrong, X, mask, spread(mask), "gather")
