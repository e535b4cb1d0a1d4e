"""Random pixels: within the mask, each once, as often as any other, in the share that was asked for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax.papers.pixelnet.points import biased_points, random_points, random_points_of_batch

KEY = jax.random.key(3)
# Compiled whole: one by one, these small operations would take longer.
draw_points = jax.jit(random_points, static_argnames="count")


def make_mask(*counts: int) -> jax.Array:
    """So many pixels of each 9 x 11 image."""
    rng = np.random.default_rng(0)
    masks = [rng.permutation(np.arange(99) < count).reshape(9, 11) for count in counts]
    return jnp.asarray(np.stack(masks))


def at(mask: jax.Array, points: np.ndarray) -> np.ndarray:
    rows = [(image, y, x) for image, of_image in enumerate(points) for y, x in of_image]
    return np.array([mask[row] for row in rows]).reshape(points.shape[:2])


def test_pixels_of_the_mask_each_once():
    mask = make_mask(99, 40, 20)
    points = np.asarray(draw_points(KEY, mask, 20))
    assert points.shape == (3, 20, 2)
    assert at(mask, points).all()
    assert all(len({tuple(row) for row in of_image}) == 20 for of_image in points)
    again = np.asarray(draw_points(KEY, mask, 20))
    np.testing.assert_array_equal(points, again)
    assert not np.array_equal(points[0], points[1])


def test_all_in_turn_where_there_are_too_few():
    """7 pixels give 20 samples: 6 of them three times, one twice. None gives its first pixel."""
    mask = make_mask(7, 0)
    points = np.asarray(draw_points(KEY, mask, 20))
    assert at(mask, points)[0].all()
    _, times = np.unique(points[0], axis=0, return_counts=True)
    assert sorted(times) == [2, 3, 3, 3, 3, 3, 3]
    assert not points[1].any()
    # More than the image has pixels.
    _, times = np.unique(np.asarray(draw_points(KEY, make_mask(99), 200))[0], axis=0, return_counts=True)
    assert sorted(times)[0] == 2
    assert times.sum() == 200


def test_all_pixels_are_drawn_alike():
    """10 of 99 a time, 2000 times: 202 of each, within 5 standard deviations."""
    draw = jax.jit(jax.vmap(lambda key: random_points(key, make_mask(99), 10)[0]))
    points = np.asarray(draw(jax.random.split(KEY, 2000))).reshape(-1, 2)
    times = np.bincount(points[:, 0] * 11 + points[:, 1], minlength=99)
    assert np.abs(times - 20000 / 99).max() < 5 * np.sqrt(20000 / 99)


def test_of_the_whole_batch():
    """Images with more pixels give more: here 90 % of them."""
    mask = make_mask(90, 0, 10)
    points = np.asarray(jax.jit(random_points_of_batch, static_argnums=2)(KEY, mask, 100))
    assert np.asarray(mask)[tuple(points.T)].all()
    np.testing.assert_array_equal(np.bincount(points[:, 0], minlength=3), [90, 0, 10])


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_shares(share):
    """Also of an image with fewer rare pixels than are wanted, and of one that has none or nothing else."""
    mask = make_mask(99, 99, 99, 50, 0)
    rare = make_mask(60, 3, 0, 99, 99)
    points = np.asarray(jax.jit(lambda k: biased_points(k, mask, rare, 40, share))(KEY))
    assert points.shape == (5, 40, 2)
    found = at(rare, points).sum(1)
    np.testing.assert_array_equal(found[:4], [40 * share, 40 * share, 0, 40])
    assert at(mask, points)[:4].all()


def test_wrong_arguments():
    mask = make_mask(5)
    with pytest.raises(ValueError, match="mask must be bool"):
        random_points(KEY, mask.astype(jnp.float32), 3)
    with pytest.raises(ValueError, match="count"):
        random_points(KEY, mask, 0)
    with pytest.raises(ValueError, match="share"):
        biased_points(KEY, mask, mask, 3, 1.0)
    with pytest.raises(ValueError, match="count"):
        biased_points(KEY, mask, mask, 1, 0.5)
