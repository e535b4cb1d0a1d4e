"""Cross-entropy, confusion matrices and iIoU, pixel by pixel and by hand."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import pytest

from dynpix_jax.core.errors import UserError
from dynpix_jax.tasks.segmentation import (
    CITYSCAPES_INSTANCE_SIZES,
    Segmentation,
    confusion_matrix,
    cross_entropy,
    labelled,
)

VALID = np.array([True, True, False])


def example(classes: int = 4):
    rng = np.random.default_rng(0)
    target = rng.integers(0, classes, (3, 5, 6), np.int32)
    target[0, :2] = 255
    return rng.normal(0, 2, (3, 5, 6, classes)).astype(np.float32), target


@pytest.mark.parametrize("weights", [(), (1.0, 0.5, 0.0, 3.0)])
def test_cross_entropy_pixel_by_pixel(weights):
    logits, target = example()
    cost = total = 0.0
    for image in np.flatnonzero(VALID):
        for pixel, label in zip(logits[image].reshape(-1, 4), target[image].ravel(), strict=True):
            if label != 255:
                weight = weights[label] if weights else 1.0
                cost -= weight * np.log(np.exp(pixel[label]) / np.exp(pixel).sum())
                total += weight
    loss = partial(cross_entropy, target=target, valid=VALID, class_weights=weights)
    found, gradient = jax.jit(jax.value_and_grad(loss))(logits)
    np.testing.assert_allclose(found, cost / total, rtol=1e-5)
    # Of a pixel: its weight times softmax minus 1 at the target.
    share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True) - np.eye(256)[target][..., :4]
    counted = (target != 255) & VALID[:, None, None]
    weight = np.where(counted, np.array([*(weights or np.ones(4)), *np.zeros(252)])[target], 0)
    np.testing.assert_allclose(gradient, weight[..., None] * share / total, atol=1e-7)


def test_loss_of_nothing_is_zero_with_a_gradient_of_zero():
    logits, target = example()
    loss = jax.jit(jax.value_and_grad(Segmentation(classes=4).loss))
    for label, valid in ((np.full_like(target, 255), VALID), (target, np.zeros(3, bool))):
        value, gradient = loss(logits, label, valid)
        assert float(value) == 0.0
        assert not np.asarray(gradient).any()
    gradient = np.asarray(loss(logits, target, VALID)[1])
    assert not gradient[2].any()
    assert not gradient[0, :2].any()
    assert gradient[0, 2:].any(-1).all()


def test_confusion_matrix_by_brute_force():
    logits, target = example()
    prediction = logits.argmax(-1).astype(np.int32)
    expected = np.zeros((4, 4), int)
    for image in np.flatnonzero(VALID):
        for found, label in zip(prediction[image].ravel(), target[image].ravel(), strict=True):
            if label != 255:
                expected[label, found] += 1
    found = jax.jit(
        lambda found, label, valid: confusion_matrix(found, label, labelled(label, valid, 4, 255), 4)
    )
    np.testing.assert_array_equal(found(prediction, target, VALID), expected)


def test_scores_by_hand():
    """Class 2 is predicted once and never true, class 3 does not occur at all."""
    target = np.array([[[0, 0, 0, 1], [1, 1, 255, 255]]], np.int32)
    prediction = np.array([[[0, 0, 1, 1], [1, 2, 0, 3]]], np.int32)
    task = Segmentation(classes=4)
    state = jax.jit(task.measure)(prediction, {"segmentation": target, "valid": np.array([True])})
    scores = task.compute(state)
    assert set(scores) == {score.name for score in task.scores}
    # Of class 0 two of three are found; of class 1 two of three, and one other pixel is called so.
    np.testing.assert_allclose(scores["miou"], (2 / 3 + 2 / 4 + 0) / 3)
    np.testing.assert_allclose(scores["mean_accuracy"], (2 / 3 + 2 / 3) / 2)
    np.testing.assert_allclose(scores["pixel_accuracy"], 4 / 6)
    table = task.per_class(state)
    assert table == {
        "iou": [pytest.approx(2 / 3), pytest.approx(0.5), 0.0, None],
        "accuracy": [pytest.approx(2 / 3), pytest.approx(2 / 3), None, None],
    }


def test_classes_that_do_not_occur_as_released_by_astmt():
    target, prediction = np.array([[[0, 0, 1, 255]]], np.int32), np.array([[[0, 1, 1, 3]]], np.int32)
    batch = {"segmentation": target, "valid": np.array([True])}
    ours, theirs = Segmentation(classes=4), Segmentation(classes=4, scoring="astmt")
    state = ours.measure(prediction, batch)
    assert ours.compute(state)["miou"] == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert theirs.compute(state) == {**ours.compute(state), "miou": pytest.approx((1 / 2 + 1 / 2) / 4)}
    assert theirs.per_class(state) == ours.per_class(state)


def test_batches_merge_to_the_whole_and_padding_does_not_count():
    logits, target = example()
    task = Segmentation(classes=4)
    prediction, measure = logits.argmax(-1).astype(np.int32), jax.jit(task.measure)
    whole = measure(prediction[:2], {"segmentation": target[:2], "valid": VALID[:2]})
    parts = [
        measure(prediction[[i, 2]], {"segmentation": target[[i, 2]], "valid": np.array([True, False])})
        for i in (0, 1)
    ]
    merged = task.merge(*parts)
    assert merged["confusion"].dtype == np.int64
    np.testing.assert_array_equal(merged["confusion"], whole["confusion"])


def test_iiou_by_hand():
    """Two instances of class 1 (4 and 2 pixels), one of class 2, and a group that is none.

    The average instance has 8 pixels of class 1: each pixel of the first weighs 2, of the second 4. Of the
    first 3 are found (6 of 8), of the second 1 (4 of 8).
    """
    target = np.array([[[1, 1, 1, 1], [1, 1, 2, 2], [0, 0, 1, 1]]], np.int32)
    instances = np.array([[[70, 70, 70, 70], [9, 9, 3, 3], [0, 0, 0, 0]]], np.int32)
    prediction = np.array([[[1, 1, 1, 0], [1, 0, 2, 2], [1, 0, 1, 1]]], np.int32)
    task = Segmentation(classes=3, instance_sizes=((1, 8.0), (2, 3.0)))
    assert task.labels == ("segmentation", "instances")
    batch = {"segmentation": target, "instances": instances, "valid": np.array([True])}
    measure = jax.jit(task.measure)
    state = measure(prediction, batch)
    np.testing.assert_allclose(state["instance_positives"], [0.0, 6.0 + 4.0, 3.0])
    np.testing.assert_allclose(state["instance_negatives"], [0.0, 2.0 + 4.0, 0.0])
    # One pixel of class 0 is called 1: a false positive, not weighted. The group's pixels count for the
    # confusion matrix only.
    scores, table = task.compute(state), task.per_class(state)
    np.testing.assert_allclose(scores["iiou"], (10 / (10 + 6 + 1) + 1) / 2)
    assert table["iiou"] == [None, pytest.approx(10 / 17), 1.0]
    np.testing.assert_allclose(table["iou"][1], 6 / (8 + 1))
    # Padding adds nothing, and equal ids in another image are another instance.
    twice = {name: np.concatenate([value] * 3) for name, value in batch.items()}
    twice["valid"] = np.array([True, False, True])
    state = task.merge(state, measure(np.concatenate([prediction] * 3), twice))
    np.testing.assert_allclose(state["instance_positives"], [0.0, 30.0, 9.0])


def test_iiou_against_the_formula_instance_by_instance():
    rng = np.random.default_rng(1)
    shape, sizes = (1, 20, 30), dict(CITYSCAPES_INSTANCE_SIZES)
    instances = rng.integers(0, 12, shape).astype(np.int32)
    target = (8 + instances % 11).astype(np.int32)
    ids = np.where(instances % 3 == 0, 0, 26_000 + instances).astype(np.int32)
    prediction = np.where(rng.uniform(size=shape) < 0.6, target, 13).astype(np.int32)
    task = Segmentation(classes=19, instance_sizes="cityscapes")
    batch = {"segmentation": target, "instances": ids, "valid": np.array([True])}
    state = jax.jit(task.measure)(prediction, batch)
    positives, negatives = np.zeros(19), np.zeros(19)
    for instance in np.unique(ids[ids > 1000]):
        mask = ids == instance
        label = target[mask][0]
        if label in sizes:
            weight = sizes[label] / mask.sum()
            positives[label] += weight * (prediction[mask] == label).sum()
            negatives[label] += weight * (prediction[mask] != label).sum()
    np.testing.assert_allclose(state["instance_positives"], positives, rtol=1e-5)
    np.testing.assert_allclose(state["instance_negatives"], negatives, rtol=1e-5, atol=1e-3)
    # reference: a car of half the average size counts double.
    assert sizes[13] / 6397 == pytest.approx(2.0, abs=1e-3)


def test_mix_and_unmix_average_probabilities():
    """Logits are known but for a constant; certainty stays finite."""
    task = Segmentation(classes=4)
    logits = example()[0]
    logits[0, 0, 0] = (-1e4, 0.0, 0.0, 1e4)
    probability, again = jax.jit(lambda x: (task.mix(x), task.unmix(task.mix(x))))(logits)
    assert np.isfinite(again).all()
    np.testing.assert_allclose(np.exp(again), probability, rtol=1e-5, atol=1e-30)
    np.testing.assert_allclose(probability.sum(-1), 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(classes=1), "classes: 1"),
        (dict(classes=300), "ignore: 255 is a class"),
        (dict(classes=3, class_weights=(1.0,)), "class_weights: 1 weights for 3 classes"),
        (dict(classes=2, class_weights=(1.0, -1.0)), "class_weights"),
        (dict(classes=3, instance_sizes="cityscapes"), "instance_sizes: \\(11, 3462.48\\)"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        Segmentation(**options)


def test_nothing_labelled():
    task = Segmentation(classes=2)
    with pytest.raises(UserError, match="segmentation: no labelled pixel"):
        task.compute({"confusion": np.zeros((2, 2), int)})
