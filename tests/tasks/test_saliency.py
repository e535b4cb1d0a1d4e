"""Saliency by hand: a set of thresholds, IoU, F of means, images without a salient pixel."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from dynpix_jax.core.errors import UserError
from dynpix_jax.tasks.saliency import THRESHOLDS, Saliency


def by_hand(prediction: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Image by image and threshold by threshold, with sets of pixels."""
    table = []
    for threshold in np.linspace(0.2, 0.9, 15):
        images = []
        for p, t in zip(prediction, target, strict=True):
            known = {place for place in np.ndindex(t.shape) if t[place] in (0, 1)}
            if not known:
                continue
            found = {place for place in known if p[place] > np.float32(threshold)}
            salient = {place for place in known if t[place] == 1}
            iou = len(found & salient) / len(found | salient) if found | salient else 1.0
            precision = len(found & salient) / len(found) if found else 0.0
            recall = len(found & salient) / len(salient) if salient else 0.0
            images.append((iou, precision, recall))
        iou, precision, recall = np.mean(images, axis=0)
        table.append((iou, 2 * precision * recall / (precision + recall) if precision + recall else 0.0))
    return dict(zip(("miou", "max_f"), np.max(table, axis=0), strict=True))


def test_scores():
    rng = np.random.default_rng(0)
    target = (rng.uniform(size=(5, 4, 6)) < 0.4).astype(np.int32)
    target[1, :2] = 255
    target[2] = 0  # nothing is salient
    target[3] = 255  # nothing is labelled
    prediction = np.clip(0.5 * target + rng.uniform(0, 0.6, target.shape), 0, 1).astype(np.float32)
    prediction[2] = 0.1  # and nothing is found
    task = Saliency()
    measure = jax.jit(task.measure)
    state = measure(prediction[:3], {"saliency": target[:3], "valid": np.ones(3, bool)})
    # Padding does not count.
    rest = {"saliency": np.concatenate([target[3:], target[:1]]), "valid": np.array([True, True, False])}
    state = task.merge(state, measure(np.concatenate([prediction[3:], prediction[:1]]), rest))
    assert int(state["images"]) == 4
    scores = task.compute(state)
    assert list(scores) == [score.name for score in task.scores]
    assert scores == pytest.approx(by_hand(prediction, target), rel=1e-5)
    assert len(THRESHOLDS) == 15
    with pytest.raises(UserError, match="saliency: no labelled pixel"):
        task.compute(measure(prediction[3:4], {"saliency": target[3:4], "valid": np.ones(1, bool)}))


def test_loss_is_balanced_within_an_image():
    """One salient pixel of four: it weighs 3/4, the others 1/4; an image without any costs nothing."""
    logits = np.array([0.5, -1.0, 2.0, 0.0, 7.0], np.float32)
    target = np.array([1, 0, 0, 0, 255], np.int32)
    cost = 0.75 * np.log1p(np.exp(-0.5)) + 0.25 * np.log1p(np.exp([-1.0, 2.0, 0.0])).sum()
    both = np.stack([logits, logits])[:, None, :, None]
    labels = np.stack([target, np.where(target == 255, 255, 0)])[:, None]
    loss = jax.jit(Saliency().loss)
    np.testing.assert_allclose(loss(both, labels, np.array([True, False])), cost / 4, rtol=1e-6)
    np.testing.assert_allclose(loss(both, labels, np.array([True, True])), cost / 8, rtol=1e-6)
    fixed = Saliency(positive_weight=0.5).loss(both, labels, np.array([False, True]))
    np.testing.assert_allclose(fixed, 0.5 * np.log1p(np.exp(logits[:4])).mean(), rtol=1e-6)
