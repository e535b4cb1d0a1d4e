"""Accuracy beside cost: a system on a source, its scores, MACs per image and milliseconds in each mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any

import jax
import numpy as np

from dynpix_jax.core.capabilities import density, gated_layers, inputs_of
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.routing import Mode
from dynpix_jax.core.settings import EvaluationConfig
from dynpix_jax.core.source import FieldSpec, Source
from dynpix_jax.core.system import System
from dynpix_jax.core.typing import Array, Variables
from dynpix_jax.evaluation.boundary import BoundaryScores
from dynpix_jax.evaluation.inference import resize_logits
from dynpix_jax.evaluation.results import delta_scores
from dynpix_jax.evaluation.runner import ImageResult, Runner
from dynpix_jax.evaluation.scorers import Scorer, TaskScores, flatten_scores, make_scorer, truth
from dynpix_jax.tasks import Task, check_labels


@dataclass(frozen=True)
class ModeScores:
    """One mode on all images: scores by task, median milliseconds and spread (10th to 90th percentile)."""

    scores: dict[str, TaskScores]
    milliseconds: float
    milliseconds_spread: tuple[float, float]


@dataclass(frozen=True)
class ExitScores:
    """A prediction that is made on the way: its scores by task, and mean MACs an image up to it."""

    scores: dict[str, TaskScores]
    macs: float

    @property
    def numbers(self) -> dict[str, float]:
        """The scores under the names of `tasks.all_scores`."""
        return flatten_scores({name: scores.numbers for name, scores in self.scores.items()})


@dataclass(frozen=True)
class Evaluation:
    """A system on a source.

    tasks: what was scored, by name. modes: scores by mode.
    macs: mean per image, executed. macs_open: mean per image with every gate open.
    shares: mean executed share of each gated layer.
    density: mean over gates, weighted equally; None without gates.
    mode_difference: by task, how far the predictions of the modes are apart, as ``Task.difference`` measures
    it, the greatest over batches; None with one mode.
    measures: means over images of `Outputs.measures`; {} where images are predicted from several views.
    exits: of a network that predicts in steps each prediction, the last one too, in the mode that was run
    first; empty otherwise.
    """

    tasks: Mapping[str, Task]
    images: int
    modes: dict[Mode, ModeScores]
    macs: float
    macs_open: float
    shares: dict[str, float]
    density: float | None
    mode_difference: dict[str, float | None]
    measures: dict[str, float]
    seen: list[tuple[str, dict[Mode, ImageResult]]] = field(default_factory=list, repr=False)
    exits: list[ExitScores] = field(default_factory=list)

    @property
    def scores(self) -> dict[str, TaskScores]:
        """By task, of the mode that was run first."""
        return next(iter(self.modes.values())).scores

    @property
    def numbers(self) -> dict[str, float]:
        """Those scores under the names of `tasks.all_scores`."""
        return flatten_scores({name: scores.numbers for name, scores in self.scores.items()})

    @property
    def per_class(self) -> dict[str, list[float | None]]:
        """Scores of every class, under such names."""
        return flatten_scores({name: scores.per_class for name, scores in self.scores.items()})

    @property
    def curve(self) -> BoundaryScores | None:
        """Precision against recall of the boundaries, if they are among the tasks."""
        return next((scores.curve for scores in self.scores.values() if scores.curve), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {
            "tasks": list(self.tasks),
            "delta_scores": {name: asdict(one) for name, one in delta_scores(self.tasks).items()},
            "images": self.images,
            "density": self.density,
            "macs_per_image": self.macs,
            "macs_per_image_gates_open": self.macs_open,
            "shares": self.shares,
            "measures": self.measures,
            "exits": [{"macs_per_image": one.macs, **one.numbers} for one in self.exits],
            **flatten_scores({name: {"mode_difference": gap} for name, gap in self.mode_difference.items()}),
            "modes": {
                mode: {
                    "milliseconds": one.milliseconds,
                    "milliseconds_p10_p90": one.milliseconds_spread,
                    **flatten_scores({name: scores.to_dict() for name, scores in one.scores.items()}),
                }
                for mode, one in self.modes.items()
            },
        }


def evaluate_system(
    system: System,
    variables: Variables,
    source: Source,
    settings: EvaluationConfig,
    *,
    implementation: str | None = None,
    progress: Callable[[int, str], None] | None = None,
) -> Evaluation:
    """Run and score every image of ``source`` at its own size.

    Args:
        system: to be scored.
        variables: of the system.
        source: has the labels.
        settings: what is run and scored.
        implementation: see Routing.
        progress: called with the number of images done and a name.

    Raises:
        UserError: the source has no such labels or inputs, or other classes, an image cannot be read, or a
            batch has images of different sizes.
    """
    tasks, spec = system.tasks, source.spec
    check_labels(tasks, {name: spec.fields[name].classes for name in spec.labels}, f"source {spec.name}")
    check_inputs(system, source)
    runner = Runner(system, variables, settings.inference, implementation)
    count = min(settings.limit or len(source), len(source))
    # Where nothing is gated both modes are the same program: one run stands for both.
    modes = settings.modes if gated_layers(system) else settings.modes[:1]
    scorers = {
        mode: {name: make_scorer(task, source, count, settings) for name, task in tasks.items()}
        for mode in modes
    }
    labels = tuple(dict.fromkeys(label for scorer in scorers[modes[0]].values() for label in scorer.labels))

    @jax.jit
    def decode(logits: Mapping[str, Array]) -> dict[str, Array]:
        return {name: task.decode(logits[name]) for name, task in tasks.items()}

    @jax.jit
    def apart(first: Mapping[str, Array], second: Mapping[str, Array]) -> dict[str, Array]:
        return {name: task.difference(first[name], second[name]) for name, task in tasks.items()}

    @partial(jax.jit, static_argnames="size")
    def decode_exit(logits: Mapping[str, Array], size: tuple[int, int]) -> dict[str, Array]:
        return decode(resize_logits(logits, tasks, size))

    exit_scorers: list[dict[str, Scorer]] = []
    exit_macs: list[list[float]] = []
    milliseconds: dict[Mode, list[float]] = {mode: [] for mode in modes}
    seen: list[tuple[str, dict[Mode, ImageResult]]] = []
    macs, macs_open, shares, measures = [], [], [], []
    differences: dict[str, list[float]] = {name: [] for name in tasks}
    fields = tuple(dict.fromkeys((*labels, *inputs_of(system))))
    for batch in _batches(source, count, settings.batch_size, fields):
        inputs = {name: batch[name] for name in inputs_of(system)}
        results = {mode: runner.batch(batch["image"], mode, **inputs) for mode in modes}
        predictions = {mode: decode(results[mode].outputs.predictions) for mode in modes}
        for mode in modes:
            for name, scorer in scorers[mode].items():
                scorer.add(predictions[mode][name], batch)
            milliseconds[mode] += [results[mode].milliseconds] * int(batch["valid"].sum())
        for name, gap in (apart(*predictions.values()) if len(modes) == 2 else {}).items():
            differences[name].append(float(gap))
        first = results[modes[0]]
        on_the_way = first.outputs.exits if first.exit_macs else ()
        exit_scorers = exit_scorers or [
            {name: make_scorer(task, source, count, settings) for name, task in tasks.items()}
            for _ in on_the_way
        ]
        for logits, of_exit in zip(on_the_way, exit_scorers, strict=True):
            found = decode_exit(logits, batch["image"].shape[1:3])
            for name, scorer in of_exit.items():
                scorer.add(found[name], batch)
        for place in range(int(batch["valid"].sum())):
            macs.append(first.macs[place])
            macs_open.append(first.macs_open[place])
            exit_macs.append([float(up_to[place]) for up_to in first.exit_macs])
            shares.append({name: share[place] for name, share in first.shares.items()})
            measures.append({name: float(value[place]) for name, value in first.outputs.measures.items()})
            name = source.name(len(macs) - 1)
            if len(seen) < settings.pictures:
                seen.append((name, {mode: result.image(place) for mode, result in results.items()}))
            if progress is not None:
                progress(len(macs), name)

    scored: dict[Mode, ModeScores] = {}
    for mode in modes:
        low, high = np.percentile(milliseconds[mode], (10, 90))
        times = median(milliseconds[mode]), (float(low), float(high))
        finished = {name: scorer.finish(progress) for name, scorer in scorers[mode].items()}
        scored[mode] = ModeScores(finished, *times)
    exits = [
        ExitScores(
            {name: scorer.finish(progress) for name, scorer in of_exit.items()},
            float(np.mean([up_to[index] for up_to in exit_macs])),
        )
        for index, of_exit in enumerate(exit_scorers)
    ]
    if exits:
        exits.append(ExitScores(scored[modes[0]].scores, float(np.mean(macs))))
    means = {name: float(np.mean([one[name] for one in shares])) for name in shares[0]}
    return Evaluation(
        tasks=tasks,
        images=count,
        modes={mode: scored.get(mode, scored[modes[0]]) for mode in settings.modes},
        macs=float(np.mean(macs)),
        macs_open=float(np.mean(macs_open)),
        shares=means,
        density=density(system, means),
        mode_difference={name: max(gaps, default=None) for name, gaps in differences.items()},
        measures={name: float(np.mean([one[name] for one in measures])) for name in measures[0]},
        seen=seen,
        exits=exits,
    )


Draw = Callable[[Task, FieldSpec, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(task, field of its labels, photo, decoded prediction, label) -> picture, uint8 (H, W, 3)."""


def evaluate(
    system: System,
    variables: Variables,
    source: Source,
    settings: EvaluationConfig,
    draw: Draw | None = None,
    *,
    implementation: str | None = None,
) -> dict[str, float | np.ndarray]:
    """What a training run logs, of one mode: numbers, and the first images' predictions as pictures.

    Args:
        system: What is evaluated.
        variables: Its variables.
        source: With labels of all its tasks.
        settings: Of the evaluation; the mode that it names first is run.
        draw: Draws a prediction; None for numbers alone.
        implementation: Of sparse blocks, see Routing.
    """
    mode = settings.modes[0]
    settings = replace(settings, mode=mode, pictures=settings.pictures if draw else 0)
    result = evaluate_system(system, variables, source, settings, implementation=implementation)
    logged: dict[str, float | np.ndarray] = {**result.numbers, "macs": result.macs, **result.measures}
    if result.density is not None:
        logged["density"] = result.density
    for index, (name, by_mode) in enumerate(result.seen):
        for task_name, task in result.tasks.items():
            assert draw is not None
            logged[f"{task_name}/{name}"] = draw(
                task,
                source.spec.fields[task.target],
                source[index]["image"],
                np.asarray(task.decode(by_mode[mode].outputs.predictions[task_name])[0]),
                truth(task, source, index),
            )
    return logged


def check_inputs(system: System, source: Source) -> None:
    """Raises UserError where the source has not what the system takes beside the images."""
    for name in inputs_of(system):
        if name not in source.spec.fields:
            raise UserError(
                f"source {source.spec.name}: no '{name}', which the network takes beside the image; "
                "set fields of config.data.eval.source"
            )


def _batches(
    source: Source, count: int, size: int, fields: tuple[str, ...]
) -> Iterator[dict[str, np.ndarray]]:
    """Images, ``fields`` and ``valid``; the last batch is filled up with its last element, not valid.

    Read here and not by a loader: its threads would read ahead while the forward pass is timed.
    """
    for first in range(0, count, size):
        elements = [source[index] for index in range(first, min(first + size, count))]
        shapes = {element["image"].shape[:2] for element in elements}
        if len(shapes) > 1:
            raise UserError(
                f"source {source.spec.name} has images of different sizes in one batch, {sorted(shapes)}: "
                "set evaluation.batch_size to 1"
            )
        filled = elements + elements[-1:] * (size - len(elements))
        batch = {name: np.stack([element[name] for element in filled]) for name in ("image", *fields)}
        yield batch | {"valid": np.arange(size) < len(elements)}
