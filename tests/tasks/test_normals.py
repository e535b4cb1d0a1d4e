"""Eq. 10, its gradient, and angles on constructed vectors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax.core.errors import UserError
from dynpix_jax.tasks.normals import Normals, angle, soft_arccos, unit

measure = jax.jit(Normals().measure)


def turned(degrees: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Random unit vectors, and others at those angles from them."""
    first = rng.normal(size=(*degrees.shape, 3))
    first /= np.linalg.norm(first, axis=-1, keepdims=True)
    across = np.cross(first, rng.normal(size=first.shape))
    across /= np.linalg.norm(across, axis=-1, keepdims=True)
    radians = np.deg2rad(degrees)[..., None]
    second = np.cos(radians) * first + np.sin(radians) * across
    return first.astype(np.float32), second.astype(np.float32)


def test_angle_is_right_at_both_ends():
    degrees = np.array([0.0, 0.01, 1.0, 45.0, 90.0, 179.0, 180.0])
    first, second = turned(degrees, np.random.default_rng(0))
    between = jax.jit(angle)
    np.testing.assert_allclose(between(first, 3.0 * second), degrees, atol=1e-4)
    np.testing.assert_allclose(between(first, first), 0.0, atol=1e-5)


def test_soft_arccos_has_the_released_gradient_everywhere():
    cosine = np.array([-1.5, -1.0, -0.999999, -0.6, 0.0, 0.8, 0.999999, 1.0, 1.5], np.float32)
    value, gradient = jax.jit(jax.vmap(jax.value_and_grad(soft_arccos)))(cosine)
    np.testing.assert_allclose(value, np.arccos(np.clip(cosine, -1, 1)), rtol=1e-5)
    expected = -1 / (0.2 + np.sqrt(np.maximum(1 - cosine.astype(float) ** 2, 0)))
    np.testing.assert_allclose(gradient, expected, rtol=1e-3)
    np.testing.assert_allclose(np.asarray(gradient)[[1, 7]], -5.0)
    np.testing.assert_allclose(np.asarray(gradient)[3], -1 / (0.2 + 0.8), rtol=1e-5)


def test_without_softening_the_angle_pulls_alike_everywhere():
    """Figure 4: the slope over the angle is lambda, also next to 0, where the softened one vanishes."""
    degrees = np.array([0.5, 5.0, 60.0])
    target = np.array([0.0, 0.0, -1.0], np.float32).reshape(1, 1, 1, 3)

    def slope(task: Normals) -> list[float]:
        def loss(angle):
            logits = 9.0 * jnp.stack([jnp.sin(angle), jnp.zeros(()), -jnp.cos(angle)])
            return task.loss(logits.reshape(1, 1, 1, 3), target, np.array([True]))

        return jax.jit(jax.vmap(jax.grad(loss)))(np.deg2rad(degrees))

    np.testing.assert_allclose(slope(Normals(cosine=0.0, softening=0.0)), 4.0, rtol=1e-3)
    sine = np.sin(np.deg2rad(degrees))
    np.testing.assert_allclose(slope(Normals(cosine=0.0)), 4 * sine / (0.2 + sine), rtol=0.02)
    assert np.isfinite(jax.grad(soft_arccos)(1.0, 0.0))


def test_loss_is_equation_10():
    degrees = np.array([[[10.0, 60.0], [120.0, 0.0]]])
    target, predicted = turned(degrees, np.random.default_rng(1))
    target[0, 1, 1] = 0.0  # invalid
    logits = 50.0 * predicted  # of any length
    counted = np.array([10.0, 60.0, 120.0])
    expected = (1 - np.cos(np.deg2rad(counted))) + 4 * np.deg2rad(counted)
    loss = jax.jit(Normals().loss)
    np.testing.assert_allclose(loss(logits, target, np.array([True])), expected.mean(), rtol=1e-4)
    no_arccos = jax.jit(Normals(arccos=0.0).loss)(logits, target, np.array([True]))
    np.testing.assert_allclose(no_arccos, (1 - np.cos(np.deg2rad(counted))).mean(), rtol=1e-4)
    assert float(loss(logits, target, np.array([False]))) == 0.0


def test_l1_is_the_mean_over_components():
    target = np.array([[[[0.6, 0.0, -0.8], [0.0, 0.0, 0.0]]]], np.float32)
    logits = np.array([[[[0.0, 30.0, -40.0], [1.0, 1.0, 1.0]]]], np.float32)  # (0, 0.6, -0.8), long
    found = Normals(cosine=0.0, arccos=0.0, l1=1.0).loss(logits, target, np.array([True]))
    np.testing.assert_allclose(found, (0.6 + 0.6 + 0.0) / 3, rtol=1e-5)


def test_gradient_is_finite_everywhere():
    """Also for the zero vector and where the prediction is exactly right or exactly opposite."""
    target = np.zeros((1, 5, 3, 3), np.float32)
    target[:, :, 0, 2] = 1.0
    target[:, :, 1] = 3**-0.5
    given = np.zeros((1, 5, 3, 3), np.float32)
    given[..., 2] = np.array([0.0, 1e-20, 1.0, -1.0, 1e15])[:, None]
    value, gradient = jax.jit(jax.value_and_grad(Normals().loss))(given, target, np.array([True]))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert np.asarray(gradient)[0, :4, 1].any(-1).all()
    assert not np.asarray(gradient)[:, :, 2].any()  # invalid


def test_each_release_has_its_epsilon():
    """ASTMT's stands beside the norm: short logits keep their whole gradient."""
    direction = np.array([0.6, 0.0, -0.8], np.float32)
    for length, share in ((1.0, 1.0), (1e-1, 0.9995), (1e-2, 0.9535), (1e-3, 0.3015)):
        np.testing.assert_allclose(unit(length * direction, "astmt"), direction, rtol=1e-6)
        np.testing.assert_allclose(unit(length * direction), share * direction, rtol=1e-4)
    target = np.array([[[[-0.6, 0.64, -0.48]]]], np.float32)
    direction = np.array([0.36, 0.48, -0.8], np.float32)
    slope = jax.jit(jax.grad(Normals(cosine=0.0, arccos=0.0, l1=1.0, epsilon="astmt").loss))
    for length in (1e-6, 1e-3, 1.0):
        found = slope(length * direction[None, None, None], target, np.array([True]))[0, 0, 0]
        # Of a third of |x - -.6| + |y - .64| + |z - -.48|, by x / |x|.
        sides = np.array([1, -1, -1]) / 3
        expected = (sides - np.dot(sides, direction) * direction) / length
        np.testing.assert_allclose(found, expected, rtol=1e-3)
    nothing = np.zeros((1, 1, 1, 3), np.float32)
    assert np.isfinite(slope(nothing, target, np.array([True]))).all()


def test_prediction_has_unit_length():
    rng = np.random.default_rng(2)
    logits = np.concatenate([rng.normal(0, scale, (1, 4, 5, 3)) for scale in (1e-30, 1e-3, 1.0, 1e20)])
    logits[0, 0, 0] = 0.0
    decoded = np.asarray(jax.jit(Normals().decode)(logits.astype(np.float32)))
    np.testing.assert_allclose(np.linalg.norm(decoded, axis=-1), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(decoded[0, 0, 0], [0.0, 0.0, -1.0])
    np.testing.assert_allclose(jax.jit(unit)(np.array([3.0, 0.0, 4.0])), [0.6, 0.0, 0.8], rtol=1e-6)


def test_scores_on_constructed_angles():
    rng = np.random.default_rng(3)
    degrees = np.concatenate([rng.uniform(0, 180, 993), [0.0, 180.0, 11.2, 11.3, 22.4, 22.6, 29.9]])
    target, predicted = turned(degrees.reshape(1, 20, 50), rng)
    task = Normals()
    batch = {"normals": target, "valid": np.array([True])}
    state = measure(predicted, batch)
    scores = task.compute(state)
    assert list(scores) == [score.name for score in task.scores]
    assert scores["mean"] == pytest.approx(degrees.mean(), rel=1e-5)
    assert scores["rmse"] == pytest.approx(np.sqrt((degrees**2).mean()), rel=1e-5)
    assert scores["median"] == pytest.approx(np.median(degrees), abs=0.01 + 180 / 1000)
    for name, limit in (("within_11", 11.25), ("within_22", 22.5), ("within_30", 30.0)):
        assert scores[name] == pytest.approx((degrees < limit).mean())
    # A second batch, its second element padding, and an invalid pixel.
    second = target.copy()
    second[0, 0, 0] = 0.0
    padded = {"normals": np.concatenate([second, target]), "valid": np.array([True, False])}
    merged = task.merge(state, measure(np.concatenate([predicted] * 2), padded))
    assert int(merged["pixels"]) == 1999
    assert int(merged["histogram"].sum()) == 1999


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_median_is_exact_to_the_bin(count):
    degrees = np.random.default_rng(count).gamma(2.0, 8.0, count).clip(0, 179)
    if count > 2:  # neighbours of the middle at most a hundredth apart: nothing to choose from
        degrees[: count // 2 + 1] = degrees[0] + 1e-3 * np.arange(count // 2 + 1)
    target, predicted = turned(degrees.reshape(1, 1, count), np.random.default_rng(0))
    task = Normals()
    median = task.compute(measure(predicted, {"normals": target, "valid": np.array([True])}))["median"]
    low, high = np.quantile(degrees, 0.5, method="lower"), np.quantile(degrees, 0.5, method="higher")
    assert low - 0.011 <= median <= high + 0.011


def test_mirror_turns_x():
    logits = jnp.array([[[[0.5, 0.2, -1.0]]]])
    np.testing.assert_allclose(Normals().mirror(logits), [[[[-0.5, 0.2, -1.0]]]])


def test_nothing_labelled_and_wrong_options():
    with pytest.raises(UserError, match="normals: no labelled pixel"):
        Normals().compute({"pixels": 0})
    with pytest.raises(ValueError, match="arccos"):
        Normals(arccos=-1.0)
