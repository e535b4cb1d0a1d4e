"""Accuracy beside cost: a system on a source, its scores, MACs per image and milliseconds in each mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import jax
import numpy as np

from dynpix_jax.core.capabilities import density, gated_layers, has_masked_gates, inputs_of
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.processes import is_first, on_device
from dynpix_jax.core.routing import Mode
from dynpix_jax.core.settings import EvaluationConfig
from dynpix_jax.core.source import FieldSpec, Source
from dynpix_jax.core.system import System
from dynpix_jax.core.typing import Variables
from dynpix_jax.evaluation.boundary import BoundaryScores
from dynpix_jax.evaluation.chance import Chance, ChanceScores
from dynpix_jax.evaluation.dealing import all_sums, in_turns, share_of
from dynpix_jax.evaluation.results import Measured, delta_scores
from dynpix_jax.evaluation.runner import BatchResult, ImageResult, Runner
from dynpix_jax.evaluation.scorers import ProgressFn, TaskScores, flatten_scores, make_scorer, truth
from dynpix_jax.evaluation.totals import ExitScores, ModeScores, Scorers, Totals
from dynpix_jax.tasks import Task, check_labels


@dataclass(frozen=True)
class Evaluation:
    """A system on a source.

    Attributes:
        tasks: What was scored, by name.
        images: How many.
        modes: Scores by mode.
        macs: Executed, mean of an image.
        macs_open: With every gate open, mean of an image.
        shares: Mean executed share of each gated layer.
        density: Mean over gates, weighted equally; None without gates.
        mode_difference: Task -> the greatest ``Task.difference`` over batches between the modes' predictions;
            None with one mode.
        measures: Means over images of `Outputs.measures`; {} where images are predicted from several views.
        seen: (name, results by mode) of the first images.
        exits: Each prediction of a network that predicts in steps, the last one included, in the mode that
            was run first; empty otherwise.
        chance: The last prediction with masks of chance, by kind (``SHUFFLED`` and ``OTHER`` of
            evaluation.chance); {} where none was asked for or there are no gates.
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
    chance: dict[str, ChanceScores] = field(default_factory=dict)

    @property
    def scores(self) -> dict[str, TaskScores]:
        """By task, of the mode that was run first."""
        return next(iter(self.modes.values())).scores

    @property
    def numbers(self) -> dict[str, float]:
        """The scores under the names of `tasks.all_scores`."""
        return flatten_scores({name: scores.numbers for name, scores in self.scores.items()})

    @property
    def logged(self) -> dict[str, float]:
        """What a log gets: scores, MACs, measures and density."""
        density = {} if self.density is None else {"density": self.density}
        return {**self.numbers, "macs": self.macs, **self.measures, **density}

    @property
    def per_class(self) -> dict[str, list[float | None]]:
        """Scores of every class, under such names."""
        return flatten_scores({name: scores.per_class for name, scores in self.scores.items()})

    @property
    def curve(self) -> BoundaryScores | None:
        """Precision against recall of the boundaries, if they are among the tasks."""
        return next((scores.curve for scores in self.scores.values() if scores.curve), None)

    def measured(self, data: str) -> Measured:
        """The scores as a row of an eval.json about these data has them."""
        tasks, scores = tuple(self.tasks), delta_scores(self.tasks)
        return Measured(self.numbers, self.macs, data, (), "", tasks, delta_scores=scores)

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
            "chance": {
                kind: {"macs_per_image": one.macs, **one.numbers} for kind, one in self.chance.items()
            },
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
    progress: ProgressFn | None = None,
) -> Evaluation:
    """Run and score every image of ``source`` at its own size.

    All processes of a job share the images, and each shares its own among its devices; all get the same
    numbers, process 0 what was seen, too.

    Raises:
        UserError: The source has no such labels or inputs, or other classes, an image cannot be read, or a
            batch has images of different sizes.
    """
    tasks = system.tasks
    check_source(system, source)
    count = min(settings.limit or len(source), len(source))
    # Without gates both modes are the same program: one run serves both.
    modes = settings.modes if gated_layers(system) else settings.modes[:1]
    size, here = settings.batch_size, (jax.process_index(), jax.process_count())
    mine = share_of(-(-count // size), -(-settings.pictures // size), *here)
    # A device that the user has chosen is the only one.
    chosen = jax.config.values["jax_default_device"]
    devices = [chosen] if isinstance(chosen, jax.Device) else jax.local_devices()[: max(1, len(mine))]
    # Once: of split variables it is a collective, and processes have different numbers of devices at work.
    whole = on_device(variables, devices[0])
    runners = {
        device: Runner(system, jax.device_put(whole, device), settings.inference, implementation)
        for device in devices
    }

    def make() -> Scorers:
        first = mine.start * size
        return {name: make_scorer(task, source, count, settings, first) for name, task in tasks.items()}

    totals = Totals(tasks, modes, make, source.name, settings.pictures, progress, mine.start * size)
    chance = None
    if settings.chance and has_masked_gates(system):
        chance = Chance(
            runners[devices[0]],
            modes[0],
            lambda: Totals(tasks, modes[:1], make, source.name, 0, None, mine.start * size),
            draws=settings.chance,
            first=mine.start * size,
        )
    fields = tuple(dict.fromkeys((*totals.labels, *inputs_of(system))))

    def run(device: jax.Device, batch: dict[str, np.ndarray]) -> dict[Mode, BatchResult]:
        inputs = {name: batch[name] for name in inputs_of(system)}
        with jax.default_device(device):
            return {mode: runners[device].batch(batch["image"], mode, **inputs) for mode in modes}

    for batch, results in in_turns(devices, run, _batches(source, count, size, fields, mine)):
        totals.add(results, batch)
        if chance is not None:
            inputs = {name: batch[name] for name in inputs_of(system)}
            chance.add(batch, inputs, results[modes[0]])
    found = totals.finish(all_sums(totals.sums()))
    return Evaluation(
        tasks=tasks,
        images=count,
        modes={mode: found.modes.get(mode, found.modes[modes[0]]) for mode in settings.modes},
        macs=found.means.macs,
        macs_open=found.means.macs_open,
        shares=found.means.shares,
        density=density(system, found.means.shares),
        mode_difference=found.differences,
        measures=found.means.measures,
        seen=totals.seen if is_first() else [],
        exits=found.exits,
        chance={} if chance is None else chance.finish(),
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
    """Numbers, and pictures of the first images' predictions, for a training log, in one mode."""
    mode = settings.modes[0]
    settings = replace(settings, mode=mode, pictures=settings.pictures if draw else 0, chance=0)
    result = evaluate_system(system, variables, source, settings, implementation=implementation)
    logged: dict[str, float | np.ndarray] = {**result.logged}
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


def check_source(system: System, source: Source) -> None:
    """Raises UserError if the source lacks labels or inputs of the system, or has other classes."""
    spec = source.spec
    classes = {name: spec.fields[name].classes for name in spec.labels}
    check_labels(system.tasks, classes, f"source {spec.name}")
    for name in inputs_of(system):
        if name not in spec.fields:
            raise UserError(
                f"source {spec.name}: no '{name}', which the network takes beside the image; "
                "set fields of config.data.eval.source"
            )


def _batches(
    source: Source, count: int, size: int, fields: tuple[str, ...], numbers: range
) -> Iterator[dict[str, np.ndarray]]:
    """Images, ``fields`` and ``valid``, by the numbers of batches; the last of all is filled up with its last
    element, not valid.

    Read here and not by a loader: its threads would read ahead while the forward pass is timed.
    """
    for first in (number * size for number in numbers):
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
