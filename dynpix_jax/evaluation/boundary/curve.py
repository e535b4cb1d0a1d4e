"""From matching counts to ODS, OIS, AP and the precision-recall curve, as the BSDS500 benchmark defines them.

Source: the benchmark's `collect_eval_bdry`: counts are summed before they are divided; ODS looks for its
threshold at 100 steps between neighbouring ones; AP samples the precision at recalls 0, 0.01, ..., 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class ImageCounts:
    """What the matching found on one image: integer arrays (T,), one entry a threshold.

    Attributes:
        matched_truth: Annotated pixels that are matched, summed over the annotators.
        truth: All annotated pixels, summed over the annotators (recall).
        matched_predicted: Predicted pixels that match any annotator, each once.
        predicted: All predicted pixels (precision).
    """

    name: str
    matched_truth: np.ndarray
    truth: np.ndarray
    matched_predicted: np.ndarray
    predicted: np.ndarray

    def table(self) -> np.ndarray:
        """(4, T): the four counts in the order of the fields."""
        return np.stack([self.matched_truth, self.truth, self.matched_predicted, self.predicted])


@dataclasses.dataclass(frozen=True)
class CurveScore:
    """Recall, precision and their harmonic mean `f`, all in [0, 1], at a threshold."""

    threshold: float
    recall: float
    precision: float
    f: float


@dataclasses.dataclass(frozen=True)
class ImageScore(CurveScore):
    """The score of one image at its own best threshold."""

    name: str


@dataclasses.dataclass(frozen=True)
class BoundaryScores:
    """A row of the papers' tables, and what it was made from.

    Attributes:
        ods: F at the one threshold that is best for the whole data set (`ods_threshold`, `ods_recall`,
            `ods_precision`).
        ois: F with the best threshold of each image (`ois_recall`, `ois_precision`).
        ap: Average precision, the area under the curve.
        per_image: Best score of each image.
        per_threshold: Scores of the whole data set, by ascending threshold.
    """

    ods: float
    ods_threshold: float
    ods_recall: float
    ods_precision: float
    ois: float
    ois_recall: float
    ois_precision: float
    ap: float
    per_image: tuple[ImageScore, ...]
    per_threshold: tuple[CurveScore, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts, ready for JSON."""
        result = dataclasses.asdict(self)
        return result | {key: list(result[key]) for key in ("per_image", "per_threshold")}


def f_measure(recall: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Harmonic mean; 0 where both are 0."""
    recall, precision = np.asarray(recall, float), np.asarray(precision, float)
    total = recall + precision
    return np.where(total > 0, 2 * recall * precision / np.where(total > 0, total, 1.0), 0.0)


def recall_precision(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision of counts (4, ...) in the order of `ImageCounts`; 0 where nothing is to match."""
    matched_truth, truth, matched_predicted, predicted = np.asarray(counts, float)
    return matched_truth / np.maximum(truth, 1), matched_predicted / np.maximum(predicted, 1)


def best_score(thresholds: np.ndarray, recall: np.ndarray, precision: np.ndarray) -> CurveScore:
    """The highest F among 100 points between each two neighbouring thresholds, linearly interpolated."""
    table = np.stack([thresholds, recall, precision]).astype(float)
    points = [table[:, :1]]
    share = np.linspace(0, 1, 100)
    for left, right in zip(table.T[:-1], table.T[1:], strict=True):
        points.append(np.outer(left, 1 - share) + np.outer(right, share))
    threshold, recall, precision = np.concatenate(points, axis=1)
    f = f_measure(recall, precision)
    best = int(np.argmax(f))  # the first of equals, hence the lowest threshold
    return CurveScore(float(threshold[best]), float(recall[best]), float(precision[best]), float(f[best]))


def average_precision(recall: np.ndarray, precision: np.ndarray) -> float:
    """Sum of the precision interpolated at recalls 0, 0.01, ..., 1, over 100; 0 outside the measured recalls.

    Of points with equal recall the first counts, which is the one of the lowest threshold.
    """
    recall, first = np.unique(recall, return_index=True)
    if len(recall) < 2:
        return 0.0
    sampled = np.interp(np.linspace(0, 1, 101), recall, np.asarray(precision)[first], left=0.0, right=0.0)
    return float(sampled.sum() / 100)


def summarize(thresholds: np.ndarray, counts: Sequence[ImageCounts]) -> BoundaryScores:
    """The scores of a data set from the counts of its images (one or more) at ascending `thresholds` (T,)."""
    if not counts:
        raise ValueError("summarize: no images")
    tables = np.stack([image.table() for image in counts])
    if tables.shape[2] != len(thresholds):
        raise ValueError(f"summarize: counts at {tables.shape[2]} thresholds, but {len(thresholds)} given")
    rows, chosen = [], np.zeros(4, np.int64)
    for image, table in zip(counts, tables, strict=True):
        recall, precision = recall_precision(table)
        rows.append(ImageScore(**vars(best_score(thresholds, recall, precision)), name=image.name))
        f = f_measure(recall, precision)
        chosen += table[:, np.flatnonzero(f == f.max())[-1]]
    recall, precision = recall_precision(tables.sum(axis=0))
    best = best_score(thresholds, recall, precision)
    ois_recall, ois_precision = (float(value) for value in recall_precision(chosen))
    f = f_measure(recall, precision)
    return BoundaryScores(
        ods=best.f,
        ods_threshold=best.threshold,
        ods_recall=best.recall,
        ods_precision=best.precision,
        ois=float(f_measure(np.array(ois_recall), np.array(ois_precision))),
        ois_recall=ois_recall,
        ois_precision=ois_precision,
        ap=average_precision(recall, precision),
        per_image=tuple(rows),
        per_threshold=tuple(
            CurveScore(*(float(value) for value in row))
            for row in zip(thresholds, recall, precision, f, strict=True)
        ),
    )
