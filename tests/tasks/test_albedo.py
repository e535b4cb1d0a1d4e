"""Albedo: L1 of colours, and errors of images averaged."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from dynpix_jax.core.errors import UserError
from dynpix_jax.tasks.albedo import Albedo

TARGET = np.array([[[[0.5, 0.0, 1.0], [-1.0, -1.0, -1.0]]], [[[0.2, 0.2, 0.2], [0.4, 0.4, 0.4]]]], np.float32)
LOGITS = np.array([[[[0.6, -0.2, 1.0], [9.0, 9.0, 9.0]]], [[[0.2, 0.2, 0.2], [1.0, 0.4, 0.4]]]], np.float32)


def test_loss():
    loss = jax.jit(jax.value_and_grad(Albedo().loss))
    value, gradient = loss(LOGITS, TARGET, np.array([True, True]))
    np.testing.assert_allclose(value, (0.1 + 0.2 + 0.6) / 9, rtol=1e-6)
    assert not np.asarray(gradient)[0, 0, 1].any()
    assert float(loss(LOGITS, TARGET, np.array([False, False]))[0]) == 0.0


def test_scores():
    task = Albedo()
    prediction = np.asarray(task.decode(LOGITS))
    assert prediction.min() == 0.0
    assert prediction.max() == 1.0
    state = jax.jit(task.measure)(prediction, {"albedo": TARGET, "valid": np.array([True, True])})
    # Errors 0.1, 0, 0 of the one labelled pixel of the first image; 0.6 of six values of the second.
    scores = task.compute(state)
    assert scores["rmse"] == pytest.approx((np.sqrt(0.01 / 3) + np.sqrt(0.36 / 6)) / 2)
    assert scores["mae"] == pytest.approx((0.1 / 3 + 0.6 / 6) / 2)
    with pytest.raises(UserError, match="albedo: no labelled pixel"):
        task.compute(task.measure(prediction, {"albedo": TARGET, "valid": np.array([False, False])}))
