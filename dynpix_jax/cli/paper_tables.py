"""`dynpix tables`: the rows of a paper's tables, the configs that make them, and what runs have reached."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynpix_jax.cli.tables import print_table
from dynpix_jax.evaluation.multitask import DELTA_M
from dynpix_jax.evaluation.paper_tables import (
    Benchmark,
    ClassScores,
    OthersRow,
    Row,
    Runs,
    Table,
    find_run,
    read_runs,
)
from dynpix_jax.evaluation.table_files import PAPERS, read_tables
from dynpix_jax.tasks import Score

_EXAMPLE = """\
example:
  dynpix tables pag
  dynpix reproduce pag "Table 3/nyuv2" --workdir runs/pag    trains and evaluates rows
  dynpix tables pag --runs runs    beside the scores of every eval.json below runs/

Rows of other authors say whose they are in place of a config: their scores are those that the paper prints.
A row that continues from another names the argument of that run, with @STAGE if from what that stage ended
with: the config takes continue_from=WORKDIR or WORKDIR@STAGE, which `dynpix reproduce` gives it.
Trains nothing. Run it in the repository: --runs reads its configs to tell which run is which row's.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the `dynpix` parser."""
    parser = subparsers.add_parser(
        "tables",
        help="list the rows of a paper's tables, with configs and scores",
        description="Lists every row of a paper's tables: its config, the paper's scores, and ours.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paper", help=f"whose tables: {', '.join(PAPERS)}, or a file *.toml of your own")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="folder of evaluated runs")
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
    row continues from, with "@STAGE" if from the end of that stage; null without. `measured` is present only
    with `runs`, null for a row without a run.
    """
    rows = []
    for row in table.rows:
        entry: dict[str, Any] = {
            "network": row.network,
            "config": table.spec(row),
            "after": f"{table.config}:{row.after}" if row.after else None,
            "by": None,
            **_paper_numbers(table, row),
        }
        if row.alternative:
            entry["alternative"] = row.alternative
        if row.counted is not None:
            entry["counted_macs"] = row.counted
        if per_class := {
            one.score: dict(zip(one.classes, one.networks[row.network], strict=True))
            for one in table.classes
            if row.network in one.networks
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
    for other in table.others:
        entry = {"network": other.network, "config": None, "after": None, "by": other.by}
        entry |= _paper_numbers(table, other)
        rows.append(entry if runs is None else entry | {"measured": None})
    return {"table": table.number, "title": table.title, "note": table.note, "rows": rows}


def benchmark_numbers(table: Benchmark) -> dict[str, Any]:
    """A table about cost for JSON: `command` is what measures a row."""
    rows = []
    for row in table.rows:
        paper = dict(zip(table.columns[1:], row[1:], strict=True))
        rows.append({"network": row[0], "command": _command(table, row), "paper": paper})
    return {"table": table.number, "title": table.title, "note": table.note, "rows": rows}


def _paper_numbers(table: Table, row: Row | OthersRow) -> dict[str, Any]:
    """What the paper prints of a row."""
    scores = zip((*table.metrics, *table.more), (*row.paper, *row.more), strict=True)
    return {"paper": dict(scores), "paper_macs": row.macs}


def cells(table: Table, runs: Runs | None) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of a table; a missing value is "-"."""
    continued = ["continues from"] if any(row.after for row in table.rows) else []
    labels = [score.label for score in table.scores]
    name = "MACs/2^30" if table.gibi else "MACs"
    costs = [name] if any(row.macs is not None for row in table.rows) else []
    costs += [f"{name} counted once"] if any(row.counted is not None for row in table.rows) else []
    delta = [DELTA_M.label] if table.has_delta else []
    heads = ["network", *labels, *delta, *(["printed"] if delta else []), *costs, *table.more]
    if runs is not None:
        heads += [*(f"{label} here" for label in (*labels, *delta)), f"{name} here", "measured on"]
    lines = []
    for row in table.rows:
        measured = [] if runs is None else _measured(table, row, runs)
        macs = [macs_text(table, one) for one in (row.macs, row.counted)[: len(costs)]]
        lines.append([row.network, *_printed(table, row), *macs, *_more(row), *measured])
        lines[-1] += [*([row.after or "-"] if continued else []), table.spec(row)]
    for other in table.others:
        values = [score_text(score, value) for score, value in zip(table.scores, other.paper, strict=True)]
        macs = [macs_text(table, one) for one in (other.macs, None)[: len(costs)]]
        missing = ["-"] * (0 if runs is None else len(table.metrics) + table.has_delta + 2)
        unknown = ["-", "-"] if delta else []
        lines.append([other.network, *values, *unknown, *macs, *_more(other), *missing])
        lines[-1] += [*("-" for _ in continued), f"by {other.by}"]
    return [*heads, *continued, "config"], lines


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


def _more(row: Row | OthersRow) -> list[str]:
    return ["-" if value is None else f"{value:g}" for value in row.more]


def _printed(table: Table, row: Row) -> list[str]:
    """The paper's scores of a row."""
    values = [score_text(score, value) for score, value in zip(table.scores, row.paper, strict=True)]
    if table.has_delta:
        values += [score_text(DELTA_M, table.paper_delta(row)), score_text(DELTA_M, row.printed)]
    return values


def _measured(table: Table, row: Row, runs: Runs) -> list[str]:
    found = find_run(runs, table, row)
    if found is None:
        return ["-"] * (len(table.metrics) + table.has_delta + 2)
    # The table's task may be the second one of a network of several tasks.
    prefix = f"{table.task}/" if table.task else ""
    values = [score_text(score, found.score(f"{prefix}{score.name}")) for score in table.scores]
    if table.has_delta:
        values.append(score_text(DELTA_M, table.measured_delta(row, runs)))
    return [*values, macs_text(table, found.macs), found.data]


def score_text(score: Score, value: float | None) -> str:
    """A score as tables print it."""
    return "-" if value is None else score.text(value)


def macs_text(table: Table, value: float | None) -> str:
    """MACs in the unit of a table."""
    if value is None:
        return "-"
    return f"{value / 2**30:.1f}" if table.gibi else f"{value / 1e9:#.4g}e9"
