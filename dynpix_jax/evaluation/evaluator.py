"""Accuracy beside cost: a system on a source, its scores, MACs per image and milliseconds in each mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import numpy as np

from dynpix_jax.data.sources import Source
from dynpix_jax.evaluation.boundary import BoundaryScores, evaluate_boundaries
from dynpix_jax.evaluation.runner import ImageResult, Runner
from dynpix_jax.evaluation.settings import EvaluationConfig
from dynpix_jax.models.system import System
from dynpix_jax.nn.routing import Mode
from dynpix_jax.tasks import boundaries
from dynpix_jax.typing import Variables
from dynpix_jax.utils.errors import UserError


@dataclass(frozen=True)
class ModeScores:
    """One mode on all images: boundary scores, median milliseconds and spread (10th to 90th percentile)."""

    boundaries: BoundaryScores
    milliseconds: float
    milliseconds_spread: tuple[float, float]


@dataclass(frozen=True)
class Evaluation:
    """A system on a source.

    scores: by mode. macs: mean per image, executed. macs_open: mean per image with every gate open.
    shares: mean executed share of each gated layer.
    density: mean over gates, weighted equally; None without gates.
    mode_difference: largest difference of a probability between the modes; None with one mode.
    """

    images: int
    scores: dict[Mode, ModeScores]
    macs: float
    macs_open: float
    shares: dict[str, float]
    density: float | None
    mode_difference: float | None
    seen: list[tuple[str, dict[Mode, ImageResult]]] = field(default_factory=list, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {
            "images": self.images,
            "density": self.density,
            "macs_per_image": self.macs,
            "macs_per_image_gates_open": self.macs_open,
            "shares": self.shares,
            "mode_difference": self.mode_difference,
            "modes": {
                mode: {
                    "milliseconds": scores.milliseconds,
                    "milliseconds_p10_p90": scores.milliseconds_spread,
                    **scores.boundaries.to_dict(),
                }
                for mode, scores in self.scores.items()
            },
        }


def evaluate_system(
    system: System,
    variables: Variables,
    source: Source,
    settings: EvaluationConfig,
    *,
    progress: Callable[[int, str], None] | None = None,
) -> Evaluation:
    """Run and score every image of ``source`` at its own size.

    Raises:
        UserError: the source has no boundary annotations, or an image cannot be read.
    """
    if system.tasks != (boundaries.NAME,):
        raise UserError(
            f"evaluation: no evaluator for the tasks {system.tasks}; expected ('{boundaries.NAME}',)"
        )
    runner = Runner(system, variables)
    count = min(settings.limit or len(source), len(source))
    # Where nothing is gated both modes are the same program: one run stands for both.
    modes = settings.modes if system.gated_macs(source[0]["image"].shape[:2]) else settings.modes[:1]
    annotators = Annotators(source, count)
    results: list[dict[Mode, ImageResult]] = []
    maps: dict[Mode, list[np.ndarray]] = {mode: [] for mode in modes}
    seen: list[tuple[str, dict[Mode, ImageResult]]] = []
    for index in range(count):
        image = source[index]["image"]
        by_mode = {mode: runner(image, mode) for mode in modes}
        for mode, result in by_mode.items():
            probability = boundaries.decode(result.outputs.predictions[boundaries.NAME])[0]
            maps[mode].append(np.asarray(probability, np.float32))
        if len(seen) < settings.pictures:
            seen.append((source.name(index), by_mode))
        results.append({mode: _without_arrays(result) for mode, result in by_mode.items()})
        if progress is not None:
            progress(index + 1, source.name(index))

    scores: dict[Mode, ModeScores] = {}
    for mode in modes:
        milliseconds = [result[mode].milliseconds for result in results]
        scores[mode] = ModeScores(
            evaluate_boundaries(
                ((source.name(index), maps[mode][index]) for index in range(count)),
                annotators,
                thresholds=settings.thresholds,
                max_dist=settings.max_dist,
                nms=settings.nms,
                smooth=settings.smooth,
                workers=settings.workers,
                progress=progress,
            ),
            median(milliseconds),
            (float(np.percentile(milliseconds, 10)), float(np.percentile(milliseconds, 90))),
        )
    scores = {mode: scores.get(mode, scores[modes[0]]) for mode in settings.modes}
    first = [result[modes[0]] for result in results]
    shares = {name: float(np.mean([result.shares[name] for result in first])) for name in first[0].shares}
    gates = [share for name, share in shares.items() if system.is_gate(name)]
    return Evaluation(
        images=count,
        scores=scores,
        macs=float(np.mean([result.macs for result in first])),
        macs_open=float(np.mean([runner.macs_open(first[i], maps[modes[0]][i].shape) for i in range(count)])),
        shares=shares,
        density=float(np.mean(gates)) if gates else None,
        mode_difference=_difference(maps) if len(maps) == 2 else None,
        seen=seen,
    )


def evaluate(
    system: System, variables: Variables, source: Source, settings: EvaluationConfig
) -> dict[str, float]:
    """The numbers that a training run logs: one mode, no pictures."""
    mode = settings.modes[0]
    settings = replace(settings, mode=mode, pictures=0)
    result = evaluate_system(system, variables, source, settings)
    scores = result.scores[mode].boundaries
    numbers = {"ods": scores.ods, "ois": scores.ois, "ap": scores.ap, "macs": result.macs}
    return numbers if result.density is None else {**numbers, "density": result.density}


class Annotators(Mapping[str, Any]):
    """The annotators' masks of a source's first ``count`` images by name, read when asked for."""

    def __init__(self, source: Source, count: int):
        self._source = source
        self._index = {source.name(index): index for index in range(count)}

    def __getitem__(self, name: str) -> list[np.ndarray]:
        index = self._index[name]
        read = getattr(self._source, "annotators", None)
        if read is not None:
            return list(read(index))
        element = self._source[index]
        if boundaries.NAME not in element:
            raise UserError(
                f"source {self._source.spec.name}: has no '{boundaries.NAME}' labels to evaluate against"
            )
        return [element[boundaries.NAME] > 0.5]

    def __contains__(self, name: object) -> bool:
        return name in self._index  # the one of Mapping would read the image's annotations to find out

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)


def _without_arrays(result: ImageResult) -> ImageResult:
    return ImageResult(None, result.shares, result.macs, result.milliseconds)  # type: ignore[arg-type]


def _difference(maps: Mapping[Mode, list[np.ndarray]]) -> float:
    first, second = maps.values()
    return max(float(np.abs(a - b).max()) for a, b in zip(first, second, strict=True))
