"""Semantic segmentation: cross-entropy (PAG eq. 8), IoU from one confusion matrix, Cityscapes' iIoU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dynpix_jax.core.task import PixelTask, Score, State, pixel_count
from dynpix_jax.core.typing import Array

NAME = "segmentation"
MIOU = Score("miou", "mIoU", "intersection over union of prediction and truth, mean over classes")
SCORES = (
    MIOU,
    Score("pixel_accuracy", "pixel acc", "share of labelled pixels with the right class"),
    Score("mean_accuracy", "class acc", "share of a class's pixels that were found, mean over classes"),
)
IIOU = Score("iiou", "iIoU", "IoU in which every instance of a class weighs the same, mean over classes")

CITYSCAPES_INSTANCE_SIZES = (
    (11, 3462.48),  # person
    (12, 3930.48),  # rider
    (13, 12794.02),  # car
    (14, 27855.13),  # truck
    (15, 35732.15),  # bus
    (16, 67583.71),  # train
    (17, 6298.72),  # motorcycle
    (18, 4672.32),  # bicycle
)
"""(train id, average pixels of an instance) of the benchmark's 8 classes with instances (cityscapesScripts,
evalPixelLevelSemanticLabeling)."""


def cross_entropy(
    logits: Array, target: Array, valid: Array, *, ignore: int = 255, class_weights: tuple[float, ...] = ()
) -> Array:
    """Softmax cross-entropy, the weighted mean over the labelled pixels of valid images.

    Args:
        logits: (B, H, W, C).
        target: (B, H, W) integer; ``ignore`` and values that are no class do not count.
        valid: (B,) bool.
        ignore: Value of pixels without a label.
        class_weights: C weights, by the target's class; () weighs all alike.

    Returns:
        Scalar, nats per pixel: sum of weight x cost over sum of weight, as in PyTorch. 0 without a pixel.
    """
    classes = logits.shape[-1]
    counted = labelled(target, valid, classes, ignore)
    target = jnp.where(counted, target, 0)
    cost = _nats(logits, target)
    weight = counted.astype(jnp.float32)
    if class_weights:
        weight = weight * jnp.asarray(class_weights, jnp.float32)[target]
    total = weight.sum()
    return (weight * cost).sum() / jnp.where(total > 0, total, 1.0)


@jax.custom_vjp
def _nats(logits: Array, target: Array) -> Array:
    """-log softmax of the target's class (B, H, W), float32.

    Its own derivative: JAX's would keep a float32 map of all classes, and scatter.
    """
    return _nats_forward(logits, target)[0]


def _nats_forward(logits: Array, target: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    wide = logits.astype(jnp.float32)
    total = jax.nn.logsumexp(wide, axis=-1)
    return total - jnp.where(_is_class(target, logits), wide, 0).sum(-1), (logits, target, total)


def _nats_backward(saved: tuple[Array, Array, Array], gradient: Array) -> tuple[Array, None]:
    logits, target, total = saved
    share = jnp.exp(logits.astype(jnp.float32) - total[..., None])
    to_logits = (share - _is_class(target, logits)) * gradient[..., None]
    return to_logits.astype(logits.dtype), None


_nats.defvjp(_nats_forward, _nats_backward)


def _is_class(target: Array, logits: Array) -> Array:
    return target[..., None] == jnp.arange(logits.shape[-1])


def labelled(target: Array, valid: Array, classes: int, ignore: int) -> Array:
    """(B, H, W) bool: pixels of valid images with a class in 0 .. classes - 1."""
    return (target != ignore) & (target >= 0) & (target < classes) & valid[:, None, None]


def confusion_matrix(prediction: Array, target: Array, counted: Array, classes: int) -> Array:
    """(C, C) int32 numbers of counted pixels: row = target, column = prediction."""
    place = jnp.where(counted, target * classes + prediction, classes**2)
    return jnp.bincount(place.ravel(), length=classes**2 + 1)[:-1].reshape(classes, classes)


def instance_sums(
    prediction: Array, target: Array, instances: Array, counted: Array, sizes: Array
) -> tuple[Array, Array]:
    """Weighted true positives and false negatives of iIoU, a class each.

    An instance of n pixels weighs each of them with (average size of its class) / n.

    Args:
        prediction: (B, H, W) classes.
        target: (B, H, W) classes.
        instances: (B, H, W) integer ids, unique within an image; 0 = part of no single instance.
        counted: (B, H, W) bool, pixels with a class.
        sizes: (C,) average size of an instance of each class; 0 for classes without instances.
    """

    def image_sums(prediction: Array, target: Array, instances: Array, counted: Array) -> tuple[Array, Array]:
        target = jnp.where(counted, target, 0)
        part = (counted & (instances > 0) & (sizes[target] > 0)).ravel()
        # Ids may be any numbers: sorted, an instance is a run of pixels, numbered from 0.
        ids = jnp.where(part, instances.ravel(), jnp.iinfo(jnp.int32).min)
        order = jnp.argsort(ids)
        ids, part = ids[order], part[order]
        classes, hits = target.ravel()[order], (prediction == target).ravel()[order] & part
        run = jnp.cumsum(jnp.concatenate([jnp.zeros(1, bool), ids[1:] != ids[:-1]]))
        pixels = jax.ops.segment_sum(part.astype(jnp.int32), run, ids.size)
        found = jax.ops.segment_sum(hits.astype(jnp.int32), run, ids.size)
        run_class = jax.ops.segment_max(jnp.where(part, classes, 0), run, ids.size)
        run_class = jnp.clip(run_class, 0)  # empty runs hold the least integer
        share = found / jnp.maximum(pixels, 1)
        weight = jnp.where(pixels > 0, sizes[run_class], 0.0)
        positives = jax.ops.segment_sum(weight * share, run_class, len(sizes))
        negatives = jax.ops.segment_sum(weight * (1 - share), run_class, len(sizes))
        return positives, negatives

    positives, negatives = jax.vmap(image_sums)(prediction, target, instances, counted)
    return positives.sum(0), negatives.sum(0)


@dataclass(frozen=True)
class Segmentation(PixelTask):
    """Target int32 (B, H, W): classes 0 .. classes - 1, ``ignore`` = not labelled.

    Attributes:
        classes: Their number.
        ignore: Value of pixels that do not count.
        class_weights: Of the loss, one a class; () weighs all alike.
        instance_sizes: ``cityscapes`` or (class, average pixels of an instance) pairs. With them iIoU is a
            score, too: it reads a field ``instances`` int32 (B, H, W), ids unique within an image, 0 = part
            of no single instance.
        scoring: Of the mean IoU. ``occurring``: over the classes that occur. ``astmt``: over all, as ASTMT's
            evaluation; a class that does not occur counts as 0, which matters for subsets of a split.
    """

    classes: int
    ignore: int = 255
    class_weights: tuple[float, ...] = ()
    instance_sizes: Literal["cityscapes"] | tuple[tuple[int, float], ...] = ()
    scoring: Literal["occurring", "astmt"] = "occurring"

    name: ClassVar[str] = NAME
    known_scores: ClassVar[tuple[Score, ...]] = (*SCORES, IIOU)
    delta_score: ClassVar[Score | None] = MIOU
    pictures: ClassVar[str] = "classes"
    has_rare: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise ValueError(f"classes: {self.classes}; expected at least 2")
        if 0 <= self.ignore < self.classes:
            raise ValueError(f"ignore: {self.ignore} is a class, there are {self.classes}")
        if self.class_weights and len(self.class_weights) != self.classes:
            raise ValueError(f"class_weights: {len(self.class_weights)} weights for {self.classes} classes")
        if min(self.class_weights, default=0.0) < 0.0:
            raise ValueError(f"class_weights: {self.class_weights}; expected numbers >= 0")
        for class_id, size in self._instance_sizes:
            if not 0 <= class_id < self.classes or not size > 0:
                raise ValueError(
                    f"instance_sizes: ({class_id}, {size}); expected a class below {self.classes} and a size "
                    "above 0"
                )

    @property
    def channels(self) -> int:
        return self.classes

    @property
    def class_count(self) -> int:
        return self.classes

    @property
    def scores(self) -> tuple[Score, ...]:
        return self.known_scores if self.instance_sizes else SCORES

    @property
    def labels(self) -> tuple[str, ...]:
        return (self.name, "instances") if self.instance_sizes else (self.name,)

    @property
    def _instance_sizes(self) -> tuple[tuple[int, float], ...]:
        return CITYSCAPES_INSTANCE_SIZES if self.instance_sizes == "cityscapes" else self.instance_sizes

    def loss(self, logits: Array, target: Array, valid: Array) -> Array:
        return cross_entropy(logits, target, valid, ignore=self.ignore, class_weights=self.class_weights)

    def decode(self, logits: Array) -> Array:
        """(B, H, W, classes) logits -> (B, H, W) int32 classes."""
        return logits.argmax(-1).astype(jnp.int32)

    def difference(self, first: Array, second: Array) -> Array:
        """The share of pixels that have another class."""
        return jnp.mean(first != second)

    def labelled(self, target: Array) -> Array:
        return labelled(target, jnp.ones(len(target), bool), self.classes, self.ignore)

    def rare(self, target: Array) -> Array:
        """All classes but the first, which is the background where there is one."""
        return self.labelled(target) & (target > 0)

    def mix(self, logits: Array) -> Array:
        return jax.nn.softmax(logits.astype(jnp.float32))

    def unmix(self, mean: Array) -> Array:
        return jnp.log(jnp.maximum(mean, 1.2e-38))

    def measure(self, prediction: Array, batch: Mapping[str, Array]) -> dict[str, Array]:
        target = batch[self.name]
        counted = labelled(target, batch["valid"], self.classes, self.ignore)
        state = {"confusion": confusion_matrix(prediction, target, counted, self.classes)}
        if self.instance_sizes:
            sizes = np.zeros(self.classes, np.float32)
            for class_id, size in self._instance_sizes:
                sizes[class_id] = size
            sums = instance_sums(prediction, target, batch["instances"], counted, jnp.asarray(sizes))
            state |= dict(zip(("instance_positives", "instance_negatives"), sums, strict=True))
        return state

    def compute(self, state: State) -> dict[str, float]:
        """miou, pixel_accuracy, mean_accuracy; with ``instance_sizes`` also iiou.

        Means are over the classes that occur, in the target or (IoU) in the prediction; see ``scoring``.
        """
        confusion = np.asarray(state["confusion"], np.float64)
        pixels = pixel_count({"pixels": confusion.sum()}, self.name)
        table, absent = self._table(state), self.scoring == "astmt"
        scores = {
            "miou": np.mean(np.nan_to_num(table["iou"])) if absent else np.nanmean(table["iou"]),
            "pixel_accuracy": np.trace(confusion) / pixels,
            "mean_accuracy": np.nanmean(table["accuracy"]),
        }
        if "iiou" in table:
            found = table["iiou"][~np.isnan(table["iiou"])]
            scores["iiou"] = found.mean() if found.size else 0.0
        return {name: float(value) for name, value in scores.items()}

    def per_class(self, state: State) -> dict[str, list[float | None]]:
        """iou and accuracy of every class; with ``instance_sizes`` also iiou."""
        return {
            name: [None if np.isnan(value) else float(value) for value in values]
            for name, values in self._table(state).items()
        }

    def _table(self, state: State) -> dict[str, np.ndarray]:
        """Scores of every class, NaN where it does not occur."""
        confusion = np.asarray(state["confusion"], np.float64)
        right, truth, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
        table = {"iou": _ratio(right, truth + predicted - right), "accuracy": _ratio(right, truth)}
        if self.instance_sizes:
            positives = np.asarray(state["instance_positives"], np.float64)
            negatives = np.asarray(state["instance_negatives"], np.float64)
            has_instances = np.zeros(self.classes, bool)
            has_instances[[class_id for class_id, _ in self._instance_sizes]] = True
            iiou = _ratio(positives, positives + predicted - right + negatives)
            table["iiou"] = np.where(has_instances, iiou, np.nan)
        return table


def _ratio(part: Any, whole: Any) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=np.asarray(whole) > 0)
