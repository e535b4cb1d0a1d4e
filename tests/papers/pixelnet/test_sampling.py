"""Samples of feature maps: a loop over corners, SciPy, finite differences; linear layers in either order."""

from __future__ import annotations

import math
from functools import partial

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import jax.scipy.ndimage
import numpy as np
import pytest
from hypothesis import given

from dynpix_jax.papers.pixelnet.sampling import (
    faster_order,
    hypercolumns,
    linear_everywhere,
    sample_bilinear,
    sample_linear,
)

STRIDES = (1, 2, 8)
SIZE = (18, 23)
CHANNELS = (3, 5, 4)

# Compiled whole: one by one, these small operations would take longer.
sample = jax.jit(sample_bilinear, static_argnames="stride")
linear = jax.jit(partial(sample_linear, strides=STRIDES), static_argnames="order")


def sample_by_hand(features: np.ndarray, points: np.ndarray, stride: int) -> np.ndarray:
    """One value after the other: corners floor(t) and ceil(t), cut to the map; rows (image, y, x)."""
    result = np.zeros((len(points), features.shape[-1]))
    for row, (image, *place) in enumerate(points):
        cells = [(p - (stride - 1) / 2) / stride for p in place]
        cells = [min(max(t, 0.0), side - 1.0) for t, side in zip(cells, features.shape[1:3], strict=True)]
        for y in {math.floor(cells[0]), math.ceil(cells[0])}:
            for x in {math.floor(cells[1]), math.ceil(cells[1])}:
                weight = (1 - abs(cells[0] - y)) * (1 - abs(cells[1] - x))
                result[row] += weight * features[int(image), y, x]
    return result


def make_maps(seed: int = 0, batch: int = 2) -> list[jax.Array]:
    rng = np.random.default_rng(seed)
    return [
        jnp.asarray(rng.normal(size=(batch, -(-SIZE[0] // s), -(-SIZE[1] // s), c)), jnp.float32)
        for s, c in zip(STRIDES, CHANNELS, strict=True)
    ]


def make_kernels(features: int = 7) -> list[jax.Array]:
    rng = np.random.default_rng(1)
    return [jnp.asarray(rng.normal(size=(c, features)), jnp.float32) for c in CHANNELS]


def all_pixels(batch: int = 2) -> jax.Array:
    grid = np.stack(np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]), indexing="ij"), -1).reshape(-1, 2)
    return jnp.asarray(np.broadcast_to(grid, (batch, *grid.shape)))


@given(st.integers(0, 2**31), st.sampled_from((1, 4, 32)), st.booleans())
def test_samples_are_those_of_a_loop(seed, stride, whole):
    """Also beyond the map's ends, where the outermost cells go on."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(3, 4, 5, 2)).astype(np.float32)
    low, high = -stride, [4 * stride + stride, 5 * stride + stride]
    places = rng.uniform(low, high, (6, 2)).astype(np.float32)
    points = np.concatenate([rng.integers(0, 3, (6, 1)), places.round() if whole else places], 1)
    points = points.astype(np.int32 if whole else np.float32)
    found = sample(features, points, stride=stride)
    np.testing.assert_allclose(found, sample_by_hand(features, points, stride), atol=2e-5)


def test_both_forms_of_points():
    features, points = make_maps()[1], all_pixels()
    rows = jnp.concatenate([jnp.repeat(jnp.arange(2), len(points[0]))[:, None], points.reshape(-1, 2)], 1)
    np.testing.assert_allclose(
        sample(features, rows, stride=2),
        sample(features, points, stride=2).reshape(-1, CHANNELS[1]),
        atol=1e-6,
    )


def test_samples_are_map_coordinates():
    features, points = make_maps()[2], all_pixels(1)[0]
    inside = ((points >= 4) & (points <= 12)).all(1)
    cells = (points[inside].T - 3.5) / 8
    expected = jax.scipy.ndimage.map_coordinates(features[0, :, :, 1], list(cells), order=1)
    found = sample(features[:1], points[None, inside], stride=8)[0, :, 1]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_golden_coordinates():
    """Pixel 107.5 is the middle of stride 16 at t = 6.25; pixel 103 (t = 5.96875) needs 3 % of cell 5."""
    ramp = jnp.arange(10.0)[None, :, None, None] + jnp.zeros((1, 10, 10, 1))
    points = jnp.array([[[107.5, 50.0], [103.0, 50.0], [0.0, 0.0], [500.0, 0.0]]])
    np.testing.assert_array_equal(sample(ramp, points, stride=16)[0, :, 0], [6.25, 5.96875, 0, 9])


def test_gradients_are_finite_differences():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 4, 5, 2)).astype(np.float32)
    # Two points within one cell, and one beyond the map.
    points = jnp.array([[0, 3, 3], [0, 3, 4], [1, 7, 9], [1, 0, 0]], jnp.float32) + 0.25
    weight = rng.normal(size=(4, 2)).astype(np.float32)

    def loss(features: jax.Array, points: jax.Array) -> jax.Array:
        return (sample_bilinear(features, points, stride=2) * weight).sum()

    by_features, by_points = jax.jit(jax.grad(loss, argnums=(0, 1)))(features, points)
    numeric = np.zeros_like(features)
    for place in np.ndindex(features.shape):
        # The sample is linear in the features: any step is exact.
        step = np.zeros_like(features)
        step[place] = 1.0
        numeric[place] = (sample_by_hand(features + step, np.asarray(points), 2) * weight).sum() - (
            sample_by_hand(features - step, np.asarray(points), 2) * weight
        ).sum()
    np.testing.assert_allclose(by_features, numeric / 2, atol=1e-5)
    moved = [np.asarray(points) + sign * np.array([0, 0.01, 0]) for sign in (1, -1)]
    change = [(sample_by_hand(features, m, 2) * weight).sum(1) for m in moved]
    np.testing.assert_allclose(by_points[:, 1], (change[0] - change[1]) / 0.02, atol=1e-3)


@pytest.mark.parametrize("order", [None, "sample_first", "product_first"])
def test_a_linear_layer_is_that_of_the_joined_hypercolumn(order):
    maps, kernels, points = make_maps(), make_kernels(), all_pixels()
    joined = np.concatenate([sample(m, points, stride=s) for m, s in zip(maps, STRIDES, strict=True)], -1)
    expected = joined @ np.concatenate(kernels) + 2.0
    found = linear(maps, points, kernels, bias=jnp.full(7, 2.0), order=order)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_gradients_in_either_order():
    maps, kernels, points = make_maps(batch=1), make_kernels(), all_pixels(1)[:, ::7]

    def loss(maps, kernels, order):
        return jnp.sin(sample_linear(maps, points, kernels, strides=STRIDES, order=order)).sum()

    grad = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)
    grads = [grad(maps, kernels, order) for order in ("sample_first", "product_first")]
    for one, other in zip(*map(jax.tree.leaves, grads), strict=True):
        np.testing.assert_allclose(one, other, atol=5e-5)


@pytest.mark.parametrize(("chunk", "offset"), [(1, 0), (60, 3), (999, 40)])
def test_everywhere_is_every_pixel(chunk, offset):
    """In bands of any number of rows; ``offset`` shifts the pixels, and what is beyond the maps goes on."""
    maps, kernels = make_maps(), make_kernels()
    head = jnp.asarray(np.random.default_rng(2).normal(size=(7, 2)), jnp.float32)
    everywhere = jax.jit(
        partial(
            linear_everywhere,
            head=lambda x: jnp.tanh(x) @ head,
            strides=STRIDES,
            size=SIZE,
            offset=offset,
            chunk=chunk,
        )
    )
    at = np.tanh(linear(maps, all_pixels() + offset, kernels)) @ head
    np.testing.assert_allclose(everywhere(maps, kernels), at.reshape(2, *SIZE, 2), atol=2e-5)


def test_hypercolumns_are_samples_at_all_pixels():
    maps = make_maps()
    found = jax.jit(partial(hypercolumns, strides=STRIDES, size=SIZE))(maps)
    expected = [
        sample(m, all_pixels(), stride=s).reshape(2, *SIZE, -1) for m, s in zip(maps, STRIDES, strict=True)
    ]
    np.testing.assert_allclose(found, np.concatenate(expected, -1), atol=1e-6)


def test_order_by_shape():
    """conv5_3 of a 224 x 224 image has 196 cells, conv1_2 has 50,176."""
    assert faster_order(196, 2000, 512, 4096) == "product_first"
    assert faster_order(50176, 2000, 64, 4096) == "sample_first"
    # A product that widens the map tenfold makes its samples dearer than it saves.
    assert faster_order(1900, 2000, 4, 4096) == "sample_first"


def test_memory_of_all_pixels_is_that_of_a_chunk():
    """A compiled program for 64 x 64 pixels whose joined hypercolumns and hidden values would be 20 MB."""
    maps = [jax.ShapeDtypeStruct((1, 64 // s, 64 // s, 256), jnp.float32) for s in (1, 2, 4)]
    kernels = [jax.ShapeDtypeStruct((256, 512), jnp.float32)] * 3

    def predict(maps, kernels, chunk):
        return linear_everywhere(
            maps, kernels, lambda x: jax.nn.relu(x).sum(-1, keepdims=True), strides=(1, 2, 4), size=(64, 64),
            chunk=chunk,
        )  # fmt: skip

    def needs(chunk: int) -> int:
        compiled = jax.jit(predict, static_argnums=2).lower(maps, kernels, chunk).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert needs(256) < 4e6 < needs(64 * 64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, p, k: sample_bilinear(m[0][0], p, stride=1), "features must be"),
        (lambda m, p, k: sample_bilinear(m[0], p[:1], stride=1), "points must be"),
        (lambda m, p, k: sample_bilinear(m[0], p[0], stride=1), "points must be"),
        (lambda m, p, k: sample_bilinear(m[0], p, stride=0), "strides"),
        (lambda m, p, k: sample_linear(m, p, k[:2], strides=STRIDES), "kernels of shapes"),
        (lambda m, p, k: sample_linear(m, p, k, strides=(1, 2)), "strides"),
        (lambda m, p, k: sample_linear([m[0], m[1][:1]], p, k[:2], strides=(1, 2)), "images"),
        (lambda m, p, k: hypercolumns([], strides=(), size=SIZE), "at least one map"),
        (
            lambda m, p, k: linear_everywhere(m, k, jnp.tanh, strides=STRIDES, size=SIZE, chunk=0),
            "chunk: 0",
        ),
    ],
)
def test_wrong_shapes(call, message):
    with pytest.raises(ValueError, match=message):
        call(make_maps(), all_pixels(), make_kernels())
