"""One network for several tasks against a network for each: the average drop, and the reference it needs.

The reference is a JSON file that `dynpix reference` writes from evaluated single-task runs:

    {"data": "scenes val, 40 images",
     "tasks": {"depth": {"score": "rmse", "value": 0.41, "runs": ["runs/depth/eval.json"]}, ...}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dynpix_jax.core.errors import UserError
from dynpix_jax.evaluation.results import Measured, read_results
from dynpix_jax.tasks import Score

DELTA_M = Score(
    "delta_m", "Δm, %", "average drop against a network for each task, negative = better than those", digits=2
)


@dataclass(frozen=True)
class Measure:
    """The score by which a task counts, and whether more of it is better."""

    score: str
    higher_is_better: bool = True


MEASURES = {
    "boundaries": Measure("ods"),
    "segmentation": Measure("miou"),
    "parts": Measure("miou"),
    "saliency": Measure("miou"),
    "normals": Measure("mean", higher_is_better=False),
    "depth": Measure("rmse", higher_is_better=False),
    "albedo": Measure("rmse", higher_is_better=False),
}
"""Task -> what the tables of ASTMT report of it."""


def delta_m(scores: Mapping[str, float], reference: Mapping[str, float]) -> float:
    """Average relative drop over tasks, in percent: positive = worse than the reference.

    (1/T) sum over t of (-1)^l (M_ref - M) / M_ref, l = 1 where a lower score is better. The sign is that of
    ASTMT; other papers print the gain, which is its negative.

    Args:
        scores, reference: task -> its score of `MEASURES`.

    Raises:
        ValueError: other tasks in one than in the other, none, or a reference of 0.
    """
    if not scores or scores.keys() != reference.keys():
        raise ValueError(f"delta_m: tasks {sorted(scores)} against {sorted(reference)}")
    if not all(reference.values()):
        raise ValueError(f"delta_m: no drop from a score of 0: {dict(reference)}")
    drops = [
        (1 if MEASURES[task].higher_is_better else -1) * (reference[task] - value) / reference[task]
        for task, value in scores.items()
    ]
    return 100 * sum(drops) / len(drops)


@dataclass(frozen=True)
class TaskReference:
    """What networks for one task reach: the mean over runs (seeds). runs: their eval.json."""

    score: str
    value: float
    runs: tuple[str, ...]


@dataclass(frozen=True)
class Reference:
    """Single-task results. data: what all were evaluated on, as eval.json has it."""

    data: str
    tasks: dict[str, TaskReference]
    file: str = ""

    def check(self, tasks: Sequence[str], data: str) -> None:
        """Raises UserError where a task has no reference, or the data are other data."""
        if data != self.data:
            raise UserError(
                f"reference {self.file}: it was measured on {self.data}; this evaluation is on {data}"
            )
        missing = [task for task in tasks if task not in self.tasks]
        if missing:
            raise UserError(
                f"reference {self.file}: no run of task {', '.join(missing)}; it has {', '.join(self.tasks)}"
            )

    def delta_m(self, result: Measured) -> float:
        """The average drop of a network for several tasks.

        Raises:
            UserError: see `check`.
        """
        self.check(result.tasks, result.data)
        return delta_m(measures(result), {task: self.tasks[task].value for task in result.tasks})


def measures(result: Measured) -> dict[str, float]:
    """Task -> its score of `MEASURES`. Raises UserError for a task or score that there is not."""
    found = {}
    for task in result.tasks:
        if task not in MEASURES:
            raise UserError(f"{result.file}: task {task} has no part in Δm; {', '.join(MEASURES)} have")
        value = result.score(f"{task}/{MEASURES[task].score}")
        if value is None:
            raise UserError(f"{result.file}: no score {MEASURES[task].score} of task {task}")
        found[task] = value
    return found


def make_reference(runs: Sequence[Path]) -> Reference:
    """The reference of evaluated single-task runs; of several runs of a task the mean.

    Args:
        runs: workdirs with an eval.json, or such files. What counts is the last row, the newest stage.

    Raises:
        UserError: an eval.json that is missing or none, one of several tasks, or other data than the others.
    """
    found: dict[str, list[Measured]] = {}
    for run in runs:
        result = read_results(run / "eval.json" if run.is_dir() else run)[-1].measured
        if len(result.tasks) != 1:
            raise UserError(
                f"{result.file}: a run of {', '.join(result.tasks)}; expected one of a single task"
            )
        found.setdefault(result.tasks[0], []).append(result)
    data = {result.data: result.file for results in found.values() for result in results}
    if len(data) > 1:
        (first, one), (second, other) = list(data.items())[:2]
        raise UserError(
            f"{one} is about {first}, {other} about {second}; expected the same data for all runs"
        )
    if not data:
        raise UserError("no run given; expected workdirs of evaluated single-task runs")
    tasks = {}
    for task, results in found.items():
        values = [measures(result)[task] for result in results]
        files = tuple(result.file for result in results)
        tasks[task] = TaskReference(MEASURES[task].score, sum(values) / len(values), files)
    return Reference(next(iter(data)), tasks)


def write_reference(path: Path, reference: Reference) -> None:
    """Writes the file. Raises UserError where none can be written."""
    content = {
        "data": reference.data,
        "tasks": {task: asdict(entry) for task, entry in reference.tasks.items()},
    }
    try:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def read_reference(path: Path) -> Reference:
    """Reads such a file. Raises UserError where it is missing or none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        tasks = {
            task: TaskReference(str(entry["score"]), float(entry["value"]), tuple(entry["runs"]))
            for task, entry in content["tasks"].items()
        }
        reference = Reference(str(content["data"]), tasks, str(path))
    except OSError as error:
        raise UserError(
            f"reference {path}: {error.strerror or error}; dynpix reference writes it from single-task runs"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"reference {path} is not what dynpix reference writes ({type(error).__name__}: {error})"
        ) from None
    for task, entry in tasks.items():
        if task not in MEASURES or entry.score != MEASURES[task].score:
            raise UserError(f"reference {path}: {entry.score!r} is not the score by which {task!r} counts")
    return reference
