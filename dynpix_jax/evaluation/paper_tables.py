"""Tables of a paper: each row with the config that makes it, the paper's scores, and the scores of runs.

A run is a row's if both have the same data set, and in their configs the same network at the end, batch size,
augmentation, split of the images, and views in evaluation. Steps, folders and seeds may differ. A row that
continues from another run takes only runs that do, unless the stages tell such runs already.

In a table about several tasks a row is one network for all of them, or, with "{task}" in its argument, a
network for each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from dynpix_jax.core.config import RunConfig
from dynpix_jax.core.errors import UserError
from dynpix_jax.evaluation.multitask import delta_m
from dynpix_jax.evaluation.results import (
    Identity,
    Measured,
    delta_scores,
    evaluated_run,
    identity_of,
    read_results,
)
from dynpix_jax.run_config import read_run
from dynpix_jax.tasks import TASKS, Score

BUDGETS = ("cpu", "gpu")
"""Values of the configs' argument ``budget``; it may change the network (Res6)."""

EACH_TASK = "{task}"
"""In a row's argument: a run for each task."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One network of a table, or one for each task; of other authors, what the paper prints of theirs.

    Attributes:
        network: Its name in the table.
        argument: Argument of the table's config; with ``EACH_TASK`` a network for each task.
        paper: The table's metrics, None where the paper has none.
        macs: The paper's "FLOPs consumption", multiply-adds; None without.
        reference: Name of the row whose networks Δm compares with; "" without.
        printed: Δm in the paper, percent.
        alternative: Way to run the network (``HasAlternatives.alternatives``), one of its exits ("exit_1") or
            their mean ("exit_mean"); "" for the network itself.
        counted: The actual MACs, where the paper has counted something else; None without.
        after: Argument of the run that this one continues from; "" begins anew. With "@STAGE" behind it, from
            what that stage ended with.
        more: The table's further columns, None where the paper has none.
        by: Other authors, with their number in the paper's references: the row has no config. "" for a row
            with one.
    """

    network: str
    argument: str
    paper: tuple[float | None, ...]
    macs: float | None = None
    reference: str = ""
    printed: float | None = None
    alternative: str = ""
    counted: float | None = None
    after: str = ""
    more: tuple[float | None, ...] = ()
    by: str = ""


@dataclasses.dataclass(frozen=True)
class ClassScores:
    """A score of each class, of some of a table's networks.

    Attributes:
        score: Its name in eval.json's ``per_class``, such as "iou".
        classes: Names of the classes.
        networks: Network -> the score of each class, None where the paper has none.
    """

    score: str
    classes: tuple[str, ...]
    networks: Mapping[str, tuple[float | None, ...]]


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A table about cost, whose rows a program of `dynpix bench` measures.

    Attributes:
        number: Such as "Table 4".
        title: What it is about.
        program: The command; its option --rows takes the name of a row.
        columns: Heads of the columns, the first "network".
        rows: The cells of each row: texts, and numbers, None where the paper has none.
        note: What a reader must know.
    """

    number: str
    title: str
    program: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | None, ...], ...]
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """One table, or the part of it about one data set.

    Attributes:
        number: Such as "Table 3", or a name.
        title: What it is about.
        config: File.
        source: Its data set, as `SourceSpec` names it.
        metrics: Scores by name; of several tasks those that count in Δm, one a task.
        rows: Its networks.
        task: What it is about; "" for several tasks, whose metrics are then named "depth/rmse".
        note: What a reader must know.
        budgets: Values of the config's argument of that name; () if it has none.
        gibi: MACs are printed divided by 2**30, as the HRNet family's papers have them, and not by 1e9.
        seeds: Seeds that each row is trained with; (): once, with the config's own.
        more: Heads of columns that the paper prints and that no run has here.
        others: Rows of other authors.
        classes: Scores of each class.
        starts: Arguments of runs that rows continue from and that the paper does not print.
    """

    number: str
    title: str
    config: str
    source: str
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    task: str = ""
    note: str = ""
    budgets: tuple[str, ...] = BUDGETS
    gibi: bool = False
    seeds: tuple[int, ...] = ()
    more: tuple[str, ...] = ()
    others: tuple[Row, ...] = ()
    classes: tuple[ClassScores, ...] = ()
    starts: tuple[str, ...] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """The table's tasks."""
        return (self.task,) if self.task else tuple(metric.split("/")[0] for metric in self.metrics)

    @property
    def scores(self) -> tuple[Score, ...]:
        """The metrics with their labels."""
        if self.task:
            known = {score.name: score for score in known_scores(self.task)}
        else:
            known = {
                f"{task}/{score.name}": dataclasses.replace(
                    score, name=f"{task}/{score.name}", label=f"{task} {score.label}"
                )
                for task in self.tasks
                for score in known_scores(task)
            }
        return tuple(known[name] for name in self.metrics)

    @property
    def has_delta(self) -> bool:
        """Whether rows are compared with networks for each task."""
        return any(row.reference or row.printed is not None for row in self.rows)

    def value(self, run: Measured, metric: str) -> float | None:
        """A metric of a run, whose first task may be another than the table's; None if missing."""
        return run.score(f"{self.task}/{metric}" if self.task else metric)

    def spec(self, row: Row) -> str:
        """What --config takes for a row; ``EACH_TASK`` stands for each of ``tasks``."""
        return f"{self.config}:{row.argument}"

    def arguments(self, row: Row) -> tuple[str, ...]:
        """The config's arguments of a row: one, or one for each of ``tasks``."""
        if EACH_TASK not in row.argument:
            return (row.argument,)
        return tuple(row.argument.replace(EACH_TASK, task) for task in self.tasks)

    def result(self, row: Row, found: Sequence[Measured | None]) -> Measured | None:
        """The result of a row from those of its `arguments`, in their order; None where one is missing."""
        if EACH_TASK not in row.argument:
            return found[0]
        by_task = {task: run for task, run in zip(self.tasks, found, strict=True) if run is not None}
        return combined(by_task, self.tasks)

    def paper_delta(self, row: Row) -> float | None:
        """Δm of the paper's scores, percent; None without a reference or a score."""
        if not row.reference:
            return None
        return self.delta(row.paper, self._reference(row).paper)

    def measured_delta(self, row: Row, runs: Runs) -> float | None:
        """Δm of what runs have reached; None where something has not been run."""
        if not row.reference:
            return None
        found = [find_run(runs, self, one) for one in (row, self._reference(row))]
        values, reference = (
            [None if run is None else run.score(metric) for metric in self.metrics] for run in found
        )
        return self.delta(values, reference)

    def _reference(self, row: Row) -> Row:
        return next(other for other in self.rows if other.network == row.reference)

    def delta(self, values: Sequence[float | None], reference: Sequence[float | None]) -> float | None:
        """Δm of the metrics, percent; None where one is missing."""
        ours, theirs = (
            {task: value for task, value in zip(self.tasks, side, strict=True) if value is not None}
            for side in (values, reference)
        )
        if not len(ours) == len(theirs) == len(self.tasks):
            return None
        return delta_m(ours, theirs, delta_scores({task: TASKS.resolve(task, "task") for task in self.tasks}))


def known_scores(task: str) -> tuple[Score, ...]:
    """The metrics that a task's tables can have."""
    return TASKS.resolve(task, "task").known_scores


Runs = Mapping[Identity, Measured]
"""Results by what they are of."""


def read_runs(folder: Path) -> Runs:
    """Every row of every eval.json below `folder`; of rows with one identity, that of the newest file.

    Raises:
        UserError: No such folder, or an invalid eval.json.
    """
    if not folder.is_dir():
        raise UserError(f"folder of runs not found: {folder.absolute()}")
    runs: dict[Identity, Measured] = {}
    for file in sorted(folder.rglob("eval.json"), key=lambda path: path.stat().st_mtime):
        measured, run = read_results(file, alternatives=True), evaluated_run(file)
        stages = {stage.name: stage for stage in run.stages}
        for one in measured:
            runs[identity_of(run, stages[one.stage], one.source, one.alternative)] = one
    return runs


def find_run(runs: Runs, table: Table, row: Row) -> Measured | None:
    """The result of a row, None without; results of networks for one task each are combined.

    Raises:
        UserError: The row's config does not exist.
    """
    if not any(identity.source == table.source for identity in runs):
        return None
    return table.result(row, [_find(runs, table, row, argument) for argument in table.arguments(row)])


def _find(runs: Runs, table: Table, row: Row, argument: str) -> Measured | None:
    for budget in table.budgets or ("",):
        spec = f"{table.config}:{','.join(filter(None, (argument, budget and f'budget={budget}')))}"
        run = read_run(spec)
        wanted = identity_of(run, run.stages[-1], table.source, row.alternative)
        for continued in (True,) if row.after and _looks_alike(spec, run) else (False, True):
            if (found := runs.get(dataclasses.replace(wanted, continued=continued))) is not None:
                return found
    return None


def _looks_alike(spec: str, run: RunConfig) -> bool:
    """Whether a run of this config that continues from another has the stages of one that begins anew."""
    names = [stage.name for stage in read_run(f"{spec},continue_from=x").stages]
    return names == [stage.name for stage in run.stages]


def combined(found: Mapping[str, Measured], tasks: Sequence[str]) -> Measured | None:
    """Networks for one task each as one result: MACs and milliseconds are those of all.

    None where one of ``tasks`` is missing: what some of them cost is no cost of the row.
    """
    if not all(task in found for task in tasks):
        return None
    scores = {f"{task}/{name}": value for task, run in found.items() for name, value in run.scores.items()}
    runs = list(found.values())
    milliseconds = {
        mode: sum(run.milliseconds[mode] for run in runs)
        for mode in runs[0].milliseconds
        if all(mode in run.milliseconds for run in runs)
    }
    data, stage = (
        ", ".join(dict.fromkeys(getattr(run, field) for run in runs)) for field in ("data", "stage")
    )
    files = tuple(dict.fromkeys(file for run in runs for file in run.files))
    macs = sum(run.macs for run in runs)
    tasks_found, source = tuple(found), runs[0].source
    return Measured(scores, macs, data, files, stage, tasks_found, milliseconds=milliseconds, source=source)
