"""Eq. 9 and the depth scores on values worked out by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.sections import unread
from dynpix_jax.tasks.depth import Depth

VALID = np.array([True, True, False])


def test_loss_is_equation_9():
    target = np.array([[[2.0, 0.0]], [[5.0, np.inf]], [[9.0, 9.0]]], np.float32)
    predicted = np.array([[[3.0, 7.0]], [[4.0, 7.0]], [[1.0, 1.0]]], np.float32)
    errors = np.array([np.log(3 / 2), np.log(4 / 5)])  # of the pixels that are labelled and valid
    for gamma in (0.0, 2.0):
        found = jax.jit(Depth(gamma=gamma).loss)(np.log(predicted)[..., None], target, VALID)
        np.testing.assert_allclose(found, (errors**2 + gamma * np.abs(errors)).mean(), rtol=1e-5)


def test_loss_of_nothing_is_zero_and_gradients_are_finite():
    logits = np.full((3, 1, 2, 1), 30.0, np.float32)
    target = np.array([[[2.0, 0.0]], [[0.0, 0.0]], [[9.0, 9.0]]], np.float32)
    loss = jax.jit(jax.value_and_grad(Depth().loss))
    gradient = np.asarray(loss(logits, target, VALID)[1])
    np.testing.assert_array_equal(
        gradient[..., 0] != 0, [[[True, False]], [[False, False]], [[False, False]]]
    )
    assert np.isfinite(gradient).all()
    value, gradient = loss(logits, target, np.zeros(3, bool))
    assert float(value) == 0.0
    assert not np.asarray(gradient).any()


def test_scale_invariance():
    """Eigen et al.: all pairs of an image's pixels; a wrong scale costs nothing at lambda 1."""
    rng = np.random.default_rng(0)
    target, found = rng.uniform(1, 5, (2, 3, 4, 5)).astype(np.float32)
    target[0, 0] = 0.0
    errors = [np.log(f[t > 0] / t[t > 0]) for f, t in zip(found[:2], target[:2], strict=True)]
    # Their eq. 2 over all pairs (half of the mean squared difference), a mean weighted by pixels.
    pairs = [((e[:, None] - e[None]) ** 2).mean() / 2 for e in errors]
    expected = np.average(pairs, weights=[len(e) for e in errors])
    task = Depth(gamma=0.0, scale_invariance=1.0)
    np.testing.assert_allclose(task.loss(np.log(found)[..., None], target, VALID), expected, rtol=1e-5)
    scaled = np.log(np.where(target > 0, target, 1.0) * np.array([2.0, 0.3, 9.0])[:, None, None])
    assert float(task.loss(scaled[..., None], target, VALID)) == pytest.approx(0.0, abs=1e-6)
    half = Depth(gamma=0.0, scale_invariance=0.5).loss(np.log(found)[..., None], target, VALID)
    square = Depth(gamma=0.0).loss(np.log(found)[..., None], target, VALID)
    assert float(half) == pytest.approx((expected + float(square)) / 2, rel=1e-5)
    with pytest.raises(ValueError, match="scale_invariance"):
        Depth(scale_invariance=1.5)


def test_scores_on_a_constructed_case():
    """Factors of 1.2, 1 / 1.2, 1.25 exactly, 1.5, 1.9 and 2, and an invalid pixel."""
    target = np.array([[[1.0, 1.2, 4.0, 2.0], [1.0, 2.0, 0.0, 0.0]]], np.float32)
    prediction = np.array([[[1.2, 1.0, 5.0, 3.0], [1.9, 1.0, 50.0, 50.0]]], np.float32)
    task = Depth()
    batch = {"depth": target, "valid": np.array([True])}
    measure = jax.jit(task.measure)
    state = measure(prediction, batch)
    scores = task.compute(state)
    assert list(scores) == [score.name for score in task.scores]
    assert scores["delta1"] == pytest.approx(2 / 6)  # below, not at the limit
    assert scores["delta2"] == pytest.approx(4 / 6)
    assert scores["delta3"] == pytest.approx(5 / 6)
    errors = np.array([0.2, 0.2, 1.0, 1.0, 0.9, 1.0])
    factors = np.array([1.2, 1.2, 1.25, 1.5, 1.9, 2.0])
    assert scores["rmse"] == pytest.approx(np.sqrt((errors**2).mean()))
    assert scores["rmse_log"] == pytest.approx(np.sqrt((np.log(factors) ** 2).mean()))
    assert scores["abs_rel"] == pytest.approx((errors / target[target > 0]).mean())
    # Twice the same images, and padding, leave the scores as they are.
    padded = {name: np.concatenate([value, value]) for name, value in batch.items()}
    padded["valid"] = np.array([True, False])
    again = task.merge(state, measure(np.concatenate([prediction] * 2), padded))
    assert int(again["pixels"]) == 12
    assert task.compute(again) == pytest.approx(scores)


def test_decode_and_rescale():
    task = Depth()
    np.testing.assert_allclose(task.decode(np.log([[[[2.0]]]])), [[[2.0]]], rtol=1e-6)
    # A camera that sees everything twice as large is twice as near: its 3 m are 6 m.
    np.testing.assert_allclose(task.decode(task.rescale(np.log([[[[3.0]]]]), 2.0)), [[[6.0]]], rtol=1e-6)
    assert float(task.difference(jnp.array([2.0, 4.0]), jnp.array([2.0, 5.0]))) == pytest.approx(0.25)


def test_loss_of_metres_is_l1_plus_sobel():
    """Against SciPy's Sobel, 0 outside of the image; a missing depth takes the gradients around it out."""
    rng = np.random.default_rng(0)
    target, found = rng.uniform(1, 5, (2, 1, 6, 7)).astype(np.float32)
    target[0, 1, 2] = 0.0
    known = target[0] > 0
    error = np.where(known, found[0] - target[0], 0.0)
    whole = scipy.ndimage.minimum_filter(known, 3, mode="constant", cval=True)
    gradients = sum(np.abs(scipy.ndimage.sobel(error, axis, mode="constant")) for axis in (0, 1))
    expected = (np.abs(error)[known].sum() + gradients[whole].sum()) / known.sum()
    task = Depth(logit="metres")
    loss = jax.jit(jax.value_and_grad(task.loss))
    value, gradient = loss(found[..., None], target, np.array([True]))
    assert whole.sum() == 6 * 7 - 9
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert gradient[0, 1, 2, 0] == 0
    assert float(loss(found[..., None], 0 * target, np.array([True]))[0]) == 0.0
    np.testing.assert_allclose(task.decode(np.array([[[[2.0], [-1.0]]]])), [[[2.0, 0.001]]], rtol=1e-6)
    np.testing.assert_allclose(task.rescale(np.array([3.0]), 2.0), [6.0])


def test_holes_as_released():
    """Of 0 metres for the gradients, which count everywhere; without holes both losses are the same."""
    rng = np.random.default_rng(0)
    target, found = rng.uniform(1, 5, (2, 2, 6, 7)).astype(np.float32)
    target[0, 1, 2] = 0.0
    valid = np.array([True, False])
    slopes = [scipy.ndimage.sobel(found[0] - target[0], axis, mode="constant") for axis in (0, 1)]
    known = target[0] > 0
    expected = (np.abs(found - target)[0][known].sum() + np.abs(slopes).sum()) / known.sum()
    released, ours = Depth(logit="metres", holes="astmt"), Depth(logit="metres")
    np.testing.assert_allclose(released.loss(found[..., None], target, valid), expected, rtol=1e-5)
    target[0, 1, 2] = 2.0
    losses = [task.loss(found[..., None], target, valid) for task in (released, ours)]
    np.testing.assert_allclose(*losses, rtol=1e-6)


def test_options_of_the_other_logit_are_refused():
    found = [path for path, _, _ in unread(Depth(holes="astmt"))]
    assert found == ["holes"]
    assert [path for path, _, _ in unread(Depth(logit="metres", gamma=1.0))] == ["gamma"]
    assert not list(unread(Depth(logit="metres", holes="astmt")))


def test_scores_as_released():
    """Of four images: the mean of the RMSE, the median of the logarithm's; a missing depth is 1e-9 m."""
    target = np.array([[[2.0, 2.0]], [[2.0, 2.0]], [[2.0, 4.0]], [[2.0, 0.0]], [[9.0, 9.0]]], np.float32)
    found = np.array([[[3.0, 3.0]], [[5.0, 5.0]], [[2.0, 4.4]], [[2.0, 1.0]], [[1.0, 1.0]]], np.float32)
    task = Depth(scoring="astmt")
    batch = {"depth": target, "valid": np.array([True] * 4 + [False])}
    truth = np.where(target > 0, target, 1e-9)[:4].astype(float)
    rmse = np.sqrt(((found[:4] - truth) ** 2).mean((1, 2)))
    logs = np.sqrt(((np.log(found[:4]) - np.log(truth)) ** 2).mean((1, 2)))
    scores = task.compute(jax.jit(task.measure)(found, batch))
    assert scores["rmse"] == pytest.approx(rmse.mean())
    assert scores["rmse_log"] == pytest.approx(np.median(logs), rel=1e-3)
    three = {**batch, "valid": np.array([True] * 3 + [False] * 2)}
    assert task.compute(task.measure(found, three))["rmse_log"] == pytest.approx(logs[0], rel=1e-3)


def test_errors_of_images_averaged():
    """An image with an error of 1 at one pixel, one with 3 at both: 2 a mean of images, not of pixels."""
    target = np.array([[[2.0, 0.0]], [[2.0, 2.0]], [[0.0, 0.0]], [[2.0, 2.0]]], np.float32)
    prediction = np.array([[[3.0, 9.0]], [[5.0, 5.0]], [[1.0, 1.0]], [[1.0, 1.0]]], np.float32)
    task = Depth(scoring="per_image")
    batch = {"depth": target, "valid": np.array([True, True, True, False])}
    scores = task.compute(jax.jit(task.measure)(prediction, batch))
    assert scores["rmse"] == pytest.approx(2.0)
    assert scores["rmse_log"] == pytest.approx((np.log(1.5) + np.log(2.5)) / 2)
    assert scores["delta1"] == 0.0
    pooled = Depth().compute(Depth().measure(prediction, batch))
    assert pooled["rmse"] == pytest.approx(np.sqrt((1 + 9 + 9) / 3))


def test_nothing_labelled_and_wrong_options():
    with pytest.raises(UserError, match="depth: no labelled pixel"):
        Depth().compute({"pixels": 0})
    with pytest.raises(ValueError, match="gamma"):
        Depth(gamma=-1.0)
