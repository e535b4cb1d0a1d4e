from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax.bench import masks

MAKERS = [masks.random_mask, masks.blob_mask]


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize(
    ("shape", "density", "count"),
    [
        ((1, 7, 9), 0.3, 19),
        ((2, 8, 5), 0.0, 0),
        ((2, 8, 5), 1.0, 80),
        ((3, 1, 1), 0.5, 2),
        ((1, 1, 6), 0.5, 3),
    ],
)
def test_the_count_is_exact(maker, shape, density, count):
    mask = maker(jax.random.key(0), shape, density)
    assert (mask.dtype, mask.shape) == (jnp.bool_, shape)
    assert int(mask.sum()) == count


@pytest.mark.parametrize("maker", MAKERS)
def test_the_key_decides(maker):
    first, again, other = (maker(jax.random.key(k), (1, 16, 16), 0.5) for k in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def edges(mask) -> float:
    """Edges between a position and its right neighbour, per position."""
    return float((mask != np.roll(mask, 1, axis=2)).mean())


def test_pixels_of_a_random_mask_are_independent():
    mask = np.asarray(masks.random_mask(jax.random.key(3), (1, 128, 256), 0.3))
    assert abs(edges(mask) - 2 * 0.3 * 0.7) < 0.02  # 32768 pairs: five standard deviations are 0.014
    per_row = mask.sum(2)
    assert abs(per_row.mean() - 0.3 * 256) < 1
    assert 0.7 < per_row.std() / math.sqrt(256 * 0.3 * 0.7) < 1.3


@pytest.mark.parametrize("scale", [1 / 32, 1 / 16])
def test_edges_of_blobs_are_as_rare_as_rices_formula_says(scale):
    """Noise smoothed with standard deviation s has the correlation exp(-d^2 / 4 s^2): by Rice's formula its
    median is crossed 1 / (pi s sqrt 2) times a unit of length."""
    mask = np.asarray(masks.blob_mask(jax.random.key(4), (8, 128, 256), 0.5, scale=scale))
    expected = 1 / (math.pi * math.sqrt(2) * scale * 128)
    assert edges(mask) == pytest.approx(expected, rel=0.15)
    assert edges(mask.swapaxes(1, 2)) == pytest.approx(expected, rel=0.15)


def test_make_mask_by_kind():
    arguments = (jax.random.key(5), (1, 12, 10), 0.4)
    for kind, maker in zip(masks.KINDS, MAKERS, strict=True):
        np.testing.assert_array_equal(masks.make_mask(kind, *arguments), maker(*arguments))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda key: masks.random_mask(key, (4, 4), 0.5), r"shape must be \(B, H, W\), got \(4, 4\)"),
        (lambda key: masks.blob_mask(key, (1, 4, 4), 1.5), r"density must be in \[0, 1\], got 1.5"),
        (lambda key: masks.random_mask(key, (1, 4, 4), math.nan), "got nan"),
        (lambda key: masks.blob_mask(key, (1, 4, 4), 0.5, scale=-1.0), "scale must be at least 0"),
        (lambda key: masks.make_mask("blob", key, (1, 4, 4), 0.5), "one of .*'blobs'"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(jax.random.key(0))
