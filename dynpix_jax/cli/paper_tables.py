"""`dynpix tables`: the rows of a paper's tables, the configs that make them, and what runs have reached."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from dynpix_jax.cli.tables import print_table
from dynpix_jax.evaluation.multitask import DELTA_M
from dynpix_jax.evaluation.paper_tables import Row, Runs, Table, find_run, read_runs
from dynpix_jax.evaluation.table_files import PAPERS, read_tables
from dynpix_jax.tasks import Score

_EXAMPLE = """\
example:
  dynpix tables pag
  dynpix reproduce pag "Table 3/nyuv2" --workdir runs/pag    trains and evaluates rows
  dynpix tables pag --runs runs    beside the scores of every eval.json below runs/

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
        print(json.dumps([numbers(table, runs) for table in paper.tables], indent=2))
        return 0
    for table in paper.tables:
        print(f"{table.number}: {table.title}")
        print_table(*cells(table, runs))
        if table.note:
            print(f"({table.note})")
        print()
    for table in paper.comparisons:
        print(f"measured by this repository: {table.number}: {table.title}")
    return 0


def numbers(table: Table, runs: Runs | None) -> dict[str, Any]:
    """A table for JSON; `measured` is present only with `runs`, null for a row without a run."""
    rows = []
    for row in table.rows:
        entry: dict[str, Any] = {
            "network": row.network,
            "config": table.spec(row),
            "paper": dict(zip(table.metrics, row.paper, strict=True)),
            "paper_macs": row.macs,
        }
        if row.alternative:
            entry["alternative"] = row.alternative
        if row.counted is not None:
            entry["counted_macs"] = row.counted
        if table.has_delta:
            entry |= {"paper_delta_m": table.paper_delta(row), "printed_delta_m": row.printed}
        if runs is not None:
            found = find_run(runs, table, row)
            entry["measured"] = None if found is None else dataclasses.asdict(found)
            if table.has_delta:
                entry["measured_delta_m"] = table.measured_delta(row, runs)
        rows.append(entry)
    return {"table": table.number, "title": table.title, "note": table.note, "rows": rows}


def cells(table: Table, runs: Runs | None) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of a table; a missing value is "-"."""
    labels = [score.label for score in table.scores]
    name = "MACs/2^30" if table.gibi else "MACs"
    macs = [name] if any(row.macs is not None for row in table.rows) else []
    macs += [f"{name} counted once"] if any(row.counted is not None for row in table.rows) else []
    delta = [DELTA_M.label] if table.has_delta else []
    heads = ["network", *labels, *delta, *(["printed"] if delta else []), *macs]
    if runs is not None:
        heads += [*(f"{label} here" for label in (*labels, *delta)), f"{name} here", "measured on"]
    lines = []
    for row in table.rows:
        measured = [] if runs is None else _measured(table, row, runs)
        costs = [macs_text(table, one) for one in (row.macs, row.counted)[: len(macs)]]
        lines.append([row.network, *_printed(table, row), *costs, *measured, table.spec(row)])
    return [*heads, "config"], lines


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
