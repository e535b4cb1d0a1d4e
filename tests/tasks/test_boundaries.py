"""Eq. 7 of PAG by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax.tasks import boundaries


def by_hand(logits: np.ndarray, labels: np.ndarray) -> float:
    """One image, pixel by pixel."""
    pixels = [(x, y) for x, y in zip(logits.ravel().tolist(), labels.ravel().tolist(), strict=True) if y >= 0]
    if not pixels:
        return 0.0
    positives = sum(y for _, y in pixels)
    beta = (len(pixels) - positives) / len(pixels)
    cost = 0.0
    for x, y in pixels:
        p = 1.0 / (1.0 + np.exp(-x))
        cost += -beta * y * np.log(p) - (1 - beta) * (1 - y) * np.log(1 - p)
    return cost / len(pixels)


def test_class_balanced_loss():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (5, 6, 7, 1)).astype(np.float32)
    labels = (rng.uniform(size=(5, 6, 7)) < 0.2).astype(np.float32)
    labels[1] = np.where(rng.uniform(size=(6, 7)) < 0.3, rng.uniform(size=(6, 7)), 0)  # soft
    labels[2, :3] = -1  # ignored
    labels[3] = -1  # nothing labelled
    labels[4] = 0  # no boundary: beta is 1, so negatives weigh nothing
    images = [by_hand(x, y) for x, y in zip(logits, labels, strict=True)]
    assert images[3] == images[4] == 0.0
    assert min(images[:3]) > 0.0
    everything = np.ones(5, bool)
    np.testing.assert_allclose(boundaries.loss(logits, labels, everything), np.mean(images), rtol=1e-5)
    some = np.array([True, False, True, False, False])
    np.testing.assert_allclose(
        boundaries.loss(logits, labels, some), np.mean([images[0], images[2]]), rtol=1e-5
    )
    assert float(boundaries.loss(logits, labels, np.zeros(5, bool))) == 0.0


def test_fixed_weights():
    """Two boundary pixels and two others at logits 1 and -2: 0.95 and 0.05 of what each costs, over 4."""
    logits = np.array([[[[1.0], [-2.0], [1.0], [-2.0], [9.0]]]], np.float32)
    labels = np.array([[[1.0, 1.0, 0.0, 0.0, -1.0]]], np.float32)
    found = boundaries.Boundaries(positive_weight=0.95).loss(logits, labels, np.array([True]))
    costs = np.log1p(np.exp([-1.0, 2.0])), np.log1p(np.exp([1.0, -2.0]))
    np.testing.assert_allclose(found, (0.95 * costs[0].sum() + 0.05 * costs[1].sum()) / 4, rtol=1e-6)
    with pytest.raises(ValueError, match=r"^positive_weight: 1\.5; expected a number in \(0, 1\)"):
        boundaries.Boundaries(positive_weight=1.5)


def test_gradient_ignores_padding_and_unlabelled_pixels_and_survives_large_logits():
    logits = jnp.full((2, 3, 4, 1), 200.0)
    labels = jnp.ones((2, 3, 4)).at[0, 0].set(-1.0).at[0, 1].set(0.0)
    grad = jax.grad(boundaries.loss)(logits, labels, jnp.array([True, False]))
    assert np.isfinite(grad).all()
    assert not grad[1].any()
    assert not grad[0, 0].any()
    assert (grad[0, 1] > 0).all()


def test_decode():
    probability = boundaries.Boundaries().decode(jnp.array([[[[0.0], [100.0]]]]))
    np.testing.assert_allclose(probability, [[[0.5, 1.0]]])
