from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from dynpix_jax.evaluation.boundary import Annotation, match_radius


def brute_force(predicted: np.ndarray, annotated: np.ndarray, radius: float) -> tuple[int, float]:
    """Matches and total cost of the dense assignment in which every pixel of both sides may stay alone."""
    p, a = np.argwhere(predicted), np.argwhere(annotated)
    distance = np.sqrt(((p[:, None] - a[None]) ** 2).sum(axis=-1))
    never, alone = 1e9, 100 * radius
    cost = np.full((len(p) + len(a), len(a) + len(p)), never)
    cost[: len(p), : len(a)] = np.where(distance <= radius, np.rint(100 * distance) / 100, never)
    cost[np.arange(len(p)), len(a) + np.arange(len(p))] = alone
    cost[len(p) + np.arange(len(a)), np.arange(len(a))] = alone
    cost[len(p) :, len(a) :] = 0
    rows, columns = linear_sum_assignment(cost)
    total = float(cost[rows, columns].sum())
    assert total < never
    return int(((rows < len(p)) & (columns < len(a))).sum()), total


@given(
    st.integers(0, 2**31 - 1),
    st.integers(1, 14),
    st.integers(1, 14),
    st.floats(0.02, 0.6),
    st.floats(0.02, 0.6),
    st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.2, 4.3]),
)
def test_matching_is_the_minimum_cost_assignment(
    seed: int, height: int, width: int, share: float, other_share: float, radius: float
) -> None:
    generator = np.random.default_rng(seed)
    predicted = generator.random((height, width)) < share
    annotated = generator.random((height, width)) < other_share
    annotation = Annotation(annotated, radius)
    pixels = np.flatnonzero(predicted)
    matched = annotation.match(pixels)
    matches, total = brute_force(predicted, annotated, radius)
    assert annotation.count == annotated.sum()
    assert matched.sum() == matches
    # The very pixels that were chosen admit an assignment as cheap as the cheapest, if the rest stay alone.
    chosen = np.zeros(predicted.size, bool)
    chosen[pixels[matched]] = True
    cost_of_chosen = brute_force(chosen.reshape(predicted.shape), annotated, radius)[1]
    assert cost_of_chosen + (~matched).sum() * 100 * radius == pytest.approx(total)


def test_many_components_of_very_different_size() -> None:
    predicted, annotated = np.zeros((150, 400), bool), np.zeros((150, 400), bool)
    predicted[20:24, 5:300] = True  # four lines compete for one
    annotated[22, 0:310] = True
    annotated[60:64, 50:90] = True  # one line for four
    predicted[62, 40:100] = True
    generator = np.random.default_rng(0)
    for _ in range(60):  # small islands
        y, x = generator.integers(90, 140), generator.integers(5, 395)
        predicted[y, x] = True
        annotated[y + generator.integers(-4, 5), x + generator.integers(-4, 5)] = True
    matched = Annotation(annotated, 3.0).match(np.flatnonzero(predicted))
    assert matched.sum() == brute_force(predicted, annotated, 3.0)[0]


def test_distance_is_inclusive_and_costs_decide_who_is_matched() -> None:
    annotated = np.zeros((9, 9), bool)
    annotated[4, 4] = True
    far, near = 4 * 9 + 7, 4 * 9 + 5
    assert Annotation(annotated, 3.0).match(np.array([far])).all()
    assert not Annotation(annotated, 2.99).match(np.array([far])).any()
    np.testing.assert_array_equal(Annotation(annotated, 3.0).match(np.array([far, near])), [False, True])
    # (3, 4) to the corner: a diagonal distance of exactly 5
    corner = np.zeros((9, 9), bool)
    corner[0, 0] = True
    assert Annotation(corner, 5.0).match(np.array([3 * 9 + 4])).all()


def test_one_pixel_matches_only_one() -> None:
    """An augmenting chain: the middle pixel must give way so that both predicted pixels are matched."""
    annotated = np.zeros((1, 7), bool)
    annotated[0, [2, 4]] = True
    np.testing.assert_array_equal(Annotation(annotated, 2.0).match(np.array([0, 2])), [True, True])
    np.testing.assert_array_equal(Annotation(annotated, 1.0).match(np.array([0, 2])), [False, True])


def test_empty_sides() -> None:
    nothing = np.zeros(0, np.intp)
    assert Annotation(np.ones((3, 3), bool), 1.0).match(nothing).shape == (0,)
    assert not Annotation(np.zeros((3, 3), bool), 1.0).match(np.arange(9)).any()


def test_radius_is_a_share_of_the_diagonal() -> None:
    assert match_radius((321, 481), 0.0075) == pytest.approx(0.0075 * math.sqrt(321**2 + 481**2))
    with pytest.raises(ValueError, match="above 0"):
        Annotation(np.zeros((3, 3), bool), 0.0)
    with pytest.raises(ValueError, match="expected a mask"):
        Annotation(np.zeros((3, 3, 1), bool), 1.0)
