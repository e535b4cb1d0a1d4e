"""`dynpix tables`: the rows of a paper's tables, the configs that make them, and what runs have reached."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

from dynpix_jax.cli.tables import print_table
from dynpix_jax.evaluation.paper_tables import Measured, Runs, Table, find_run, read_runs

PAPERS = {"pag": "dynpix_jax.evaluation.pag_tables"}
"""Paper -> module with its TABLES."""

_EXAMPLE = """\
example:
  dynpix tables pag
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
    parser.add_argument("paper", choices=sorted(PAPERS), help="whose tables")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="folder of evaluated runs")
    parser.add_argument("--json", action="store_true", help="print the tables as JSON")


def run(args: argparse.Namespace) -> int:
    """Prints the tables; returns 0."""
    tables: tuple[Table, ...] = importlib.import_module(PAPERS[args.paper]).TABLES
    runs = None if args.runs is None else read_runs(args.runs)
    if args.json:
        print(json.dumps([numbers(table, runs) for table in tables], indent=2))
        return 0
    for table in tables:
        print(f"{table.number}: {table.title}")
        print_table(*cells(table, runs))
        if table.note:
            print(f"({table.note})")
        print()
    return 0


def numbers(table: Table, runs: Runs | None) -> dict[str, Any]:
    """A table for JSON; `measured` is there with `runs` alone, null where none is the row's."""
    rows = []
    for row in table.rows:
        entry: dict[str, Any] = {
            "network": row.network,
            "config": table.spec(row),
            "paper": dict(zip(table.metrics, row.paper, strict=True)),
            "paper_macs": row.macs,
        }
        if runs is not None:
            found = find_run(runs, table, row)
            entry["measured"] = None if found is None else dataclasses.asdict(found)
        rows.append(entry)
    return {"table": table.number, "title": table.title, "note": table.note, "rows": rows}


def cells(table: Table, runs: Runs | None) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of a table; what there is not is "-"."""
    labels = [score.label for score in table.scores]
    has_macs = any(row.macs is not None for row in table.rows)
    heads = ["network", *labels, *(["MACs"] if has_macs else [])]
    if runs is not None:
        heads += [*(f"{label} here" for label in labels), "MACs here", "measured on"]
    lines = []
    for row in table.rows:
        values = [
            "-" if value is None else score.text(value)
            for score, value in zip(table.scores, row.paper, strict=True)
        ]
        line = [row.network, *values, *([_macs(row.macs)] if has_macs else [])]
        if runs is not None:
            line += _measured(table, find_run(runs, table, row))
        lines.append([*line, table.spec(row)])
    return [*heads, "config"], lines


def _measured(table: Table, found: Measured | None) -> list[str]:
    if found is None:
        return ["-"] * (len(table.metrics) + 2)
    values = [
        score.text(found.scores[score.name]) if score.name in found.scores else "-" for score in table.scores
    ]
    return [*values, _macs(found.macs), found.data]


def _macs(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e9:#.4g}e9"
