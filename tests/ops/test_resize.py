from __future__ import annotations

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from dynpix_jax import ops

sizes = st.tuples(st.integers(1, 11), st.integers(1, 11))


def bilinear_loop(x: np.ndarray, size: tuple[int, int], align_corners: bool) -> np.ndarray:
    """The four-corner formula of PyTorch's documentation and source, pixel by pixel."""
    batch, height, width, channels = x.shape
    out = np.zeros((batch, *size, channels))

    def source(i: int, old: int, new: int) -> tuple[int, int, float]:
        if align_corners:
            place = i * (old - 1) / (new - 1) if new > 1 else 0.0
        else:
            place = max((i + 0.5) * old / new - 0.5, 0.0)
        low = int(place)
        return low, low + (low < old - 1), place - low

    for i in range(size[0]):
        top, bottom, v = source(i, height, size[0])
        for j in range(size[1]):
            left, right, u = source(j, width, size[1])
            upper = (1 - u) * x[:, top, left] + u * x[:, top, right]
            lower = (1 - u) * x[:, bottom, left] + u * x[:, bottom, right]
            out[:, i, j] = (1 - v) * upper + v * lower
    return out


@given(sizes, sizes, st.booleans())
def test_bilinear_follows_the_formula(old, new, align_corners):
    x = np.random.default_rng(0).standard_normal((2, *old, 3))
    got = ops.resize_bilinear(jnp.asarray(x, jnp.float32), new, align_corners=align_corners)
    np.testing.assert_allclose(got, bilinear_loop(x, new, align_corners=align_corners), atol=1e-5)


def line(values: list[float], size: int, align_corners: bool) -> list[float]:
    x = jnp.array(values, jnp.float32).reshape(1, 1, -1, 1)
    return ops.resize_bilinear(x, (1, size), align_corners=align_corners).ravel().tolist()


def test_bilinear_by_hand():
    assert line([0, 1], 4, False) == pytest.approx([0, 0.25, 0.75, 1])
    assert line([0, 1], 4, True) == pytest.approx([0, 1 / 3, 2 / 3, 1])
    # Down-sampling takes two neighbours and never averages over the whole (no antialiasing).
    assert line([0, 1, 2, 3, 4, 5, 6, 7], 2, False) == pytest.approx([1.5, 5.5])
    assert line([0, 0, 0, 0, 9, 0, 0, 0], 2, False) == pytest.approx([0, 0])
    assert line([0, 1, 2, 3, 4, 5, 6, 7], 2, True) == pytest.approx([0, 7])
    assert line([3, 5], 1, True) == pytest.approx([3])


def test_bilinear_keeps_type_and_is_linear_in_gradient():
    x = jax.random.normal(jax.random.key(0), (1, 3, 4, 2))
    assert ops.resize_bilinear(x.astype(jnp.bfloat16), (7, 5)).dtype == jnp.bfloat16
    gradient = jax.grad(lambda v: ops.resize_bilinear(v, (7, 5)).sum())(x)
    # Each result is a weighted mean: the weights handed out are as many as there are results.
    assert float(gradient.sum()) == pytest.approx(7 * 5 * 2, rel=1e-5)


@given(sizes, sizes)
def test_nearest_takes_the_floor(old, new):
    labels = np.arange(2 * old[0] * old[1]).reshape(2, *old)
    got = ops.resize_nearest(jnp.asarray(labels), new)
    rows, cols = ([i * o // n for i in range(n)] for o, n in zip(old, new, strict=True))
    np.testing.assert_array_equal(got, labels[:, rows][:, :, cols])
    np.testing.assert_array_equal(ops.resize_nearest(jnp.asarray(labels)[..., None], new)[..., 0], got)


def test_nearest_by_hand():
    row = jnp.arange(5).reshape(1, 1, 5)
    assert ops.resize_nearest(row, (1, 3)).ravel().tolist() == [0, 1, 3]
    assert ops.resize_nearest(row, (1, 7)).ravel().tolist() == [0, 0, 1, 2, 2, 3, 4]
    # PyTorch multiplies in float32, and 41 * float32(2 / 82) is below 1.
    assert int(ops.resize_nearest(jnp.arange(2).reshape(1, 1, 2), (1, 82)).sum()) == 40
    assert ops.resize_nearest(row.astype(bool), (1, 10)).dtype == jnp.bool_


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"resize_bilinear: x must be \(B, H, W, C\), got shape \(3, 4\)"):
        ops.resize_bilinear(jnp.zeros((3, 4)), (2, 2))
    with pytest.raises(ValueError, match="resize_nearest takes labels"):
        ops.resize_bilinear(jnp.zeros((1, 3, 4, 1), jnp.int32), (2, 2))
    with pytest.raises(ValueError, match="size must be two positive integers"):
        ops.resize_nearest(jnp.zeros((1, 3, 4, 1)), (0, 2))


def test_cells_lie_at_multiples_of_the_stride():
    """An open cell is the pixels nearest to it, and not a share of the image."""
    cells = np.zeros((1, 4, 6), np.float32)
    cells[0, 1, 4] = 1
    rows, columns = (np.flatnonzero(ops.cells_to_pixels(cells, (25, 41), 8)[0].any(axis)) for axis in (1, 0))
    np.testing.assert_array_equal(rows, np.arange(4, 12))  # about row 8
    np.testing.assert_array_equal(columns, np.arange(28, 36))  # about column 32
    last = np.zeros((1, 4, 6, 1), np.float32)
    last[0, 3, 5] = 1
    pixels = np.asarray(ops.cells_to_pixels(last, (32, 48), 8))
    assert pixels.shape == (1, 32, 48, 1)
    assert pixels.sum() == (32 - 20) * (48 - 36)  # all that is beyond the last cell, too


@pytest.mark.parametrize(
    ("size", "cells", "stride"), [((25, 41), (4, 6), 8), ((32, 48), (4, 6), 8), ((7, 5), (7, 5), 1)]
)
def test_a_cell_is_marked_by_the_pixels_that_take_its_value(size, cells, stride):
    """Pixel by pixel: exactly the cell is marked whose value `cells_to_pixels` puts there."""
    numbers = np.arange(np.prod(cells)).reshape(1, *cells)
    owner = np.asarray(ops.cells_to_pixels(numbers, size, stride))[0]
    pixels = np.eye(owner.size, dtype=bool).reshape(-1, *size)
    found = np.asarray(ops.pixels_to_cells(pixels, cells, stride)).reshape(owner.size, -1)
    np.testing.assert_array_equal(found, np.eye(numbers.size, dtype=bool)[owner.ravel()])
    rng = np.random.default_rng(0)
    some = rng.random((3, *size)) < 0.05
    each = [{int(owner[at]) for at in zip(*np.nonzero(one), strict=True)} for one in some]
    found = np.asarray(ops.pixels_to_cells(some, cells, stride)).reshape(3, -1)
    assert [set(np.flatnonzero(one)) for one in found] == each
