from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dynpix_jax.evaluation.boundary import (
    non_maximum_suppression,
    orientation,
    suppress,
    thin,
    triangle_filter,
)


def ridge(angle: float, size: int = 61, width: float = 2.5) -> tuple[np.ndarray, np.ndarray]:
    """A Gaussian ridge through the centre, its normal at `angle`; the map and the distances to its crest."""
    y, x = np.mgrid[:size, :size] - size // 2
    distance = x * math.cos(angle) + y * math.sin(angle)
    return np.exp(-(distance**2) / (2 * width**2)), distance


@pytest.mark.parametrize("radius", [1, 2, 4])
def test_triangle_filter_is_two_box_filters_and_keeps_constants(radius: int) -> None:
    image = np.random.default_rng(0).random((17, 23))
    box = np.ones(radius + 1) / (radius + 1)
    kernel = np.convolve(box, box)
    padded = np.pad(image, radius, mode="symmetric")
    rows = np.apply_along_axis(np.convolve, 1, padded, kernel, mode="valid")
    expected = np.apply_along_axis(np.convolve, 0, rows, kernel, mode="valid")
    np.testing.assert_allclose(triangle_filter(image, radius), expected, atol=1e-12)
    np.testing.assert_allclose(triangle_filter(np.full((9, 9), 0.3), radius), 0.3, atol=1e-12)


@pytest.mark.parametrize("degrees", [0.0, 20, 45, 70, 110, 135, 160])
def test_orientation_of_a_ridge(degrees: float) -> None:
    """On a straight ridge the formula gives an angle whose tangent is the normal's squared, sign kept."""
    angle = math.radians(degrees)
    edges, distance = ridge(angle)
    expected = math.atan(math.copysign(math.tan(angle) ** 2, math.tan(angle)))
    found = orientation(edges)[12:-12, 12:-12][np.abs(distance[12:-12, 12:-12]) < 1]
    assert np.abs(np.sin(found - expected)).max() < 0.02
    assert np.abs(np.sin(found - angle)).max() < math.sin(math.radians(13))


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("degrees", [0.0, 20, 45, 70, 110, 135, 160])
def test_only_the_crest_of_a_ridge_survives(degrees: float, smooth: bool) -> None:
    edges, distance = ridge(math.radians(degrees))
    result = non_maximum_suppression(edges, smooth=smooth)
    inner = np.zeros_like(edges, bool)
    inner[12:-12, 12:-12] = True
    assert np.abs(distance[(result > 0) & inner]).max() <= 1
    assert (result[inner & (np.abs(distance) <= 0.35)] > 0).all()
    # Values of the survivors are those of the (smoothed) map: 1 on the crest, a little less after smoothing.
    assert result[30, 30] == pytest.approx(triangle_filter(edges, 1)[30, 30] if smooth else 1.0)


def test_suppression_against_a_loop_over_pixels() -> None:
    generator = np.random.default_rng(1)
    edges = np.round(generator.random((13, 16)), 2) * (generator.random((13, 16)) < 0.8)
    normals = generator.random((13, 16)) * math.pi
    expected = np.zeros_like(edges)
    height, width = edges.shape
    for y in range(height):
        for x in range(width):
            keep = True
            for side in (-1, 1):
                px = min(max(x + side * math.cos(normals[y, x]), 0), width - 1.001)
                py = min(max(y + side * math.sin(normals[y, x]), 0), height - 1.001)
                x0, y0 = int(px), int(py)
                fx, fy = px - x0, py - y0
                value = (
                    edges[y0, x0] * (1 - fx) * (1 - fy)
                    + edges[y0, x0 + 1] * fx * (1 - fy)
                    + edges[y0 + 1, x0] * (1 - fx) * fy
                    + edges[y0 + 1, x0 + 1] * fx * fy
                )
                keep &= bool(edges[y, x] * 1.01 >= value)
            fade = min(x, width - 1 - x, 5) / 5 * min(y, height - 1 - y, 5) / 5
            expected[y, x] = edges[y, x] * keep * fade
    np.testing.assert_allclose(suppress(edges, normals), expected, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2), (3, 30)])
def test_tiny_maps(shape: tuple[int, int]) -> None:
    result = non_maximum_suppression(np.full(shape, 0.5))
    assert result.shape == shape
    assert np.isfinite(result).all()


def test_wrong_shapes_raise() -> None:
    with pytest.raises(ValueError, match="expected a map"):
        non_maximum_suppression(np.zeros((3, 4, 1)))
    with pytest.raises(ValueError, match="expected a map"):
        thin(np.zeros((3, 4, 1), bool))
    with pytest.raises(ValueError, match="must be one"):
        suppress(np.zeros((3, 4)), np.zeros((4, 3)))
    with pytest.raises(ValueError, match="at least 1"):
        triangle_filter(np.zeros((3, 4)), 0)


def thin_by_the_rules(mask: np.ndarray) -> np.ndarray:
    """Guo and Hall's rules as MATLAB's manual states them for bwmorph 'thin', pixel by pixel."""
    current = np.pad(mask.astype(int), 1)
    while True:
        before = current.copy()
        for second in (False, True):
            removed = []
            for y, x in np.argwhere(current == 1):
                east_first = [(0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1)]
                n = [0] + [int(current[y + dy, x + dx]) for dy, dx in east_first]  # n[1] ... n[8]
                n.append(n[1])
                g1 = sum(n[2 * i - 1] == 0 and (n[2 * i] == 1 or n[2 * i + 1] == 1) for i in range(1, 5)) == 1
                n1 = sum(n[2 * k - 1] or n[2 * k] for k in range(1, 5))
                n2 = sum(n[2 * k] or n[2 * k + 1] for k in range(1, 5))
                g2 = 2 <= min(n1, n2) <= 3
                if second:
                    g3 = not ((n[6] or n[7] or not n[4]) and n[5])
                else:
                    g3 = not ((n[2] or n[3] or not n[8]) and n[1])
                if g1 and g2 and g3:
                    removed.append((y, x))
            for y, x in removed:
                current[y, x] = 0
        if (current == before).all():
            return current[1:-1, 1:-1].astype(bool)


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14)))
def test_thinning_follows_the_rules_on_random_maps(mask: np.ndarray) -> None:
    np.testing.assert_array_equal(thin(mask), thin_by_the_rules(mask))


@given(st.integers(0, 2**31 - 1))
def test_thinning_keeps_components_on_blobs(seed: int) -> None:
    noise = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(40, 50)), (0, 0), 3)
    mask = noise > 0
    thinned = thin(mask)
    np.testing.assert_array_equal(thinned, thin_by_the_rules(mask))
    assert not (thinned & ~mask).any()
    count = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0]
    assert cv2.connectedComponents(thinned.astype(np.uint8), connectivity=8)[0] == count
    np.testing.assert_array_equal(thin(thinned), thinned)


def test_thinning_of_shapes_drawn_by_hand() -> None:
    bar = np.zeros((7, 12), bool)
    bar[2:5, 1:11] = True
    assert thin(bar)[3].sum() >= 7
    assert thin(bar).sum() == thin(bar)[3].sum()  # a bar of three rows becomes its middle row
    line = np.eye(8, dtype=bool)
    np.testing.assert_array_equal(thin(line), line)  # thin already
    ring = np.zeros((9, 9), bool)
    ring[1:8, 1:8] = True
    ring[4, 4] = False
    thinned = thin(ring)
    assert not thinned[4, 4]
    background = (~thinned).astype(np.uint8)
    assert cv2.connectedComponents(background, connectivity=4)[0] == 3  # label 0, the outside and the hole
    assert thin(np.zeros((0, 5), bool)).shape == (0, 5)
    assert thin(np.ones((1, 1), bool)).all()
