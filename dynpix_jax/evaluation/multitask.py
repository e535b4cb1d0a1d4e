"""One network for several tasks against a network for each: the average drop Δm, and the reference it needs.

`dynpix reference` writes the reference, a JSON file, from evaluated single-task runs:

    {"data": "scenes val, 40 images",
     "tasks": {"depth": {"score": "rmse", "higher_is_better": false, "value": 0.41,
                         "runs": ["runs/depth/eval.json"]}, ...}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.text import parse_json, write_text
from dynpix_jax.evaluation.results import DeltaScore, Measured, read_results
from dynpix_jax.tasks import Score

DELTA_M = Score(
    "delta_m",
    "Δm, %",
    "average drop against a network for each task, negative = better than those",
    digits=2,
    higher_is_better=False,
)


def delta_m(
    values: Mapping[str, float], reference: Mapping[str, float], scores: Mapping[str, DeltaScore]
) -> float:
    """Average relative drop over tasks, in percent: positive = worse than the reference.

    (1/T) sum over t of (-1)^l (M_ref - M) / M_ref, l = 1 where a lower score is better. The sign is that of
    ASTMT; other papers print the gain, which is its negative.

    Raises:
        ValueError: The tasks of both differ, there are none, or a reference is 0.
    """
    if not values or values.keys() != reference.keys():
        raise ValueError(f"delta_m: tasks {sorted(values)} against {sorted(reference)}")
    if not all(reference.values()):
        raise ValueError(f"delta_m: no drop from a score of 0: {dict(reference)}")
    drops = [
        (1 if scores[task].higher_is_better else -1) * (reference[task] - value) / reference[task]
        for task, value in values.items()
    ]
    return 100 * sum(drops) / len(drops)


@dataclass(frozen=True)
class TaskReference(DeltaScore):
    """The score that networks for one task reach.

    Attributes:
        value: Mean over runs (seeds).
        runs: Their eval.json.
    """

    value: float
    runs: tuple[str, ...]


@dataclass(frozen=True)
class Reference:
    """Single-task results.

    Attributes:
        data: What all were evaluated on, as eval.json has it.
        tasks: Tasks by name.
        file: Where they were read from; "" for a reference in memory.
    """

    data: str
    tasks: dict[str, TaskReference]
    file: str = ""

    def check(self, tasks: Sequence[str], data: str) -> None:
        """Checks that the reference covers the tasks on the same data.

        Raises:
            UserError: A task has no reference, or the data are other data.
        """
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
            UserError: See `check`; or the reference has another score of a task.
        """
        self.check(result.tasks, result.data)
        values = delta_values(result)
        for task in result.tasks:
            given, expected = self.tasks[task].score, result.delta_scores[task].score
            if given != expected:
                raise UserError(
                    f"reference {self.file}: {given!r} is not the score by which {task!r} counts, "
                    f"{expected!r}"
                )
        return delta_m(values, {task: self.tasks[task].value for task in result.tasks}, self.tasks)


def delta_values(result: Measured) -> dict[str, float]:
    """Task -> value of the score by which it counts.

    Raises:
        UserError: A task has no part in Δm, or its score is missing.
    """
    found = {}
    for task in result.tasks:
        if task not in result.delta_scores:
            raise UserError(f"{result.file}: task {task} has no part in Δm")
        name = result.delta_scores[task].score
        value = result.score(f"{task}/{name}")
        if value is None:
            raise UserError(f"{result.file}: no score {name} of task {task}")
        found[task] = value
    return found


def make_reference(runs: Sequence[Path]) -> Reference:
    """The reference of evaluated single-task runs; the mean where a task has several runs.

    Args:
        runs: Workdirs with an eval.json, or such files. The last row counts: the newest stage.

    Raises:
        UserError: An eval.json is missing or invalid, has several tasks, or is about other data than the
            others.
    """
    found: dict[str, list[Measured]] = {}
    for run in runs:
        result = read_results(run / "eval.json" if run.is_dir() else run)[-1]
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
        values = [delta_values(result)[task] for result in results]
        files = tuple(result.file for result in results)
        score = asdict(results[0].delta_scores[task])
        tasks[task] = TaskReference(**score, value=sum(values) / len(values), runs=files)
    return Reference(next(iter(data)), tasks)


def write_reference(path: Path, reference: Reference) -> None:
    """Writes the file; a UserError where it cannot be written."""
    tasks = {task: asdict(entry) for task, entry in reference.tasks.items()}
    write_text(path, json.dumps({"data": reference.data, "tasks": tasks}, indent=2) + "\n")


def read_reference(path: Path) -> Reference:
    """Reads such a file; a UserError if it is missing or not a reference."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        tasks = {
            task: TaskReference(
                str(entry["score"]),
                bool(entry["higher_is_better"]),
                float(entry["value"]),
                tuple(entry["runs"]),
            )
            for task, entry in content["tasks"].items()
        }
        return Reference(str(content["data"]), tasks, str(path))
    except OSError as error:
        raise UserError(
            f"reference {path}: {error.strerror or error}; dynpix reference writes it from single-task runs"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"reference {path} is not what dynpix reference writes ({type(error).__name__}: {error})"
        ) from None
