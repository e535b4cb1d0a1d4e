"""The boundary benchmark over a data set: one image at a time, in several processes."""

from __future__ import annotations

import collections
import concurrent.futures
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.settings import MAX_DIST, THRESHOLDS
from dynpix_jax.data.nms import non_maximum_suppression
from dynpix_jax.data.thin import thin
from dynpix_jax.data.workers import end_with_parent
from dynpix_jax.evaluation.boundary.curve import BoundaryScores, ImageCounts, summarize
from dynpix_jax.evaluation.boundary.match import Annotation, match_radius


def threshold_values(number: int) -> np.ndarray:
    """The benchmark's thresholds: `number` even steps from 1 / (number + 1) to 1 - 1 / (number + 1)."""
    if number < 1:
        raise ValueError(f"threshold_values: at least 1 threshold is needed, got {number}")
    # linspace, not k / (number + 1): they differ in the last bit, which decides whether a value of an 8-bit
    # map such as 85/255 reaches the threshold 1/3, and the published outputs agree with linspace.
    return np.linspace(1 / (number + 1), 1 - 1 / (number + 1), number)


def evaluate_image(
    name: str,
    prediction: np.ndarray,
    annotators: Sequence[np.ndarray],
    *,
    thresholds: int = THRESHOLDS,
    max_dist: float = MAX_DIST,
    nms: bool = True,
    smooth: bool = True,
) -> ImageCounts:
    """Counts matched boundary pixels of one image at every threshold.

    Args:
        prediction: (H, W) floats in [0, 1].
        annotators: One bool (H, W) each, at least one.
        thresholds: Their number; see `threshold_values`. Binary = (map >= threshold), then thinned.
        max_dist: Largest distance of a match, as a fraction of the image diagonal.
        nms: Thin the soft map to its ridges first; `smooth` as in `non_maximum_suppression`.

    Raises:
        UserError: Sizes that differ, no annotator, values not finite or outside [0, 1]; names the image.
    """
    _check(name, prediction, annotators)
    soft = np.asarray(prediction, np.float64)
    if nms:
        soft = non_maximum_suppression(soft, smooth=smooth)
    radius = match_radius(soft.shape, max_dist)
    prepared = [Annotation(mask, radius) for mask in annotators]
    counts = np.zeros((4, thresholds), np.int64)
    counts[1] = sum(annotation.count for annotation in prepared)
    previous = np.zeros(soft.shape, bool)  # nothing predicted: nothing matched
    for index, threshold in enumerate(threshold_values(thresholds)):
        binary = soft >= threshold
        if index and np.array_equal(binary, previous):
            counts[:, index] = counts[:, index - 1]
            continue
        previous = binary
        pixels = np.flatnonzero(thin(binary))
        matched = [annotation.match(pixels) for annotation in prepared]
        counts[0, index] = sum(int(one.sum()) for one in matched)
        counts[2, index] = int(np.logical_or.reduce(matched).sum())
        counts[3, index] = len(pixels)
    return ImageCounts(name, *counts)


def evaluate_boundaries(
    predictions: Iterable[tuple[str, np.ndarray]],
    annotators: Mapping[str, Sequence[np.ndarray]],
    *,
    thresholds: int = THRESHOLDS,
    **options: Any,
) -> BoundaryScores:
    """Scores soft boundary maps against several annotators an image: ODS, OIS, AP.

    Takes the arguments of `count_boundaries`.

    Raises:
        UserError: No prediction at all, and what `count_boundaries` raises.
    """
    done = count_boundaries(predictions, annotators, thresholds=thresholds, **options)
    if not done:
        raise UserError("no predictions to evaluate")
    return summarize(threshold_values(thresholds), done)


def count_boundaries(
    predictions: Iterable[tuple[str, np.ndarray]],
    annotators: Mapping[str, Sequence[np.ndarray]],
    *,
    thresholds: int = THRESHOLDS,
    max_dist: float = MAX_DIST,
    nms: bool = True,
    smooth: bool = True,
    workers: int | None = None,
    progress: Callable[[int, str], None] | None = None,
) -> list[ImageCounts]:
    """The counts of each image, from which `summarize` makes the scores of all.

    `evaluate_image` documents the arguments that are not below.

    Args:
        predictions: (name, map (H, W) of floats in [0, 1]), read as needed, so a generator keeps memory
            small.
        annotators: The masks, bool (H, W), by name of the image. Images without a prediction do no harm.
        workers: Processes; None: one a CPU core; 1 or less: none, all is done in this process.
        progress: Called after every image with the number of images done and the name.

    Raises:
        UserError: A prediction without ground truth, and what `evaluate_image` raises.
    """
    if not max_dist > 0:
        raise ValueError(f"count_boundaries: max_dist must be above 0, got {max_dist}")
    threshold_values(thresholds)  # sees that there are some
    options = {"thresholds": thresholds, "max_dist": max_dist, "nms": nms, "smooth": smooth}

    def jobs() -> Iterator[tuple[str, np.ndarray, Sequence[np.ndarray]]]:
        for name, prediction in predictions:
            if name not in annotators:
                raise UserError(f"no ground truth for the prediction {name!r}")
            yield name, prediction, annotators[name]

    workers = _cores() if workers is None else workers
    done: list[ImageCounts] = []
    results = _run_here(jobs(), options) if workers <= 1 else _run_parallel(jobs(), options, workers)
    for counts in results:
        done.append(counts)
        if progress is not None:
            progress(len(done), counts.name)
    return done


class GroundTruth(Mapping[str, Sequence[np.ndarray]]):
    """The annotators' masks by name, read from their places when they are asked for: few are in memory."""

    def __init__(self, places: Mapping[str, Any], read: Callable[[Any], Sequence[np.ndarray]]) -> None:
        self._places, self._read = places, read

    def __getitem__(self, name: str) -> Sequence[np.ndarray]:
        return self._read(self._places[name])

    def __contains__(self, name: object) -> bool:
        return name in self._places  # Mapping's own would read the masks

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run_here(jobs: Iterable[tuple], options: dict) -> Iterator[ImageCounts]:
    for job in jobs:
        yield evaluate_image(*job, **options)


def _run_parallel(jobs: Iterable[tuple], options: dict, workers: int) -> Iterator[ImageCounts]:
    """Results in the order of the jobs; only a few jobs are in memory at a time."""
    # Spawned, not forked: this process may hold JAX's threads.
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    waiting: collections.deque[concurrent.futures.Future[ImageCounts]] = collections.deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(evaluate_image, *job, **options))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """One thread a process: the images are the parallelism."""
    cv2.setNumThreads(1)
    end_with_parent()


def _check(name: str, prediction: np.ndarray, annotators: Sequence[np.ndarray]) -> None:
    if prediction.ndim != 2:
        raise UserError(f"{name}: expected a boundary map (H, W), got shape {prediction.shape}")
    if not annotators:
        raise UserError(f"{name}: no annotators in its ground truth")
    for mask in annotators:
        if mask.shape != prediction.shape:
            raise UserError(
                f"{name}: the prediction has {_size(prediction)} pixels (height x width), "
                f"its ground truth {_size(mask)}"
            )
    if prediction.size and not (np.min(prediction) >= 0 and np.max(prediction) <= 1):  # NaN fails both
        raise UserError(f"{name}: the boundary map has values outside [0, 1] or not finite")


def _size(array: np.ndarray) -> str:
    return "x".join(str(side) for side in array.shape)
