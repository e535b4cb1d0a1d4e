"""How certain a prediction is: hand-worked values."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from dynpix_jax.ops.confidence import confidence
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


def test_a_mask_at_another_resolution_takes_the_top_left_position():
    mask = np.random.default_rng(0).random((1, 8, 12)) < 0.5
    for factor in (2, 4):
        np.testing.assert_array_equal(
            resize_nearest(jnp.asarray(mask), (8 // factor, 12 // factor)), mask[:, ::factor, ::factor]
        )
