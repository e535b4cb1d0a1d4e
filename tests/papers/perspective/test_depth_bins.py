"""Depth bins: the released code's numbers, and the weights that a given depth makes."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax.papers.perspective.config import (
    CITYSCAPES_EDGES,
    CITYSCAPES_FOCAL_BASELINE,
    NO_BIN,
    NYU_EDGES,
    DepthBins,
    log_disparity,
    quantize,
)


def test_bins_of_nyu_and_cityscapes():
    """Bin 1 of NYU is the nearest, bin 1 of Cityscapes the farthest; 0: no bin."""
    millimetres = np.array([0, 1, 2, 1500, 1501, 2100, 2101, 3000, 3001, 4700, 4701, 100000, 100001])
    metres = jnp.asarray(millimetres / 1000, jnp.float32)
    np.testing.assert_array_equal(quantize(metres, NYU_EDGES), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 0])
    stored = jnp.array([0, 1, 10, 11, 2048, 2049, 2896, 5792, 5793, 9410, 9411, 10000, 15286, 15287, 16384])
    bins = [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4, 5, 5]
    np.testing.assert_array_equal(quantize(log_disparity(stored), CITYSCAPES_EDGES), bins)


def test_the_nearest_class_is_the_last():
    """So that class i pools by the i-th of dilations that rise: near means large."""
    depth = jnp.array([[[0.0, 0.5, 1.5, 1.6, 2.5, 4.0, 50.0, jnp.nan, jnp.inf, 200.0]]])
    expected = [[[NO_BIN, 4, 4, 3, 2, 1, 0, NO_BIN, NO_BIN, NO_BIN]]]
    np.testing.assert_array_equal(DepthBins().classes(depth), expected)
    # Disparities in pixels of the middle of each of Cityscapes' bins, and what makes no bin.
    disparity = np.array([4.0, 15.0, 30.0, 50.0, 100.0, 0.01])
    metres = jnp.asarray(CITYSCAPES_FOCAL_BASELINE / disparity, jnp.float32)[None, None]
    bins = DepthBins(CITYSCAPES_EDGES, "disparity")
    np.testing.assert_array_equal(bins.classes(metres)[0, 0], [0, 1, 2, 3, 4, NO_BIN])
    # An image enlarged by 2 has half the depth, so twice the disparity.
    assert bins.classes(metres / 2)[0, 0, 1] == 2


def test_weights_are_means_over_cells_and_equal_where_depth_is_missing():
    depth = np.full((2, 5, 6), 1.0, np.float32)  # the nearest bin
    depth[0, :4, :2] = 10.0  # half of the first cell is far
    depth[1] = 0.0
    weights = DepthBins().weights(jnp.asarray(depth), 4)
    assert weights.shape == (2, 2, 2, 5)
    near, far = np.eye(5)[4], np.eye(5)[0]
    np.testing.assert_allclose(weights[0], [[(near + far) / 2, near], [near, near]])
    np.testing.assert_allclose(weights[1], 0.2, rtol=1e-6)
    depth[0, 0, 0] = np.nan
    mixed = DepthBins().weights(jnp.asarray(depth), 4)[0, 0, 0]
    np.testing.assert_allclose(mixed, (8 * near + 7 * far + 0.2) / 16, rtol=1e-5)
    np.testing.assert_allclose(DepthBins().weights(jnp.asarray(depth), 4).sum(-1), 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(edges=(1.0, 2.0)), "edges"),
        (dict(edges=(1.0, 3.0, 2.0)), "rising"),
        (dict(focal_baseline=0.0), "focal_baseline"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DepthBins(**options)
