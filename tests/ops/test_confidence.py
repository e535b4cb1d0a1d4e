"""Which positions are certain: hand-worked values, shares, and masks that only shrink."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax.ops.confidence import confidence, uncertain
from dynpix_jax.ops.resize import resize_nearest

PROBABILITIES = np.array([[0.998, 0.001, 0.001], [0.5, 0.25, 0.25], [1 / 3] * 3])
LOGITS = jnp.asarray(np.log(PROBABILITIES)[None, None] + 7.0, jnp.float32)


def test_values_by_hand():
    np.testing.assert_allclose(confidence(LOGITS, "max_probability")[0, 0], [0.998, 0.5, 1 / 3], rtol=1e-5)
    entropy = [-(p * np.log(p)).sum() for p in PROBABILITIES]
    np.testing.assert_allclose(-confidence(LOGITS, "entropy")[0, 0], entropy, rtol=1e-4)
    np.testing.assert_allclose(
        confidence(LOGITS, "max_value")[0, 0], -(np.log([0.998, 0.5, 1 / 3]) + 7), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("criterion", "threshold", "expected"),
    [
        ("max_probability", 0.9, [False, True, True]),
        ("max_probability", 1.0, [True, True, True]),
        ("max_probability", 0.0, [False, False, False]),
        ("entropy", 0.5, [False, True, True]),
        ("entropy", 1.05, [False, False, True]),
        ("max_value", 6.5, [True, False, False]),
        ("top_k", 1 / 3, [False, True, True]),
        ("top_k", 2 / 3, [False, False, True]),
        ("top_k", 1.0, [False, False, False]),
        ("random", 0.0, [True, True, True]),
    ],
)
def test_where_to_compute_on(criterion, threshold, expected):
    assert uncertain(LOGITS, criterion, threshold)[0, 0].tolist() == expected


@pytest.mark.parametrize(
    ("criterion", "threshold"),
    [("max_probability", 0.6), ("entropy", 0.7), ("top_k", 0.4), ("random", 0.4), ("max_value", 0.5)],
)
def test_masks_only_shrink(criterion, threshold):
    rng = np.random.default_rng(0)
    step = jax.jit(partial(uncertain, criterion=criterion, threshold=threshold))
    mask = None
    for _ in range(3):
        logits = jnp.asarray(rng.normal(size=(2, 8, 10, 3)), jnp.float32)
        after = step(logits, before=mask)
        if mask is not None:
            assert not np.any(after & ~mask)
        if criterion in ("top_k", "random"):
            assert np.all(np.sum(~after, (1, 2)) == 32)
        mask = after


def test_random_positions_come_from_the_key():
    logits = jnp.zeros((1, 8, 10, 3))
    first, second = (uncertain(logits, "random", 0.5, key=jax.random.key(seed)) for seed in (0, 1))
    assert np.any(first != second)
    np.testing.assert_array_equal(first, uncertain(logits, "random", 0.5))


def test_a_mask_at_another_resolution_takes_the_top_left_position():
    mask = np.random.default_rng(0).random((1, 8, 12)) < 0.5
    for factor in (2, 4):
        np.testing.assert_array_equal(
            resize_nearest(jnp.asarray(mask), (8 // factor, 12 // factor)), mask[:, ::factor, ::factor]
        )


def test_unknown_criterion():
    with pytest.raises(ValueError, match="'sure'"):
        uncertain(LOGITS, "sure", 0.5)  # type: ignore[arg-type]
