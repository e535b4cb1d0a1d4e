"""Lists every row of a paper's tables: its config, the paper's scores, and ours.

example:
  dynpix tables pag
  dynpix reproduce pag "Table 3/nyuv2" --workdir runs/pag    trains and evaluates rows
  dynpix tables pag --runs runs    beside the scores of every eval.json below runs/

Rows of other authors say whose they are in place of a config: their scores are those that the paper prints.
A row that continues from another names the argument of that run, with @STAGE if from what that stage ended
with: the config takes continue_from=WORKDIR or WORKDIR@STAGE, which `dynpix reproduce` gives it.
Trains nothing. Run it in the repository: --runs reads its configs to tell which run is which row's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from dynpix_jax.cli.tables import print_table
from dynpix_jax.core.text import a_path
from dynpix_jax.evaluation.multitask import DELTA_M
from dynpix_jax.evaluation.paper_tables import Benchmark, ClassScores, Row, Runs, Table, find_run, read_runs
from dynpix_jax.evaluation.results import Measured, kinds_of_chance
from dynpix_jax.evaluation.table_files import PAPERS, read_tables
from dynpix_jax.tasks import Score

Column = tuple[str, Callable[[Row], str]]
"""Of a table: its head, and the cell of a row."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("paper", help=f"whose tables: {', '.join(PAPERS)}, or a file *.toml of your own")
    parser.add_argument("--runs", type=a_path, metavar="DIR", help="folder of evaluated runs")
    parser.add_argument("--json", action="store_true", help="print the tables as JSON")


def run(args: argparse.Namespace) -> int:
    """Prints the tables; returns 0."""
    paper = read_tables(args.paper)
    runs = None if args.runs is None else read_runs(args.runs)
    if args.json:
        tables = [numbers(table, runs) for table in paper.tables]
        print(json.dumps([*tables, *map(benchmark_numbers, paper.benchmarks)], indent=2))
        return 0
    for table in paper.tables:
        _print_titled(table, *cells(table, runs))
        for scores in table.classes:
            print(f"{scores.score} of each class:")
            print_table(*class_cells(table, scores, runs))
            print()
    for benchmark in paper.benchmarks:
        _print_titled(benchmark, *benchmark_cells(benchmark))
    for table in paper.comparisons:
        print(f"measured by this repository: {table.number}: {table.title}")
    if paper.note:
        print(paper.note)
    return 0


def _print_titled(table: Table | Benchmark, heads: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    print(f"{table.number}: {table.title}")
    print_table(heads, lines)
    if table.note:
        print(f"({table.note})")
    print()


def numbers(table: Table, runs: Runs | None) -> dict[str, Any]:
    """A table for JSON.

    A row of other authors has them in `by`, and null as its config. `after` is the config of the run that a
    row continues from, with "@STAGE" if from the end of that stage; null without. What was measured is
    present only with `runs`, null for a row without a run.
    """
    rows = []
    for row in (*table.rows, *table.others):
        entry: dict[str, Any] = {
            "network": row.network,
            "config": None if row.by else table.spec(row),
            "after": f"{table.config}:{row.after}" if row.after else None,
            "by": row.by or None,
            "paper": dict(zip((*table.metrics, *table.more), (*row.paper, *row.more), strict=True)),
            "paper_macs": row.macs,
        }
        if row.alternative:
            entry["alternative"] = row.alternative
        if row.counted is not None:
            entry["counted_macs"] = row.counted
        if per_class := {
            one.score: dict(zip(one.classes, one.networks[row.network], strict=True))
            for one in table.classes
            if row.network in one.networks and not row.by
        }:
            entry["paper_per_class"] = per_class
        if table.has_delta:
            entry |= {"paper_delta_m": table.paper_delta(row), "printed_delta_m": row.printed}
        if runs is not None:
            found = find_run(runs, table, row)
            entry["measured"] = None if found is None else dataclasses.asdict(found)
            if table.has_delta:
                entry["measured_delta_m"] = table.measured_delta(row, runs)
        rows.append(entry)
    return {"table": table.number, "title": table.title, "note": table.note, "rows": rows}


def benchmark_numbers(table: Benchmark) -> dict[str, Any]:
    """A table about cost for JSON: `command` is what measures a row."""
    rows = []
    for row in table.rows:
        paper = dict(zip(table.columns[1:], row[1:], strict=True))
        rows.append({"network": row[0], "command": _command(table, row), "paper": paper})
    return {"table": table.number, "title": table.title, "note": table.note, "rows": rows}


def cells(table: Table, runs: Runs | None) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of a table; a missing value is "-"."""
    columns: list[Column] = [
        ("network", lambda row: row.network),
        *_paper_columns(table),
        *((head, partial(_more, index)) for index, head in enumerate(table.more)),
        *(() if runs is None else _measured_columns(table, runs)),
    ]
    if any(row.after for row in table.rows):
        columns.append(("continues from", lambda row: row.after or "-"))
    columns.append(("config", lambda row: f"by {row.by}" if row.by else table.spec(row)))
    return [head for head, _ in columns], [
        [cell(row) for _, cell in columns] for row in (*table.rows, *table.others)
    ]


def _paper_columns(table: Table) -> Iterator[Column]:
    for index, score in enumerate(table.scores):
        yield score.label, partial(_paper_score, score, index)
    if table.has_delta:
        yield DELTA_M.label, lambda row: score_text(DELTA_M, table.paper_delta(row))
        yield "printed", lambda row: score_text(DELTA_M, row.printed)
    if any(row.macs is not None for row in table.rows):
        yield macs_unit(table), lambda row: macs_text(table, row.macs)
    if any(row.counted is not None for row in table.rows):
        yield f"{macs_unit(table)} counted once", lambda row: macs_text(table, row.counted)


def _measured_columns(table: Table, runs: Runs) -> Iterator[Column]:
    found = {row: find_run(runs, table, row) for row in table.rows}
    for score in table.scores:
        yield f"{score.label} here", partial(_own_score, table, score, found)
    first = table.scores[0]
    for kind in kinds_of_chance(one for one in found.values() if one is not None):
        masked = {row: one and one.by_chance(kind) for row, one in found.items()}
        yield f"{first.label}, {kind} masks", partial(_own_score, table, first, masked)
    if table.has_delta:
        yield f"{DELTA_M.label} here", lambda row: score_text(DELTA_M, table.measured_delta(row, runs))
    macs = {row: one.macs for row, one in found.items() if one is not None}
    yield f"{macs_unit(table)} here", lambda row: macs_text(table, macs.get(row))
    yield "measured on", lambda row: one.data if (one := found.get(row)) else "-"


def _paper_score(score: Score, index: int, row: Row) -> str:
    return score_text(score, row.paper[index])


def _own_score(table: Table, score: Score, found: Mapping[Row, Measured | None], row: Row) -> str:
    run = found.get(row)
    return "-" if run is None else score_text(score, table.value(run, score.name))


def class_cells(table: Table, scores: ClassScores, runs: Runs | None) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of a score of each class: a line a class, a column a network, and one a run."""
    columns = dict(scores.networks)
    for row in table.rows if runs is not None else ():
        if row.network in scores.networks and (found := find_run(runs or {}, table, row)) is not None:
            # The table's task may be the second one of a network of several tasks.
            known = {name.removeprefix(f"{table.task}/"): one for name, one in found.per_class.items()}
            values = known.get(scores.score, {})
            columns[f"{row.network} here"] = tuple(values.get(name) for name in scores.classes)
    lines = [
        [name, *("-" if column[index] is None else f"{column[index]:.3f}" for column in columns.values())]
        for index, name in enumerate(scores.classes)
    ]
    return ["class", *columns], lines


def benchmark_cells(table: Benchmark) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of a table about cost, with the command that measures each row."""
    lines = [[*map(_cell, row), _command(table, row)] for row in table.rows]
    return [*table.columns, "command"], lines


def _cell(value: str | float | None) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:g}"


def _command(table: Benchmark, row: Sequence[str | float | None]) -> str:
    return f'{table.program} --rows "{row[0]}"'


def _more(index: int, row: Row) -> str:
    return _cell(row.more[index])


def score_text(score: Score, value: float | None) -> str:
    """A score as tables print it."""
    return "-" if value is None else score.text(value)


def macs_unit(table: Table) -> str:
    """Head of a column of MACs."""
    return "MACs/2^30" if table.gibi else "MACs"


def macs_text(table: Table, value: float | None) -> str:
    """MACs in the unit of a table."""
    if value is None:
        return "-"
    return f"{value / 2**30:.1f}" if table.gibi else f"{value / 1e9:#.4g}e9"
