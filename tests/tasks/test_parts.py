"""Parts: images without a person count for nothing; the rest is segmentation."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from dynpix_jax.core.errors import UserError
from dynpix_jax.tasks.parts import Parts
from dynpix_jax.tasks.segmentation import Segmentation, cross_entropy


def test_images_without_people_do_not_count():
    rng = np.random.default_rng(0)
    target = rng.integers(0, 7, (3, 4, 5)).astype(np.int32)
    target[1] = 0
    target[1, 0] = 255
    logits = rng.normal(size=(3, 4, 5, 7)).astype(np.float32)
    valid = np.ones(3, bool)
    loss, gradient = jax.jit(jax.value_and_grad(Parts().loss))(logits, target, valid)
    np.testing.assert_allclose(loss, cross_entropy(logits[::2], target[::2], valid[::2]), rtol=1e-6)
    assert not np.asarray(gradient)[1].any()
    prediction = logits.argmax(-1).astype(np.int32)
    found = Parts().compute(Parts().measure(prediction, {"parts": target, "valid": valid}))
    same = Segmentation(classes=7)
    expected = same.measure(prediction[::2], {"segmentation": target[::2], "valid": valid[::2]})
    assert found == same.compute(expected)
    with pytest.raises(UserError, match="parts: no labelled pixel"):
        Parts().compute(Parts().measure(prediction[1:2], {"parts": target[1:2], "valid": valid[:1]}))


def test_an_image_of_background_and_ignored_pixels_is_scored_as_released():
    """The released evaluation leaves out images of one value alone."""
    target = np.array([[[0, 0, 255]], [[0, 1, 255]], [[0, 0, 0]], [[255, 255, 255]]], np.int32)
    batch = {"parts": target, "valid": np.ones(4, bool)}
    prediction = np.zeros_like(target)
    for task, pixels in ((Parts(), 2), (Parts(scoring="astmt"), 4)):
        assert task.measure(prediction, batch)["confusion"].sum() == pixels


def test_it_is_another_task():
    task = Parts()
    assert (task.name, task.labels, task.class_count) == ("parts", ("parts",), 7)
