"""Rows of a paper's tables, trained and evaluated in dependency order: what `dynpix reproduce` runs.

A plan is a list of commands, each of which can be run by hand. Rows share what they can: a row continues
from the run that it names (``after``), rows that differ in their evaluation alone are one training, and equal
rows of two tables are one run. A run lives in ``<workdir>/pag/nyuv2/<argument>[/seed<n>]``, whichever tables
were asked for, so that a plan goes on where an earlier one has stopped.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean

from dynpix_jax import papers
from dynpix_jax.core.capabilities import alternatives_of
from dynpix_jax.core.config import DataConfig, RunConfig, differences
from dynpix_jax.core.errors import UserError, suggest
from dynpix_jax.core.settings import EvaluationConfig
from dynpix_jax.evaluation.paper_tables import Row, Table
from dynpix_jax.evaluation.results import Measured, evaluated_run, read_results
from dynpix_jax.evaluation.table_files import PaperTables
from dynpix_jax.run_config import read_run
from dynpix_jax.training.checkpoints import Checkpoints

Execute = Callable[[Sequence[str]], int]
"""Runs a command of `dynpix` with its arguments; gives its exit status."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of all rows.

    Attributes:
        workdir: Parent folder of all runs.
        arguments: Arguments of every config, such as "root=data/BSDS500,budget=gpu"; they replace those of a
            row.
        overrides: Changes of config values, as --set takes them.
        seeds: Replace the tables' own; () keeps those.
    """

    workdir: Path
    arguments: str = ""
    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Command:
    """A command: the training of a run, or an evaluation of it.

    Attributes:
        name: The row, for messages.
        program: "train" or "eval".
        spec: What --config takes.
        workdir: The run's workdir.
        overrides: What --set takes.
        after: Workdir of the run that a training continues from.
        out: Folder of an evaluation's results.
    """

    name: str
    program: str
    spec: str
    workdir: Path
    overrides: tuple[str, ...] = ()
    after: Path | None = None
    out: Path | None = None

    @property
    def words(self) -> list[str]:
        """The program and its arguments."""
        words = [self.program, f"--config={self.spec}", f"--workdir={self.workdir}"]
        if self.out not in (None, self.workdir):
            words.append(f"--out={self.out}")
        return [*words, *(["--set", *self.overrides] if self.overrides else [])]

    def done(self) -> bool:
        """Whether its result exists."""
        wanted = read_run(self.spec, self.overrides)
        if self.out is None:
            return wanted.stages[-1].name in Checkpoints(self.workdir / "checkpoints").stage_ends()
        try:
            saved = evaluated_run(self.out / "eval.json", wanted.training.total_steps)
        except UserError:
            return False
        return not differences(saved, wanted) and _views(saved) == _views(wanted)


@dataclasses.dataclass(frozen=True)
class Reached:
    """Results of the runs of a row."""

    row: Row
    results: tuple[Measured, ...]
    drops: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A row's argument for one task, its settings, and the arguments whose run and evaluation it shares."""

    argument: str
    after: str
    config: RunConfig
    run: str
    evaluation: str


class Reproduction:
    """The runs of a paper's rows.

    Args:
        tables: All tables of the paper: a row may continue from a row of another table.
        options: Settings of all rows.
    """

    def __init__(self, tables: Sequence[Table], options: Options):
        if re.search(r"[,=+\s]", str(options.workdir)):
            raise UserError(f"--workdir {options.workdir}: expected a path without ',', '=', '+' and blanks")
        self.options = options
        self._tables = tables
        self._entries: dict[str, dict[str, _Entry]] = {}
        self._refused: dict[tuple[str, str], UserError] = {}

    def seeds(self, table: Table) -> tuple[int | None, ...]:
        """Seeds that a table's rows are trained with; None is the config's own."""
        return self.options.seeds or table.seeds or (None,)

    def commands(self, selected: Sequence[tuple[Table, Row]]) -> list[Command]:
        """The commands of some rows, and of those that they continue from, in dependency order.

        Raises:
            UserError: A config that does not exist or does not take the arguments.
        """
        found: dict[tuple[Path, Path | None], Command] = {}
        for table, row in selected:
            for argument in table.arguments(row):
                self._entry(table.config, argument)
            for seed in self.seeds(table):
                for argument in table.arguments(row):
                    name = f"{table.number}, {row.network}" + ("" if seed is None else f", seed {seed}")
                    for command in self._commands(table.config, argument, seed, name):
                        found.setdefault((command.workdir, command.out), command)
        for command in found.values():
            read_run(command.spec, command.overrides)  # before any of them is trained
        return list(found.values())

    def reached(self, table: Table, row: Row) -> Reached:
        """Results of a row's runs so far, and their Δm."""
        results = self._results(table, row)
        if not row.reference:
            return Reached(row, results)
        reference = self._results(table, next(one for one in table.rows if one.network == row.reference))
        scores = [[one.score(metric) for one in reference] for metric in table.metrics]
        known = [[value for value in one if value is not None] for one in scores]
        means = [mean(one) if one else None for one in known]
        drops = (table.delta([one.score(metric) for metric in table.metrics], means) for one in results)
        return Reached(row, results, tuple(drop for drop in drops if drop is not None))

    def _results(self, table: Table, row: Row) -> tuple[Measured, ...]:
        found = []
        for seed in self.seeds(table):
            networks = [self._result(table.config, argument, row, seed) for argument in table.arguments(row)]
            one = table.result(row, networks)
            found += [one] if one is not None else []
        return tuple(found)

    def _result(self, config: str, argument: str, row: Row, seed: int | None) -> Measured | None:
        file = self._folder(config, self._entry(config, argument).evaluation, seed) / "eval.json"
        results = read_results(file, alternatives=True) if file.exists() else []
        return next((one for one in reversed(results) if one.alternative == row.alternative), None)

    def _commands(self, config: str, argument: str, seed: int | None, name: str) -> Iterator[Command]:
        entry = self._entry(config, argument)
        yield from self._training(config, entry.run, seed, name)
        workdir = self._folder(config, entry.run, seed)
        owner = self._entry(config, entry.evaluation)
        spec, out = self._spec(config, owner, seed), self._folder(config, owner.argument, seed)
        also = self._alternatives(config, owner)
        overrides = [f"evaluation.also={json.dumps(also)}"] if also else []
        if owner.config.evaluation.every_stage:
            overrides.append("evaluation.every_stage=False")  # a row is the end of the last stage
        yield Command(name, "eval", spec, workdir, self._overrides(seed, *overrides), out=out)

    def _training(self, config: str, argument: str, seed: int | None, name: str) -> Iterator[Command]:
        entry = self._entry(config, argument)
        after = None
        if entry.after:
            before, _ = self._before(config, entry)
            yield from self._training(config, before, seed, f"{name} (continues from {before})")
            after = self._folder(config, before, seed)
        spec, workdir = self._spec(config, entry, seed), self._folder(config, argument, seed)
        yield Command(name, "train", spec, workdir, self._overrides(seed), after)

    def _before(self, config: str, entry: _Entry) -> tuple[str, str]:
        """The run that an entry continues from, and "@STAGE" of it, or "" for all of it."""
        argument, at, stage = entry.after.partition("@")
        return self._entry(config, argument).run, at + stage

    def _overrides(self, seed: int | None, *more: str) -> tuple[str, ...]:
        return (*([] if seed is None else [f"seed={seed}"]), *more, *self.options.overrides)

    def _folder(self, config: str, argument: str, seed: int | None) -> Path:
        name = re.sub(r"[^\w.+-]+", "_", argument) or "default"
        folder = self.options.workdir.joinpath(*Path(config).with_suffix("").parts[-2:], name)
        return folder if seed is None else folder / f"seed{seed}"

    def _spec(self, config: str, entry: _Entry, seed: int | None) -> str:
        after = ""
        if entry.after:
            before, stage = self._before(config, entry)
            after = f"{self._folder(config, before, seed)}{stage}"
        return _spec(config, entry.argument, self.options.arguments, after)

    def _alternatives(self, config: str, owner: _Entry) -> tuple[str, ...]:
        """All alternatives to evaluate, if rows need more of them than the config evaluates; else ()."""
        own = owner.config.evaluation.also
        asked = [
            row.alternative
            for table in self._tables
            if table.config == config
            for row in table.rows
            for argument in table.arguments(row)
            if (entry := self._known(config).get(argument)) and entry.evaluation == owner.argument
        ]
        more = [name for name in dict.fromkeys(asked) if name and name not in own]
        if not more:
            return ()
        known = alternatives_of(papers.build(owner.config.stages[-1].model))
        more = [name for name in more if name in known]  # exits are rows of the network's own
        return (*own, *more) if more else ()

    def _entry(self, config: str, argument: str) -> _Entry:
        found = self._known(config).get(argument)
        if found is None:
            error = self._refused[config, argument]
            raise UserError(f"{config}:{argument}: {error}") from error
        return found

    def _known(self, config: str) -> Mapping[str, _Entry]:
        """The rows of a config by argument, in the order of the tables; rows that it refuses are left out."""
        if config in self._entries:
            return self._entries[config]
        found: dict[str, _Entry] = {}
        for table in self._tables:
            if table.config != config:
                continue
            listed = [(argument, row.after) for row in table.rows for argument in table.arguments(row)]
            for argument, after in (*listed, *((start, "") for start in table.starts)):
                if argument in found:
                    continue
                try:
                    settings = self._config(config, argument, after)
                except UserError as error:
                    self._refused[config, argument] = error
                    continue
                found[argument] = _grouped(argument, after, settings, found.values())
        self._entries[config] = found
        return found

    def _config(self, config: str, argument: str, after: str) -> RunConfig:
        return read_run(
            _spec(config, argument, self.options.arguments, after and "x"), self.options.overrides
        )


def select(
    paper: PaperTables, names: Sequence[str], patterns: Sequence[str]
) -> list[tuple[Table, list[Row]]]:
    """Some rows of some tables.

    Args:
        paper: Its tables.
        names: Numbers ("Table 3"), or with the data set ("Table 3/nyuv2"); none takes the paper's own tables.
        patterns: Networks, with * and ? as in a shell; none takes all.

    Raises:
        UserError: No such table, or no row that fits a pattern.
    """
    chosen = _named(paper, names) if names else paper.tables
    networks = [row.network for table in chosen for row in table.rows]
    for pattern in patterns:
        if not fnmatch.filter(networks, pattern):
            raise UserError(f"--rows {pattern}: no such row; {suggest(pattern, networks)}")
    wanted = {name for pattern in patterns or "*" for name in fnmatch.filter(networks, pattern)}
    found = [(table, [row for row in table.rows if row.network in wanted]) for table in chosen]
    return [(table, rows) for table, rows in found if rows]


def _named(paper: PaperTables, names: Sequence[str]) -> list[Table]:
    known: defaultdict[str, list[Table]] = defaultdict(list)
    for table in paper.all:
        known[table.number].append(table)
        known[f"{table.number}/{table.source}"].append(table)
    for name in names:
        if programs := [one.program for one in paper.benchmarks if one.number == name]:
            raise UserError(f"{name} is about costs, which nothing is trained for: {programs[0]}")
        if name not in known:
            raise UserError(f"no table {name!r}; {suggest(name, known)}")
    return [table for table in paper.all if any(table in known[name] for name in names)]


def run_commands(commands: Sequence[Command], execute: Execute, say: Callable[[str], None]) -> list[str]:
    """Runs the commands that are not done yet; after a failure, those that do not depend on it still run.

    Returns:
        A line for each row that has failed, or was skipped because another has failed.
    """
    failures, untrained = [], set()
    for command in commands:
        if command.out is not None and command.workdir in untrained:
            continue  # its training has been reported
        problem = ""
        if command.after in untrained:
            problem = f"not run, because it continues from {command.after}"
        elif command.done():
            say(f"{command.name}: {command.program} is done: {command.out or command.workdir}")
        elif status := execute(command.words):
            problem = f"{command.program} ended with status {status}"
        elif not command.done():
            problem = f"{command.program} was stopped before its end"
        if problem:
            failures.append(f"{command.name}: {problem}")
            say(failures[-1])
            if command.out is None:
                untrained.add(command.workdir)
    return failures


def _grouped(argument: str, after: str, config: RunConfig, others: Iterable[_Entry]) -> _Entry:
    """The entry of an argument, with the earlier entries of the same training and the same evaluation."""
    same = [other for other in others if other.after == after and not differences(other.config, config)]
    views = [other for other in same if _views(other.config) == _views(config)]
    run = same[0].run if same else argument
    return _Entry(argument, after, config, run, views[0].evaluation if views else argument)


def _spec(config: str, argument: str, more: str, after: str) -> str:
    """What --config takes: `more` replaces arguments of the same name; weights are those continued from."""
    items = dict.fromkeys(filter(None, argument.split(",")))
    named = {item.partition("=")[0]: item for item in (*items, *filter(None, more.split(",")))}
    if after:
        named.pop("weights", None)
        named["continue_from"] = f"continue_from={after}"
    return f"{config}:{','.join(named.values())}" if named else config


def _views(run: RunConfig) -> tuple[EvaluationConfig, DataConfig]:
    return run.evaluation, run.data.eval
