"""Trains and evaluates rows of a paper's tables; prints paper, ours, MACs, milliseconds.

example:
  dynpix reproduce pag bsds500 --workdir runs/pag --args root=data/BSDS500 --dry-run
  dynpix reproduce pag "Table 3/nyuv2" --rows baseline "MP@Res5*" --workdir runs/pag --args budget=gpu
  dynpix reproduce pag bsds500 --workdir runs/pag --report --keep docs/results/pag_bsds500.json
  dynpix reproduce --kept docs/results/pag_bsds500.json --markdown

Tables and rows: dynpix tables PAPER. A row that continues from another's run is
trained after it, and brings it along. The same command goes on where it was stopped: what is done is not run
again. Where a row fails, those that do not continue from it go on, and the status is 1 in the end. Commands
and what they print go to stderr, the tables to stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from types import FrameType
from typing import Any

from dynpix_jax.cli.paper_tables import macs_text, macs_unit, score_text
from dynpix_jax.cli.tables import print_markdown, print_table
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.text import a_path
from dynpix_jax.evaluation.kept import keep, kept
from dynpix_jax.evaluation.multitask import DELTA_M
from dynpix_jax.evaluation.paper_tables import Table
from dynpix_jax.evaluation.reproduce import Options, Reached, Reproduction, run_commands, select
from dynpix_jax.evaluation.results import kinds_of_chance
from dynpix_jax.evaluation.table_files import PAPERS, read_tables
from dynpix_jax.tasks import Score

PROGRAM = (sys.executable, "-m", "dynpix_jax.cli.main")
"""`dynpix`, as this process runs it."""
Column = tuple[str, Callable[[Reached], str]]
"""Of a table: its head, and the cell of a row."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("paper", nargs="?", help=f"{', '.join(PAPERS)}, or a file *.toml of your own")
    parser.add_argument(
        "table", nargs="*", help='such as "Table 3" or "Table 3/nyuv2" (default: all of the paper)'
    )
    parser.add_argument(
        "--rows", nargs="+", default=[], metavar="ROW", help="networks; * and ? as in a shell"
    )
    parser.add_argument("--workdir", type=a_path, metavar="DIR", help="runs are made below it")
    parser.add_argument(
        "--args", default="", metavar="ARG", help="arguments of all configs: root=DIR,weights=FILE,budget=gpu"
    )
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="change config values")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], help="instead of the tables' own")
    doing = parser.add_mutually_exclusive_group()
    doing.add_argument("--dry-run", action="store_true", help="list the commands in order, run nothing")
    doing.add_argument("--report", action="store_true", help="print what has been reached, run nothing")
    doing.add_argument(
        "--kept", type=a_path, metavar="FILE", help="print what a file has kept, without paper and workdir"
    )
    parser.add_argument(
        "--keep", type=a_path, metavar="FILE", help="write what has been reached to a file *.json, too"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the tables as JSON")
    form.add_argument("--markdown", action="store_true", help="print the tables as Markdown")


def run(args: argparse.Namespace) -> int:
    """Runs the rows and prints the tables; returns 1 if a row has failed."""
    if args.kept:
        return print_kept(args)
    if not args.paper or not args.workdir:
        raise UserError("give a paper and --workdir DIR, or --kept FILE")
    paper = read_tables(args.paper)
    chosen = select(paper, args.table, args.rows)
    plan = Reproduction(paper.all, Options(args.workdir, args.args, tuple(args.set), tuple(args.seeds)))
    failures: list[str] = []
    if not args.report:
        commands = plan.commands([(table, row) for table, rows in chosen for row in rows])
        if args.dry_run:
            for command in commands:
                print(shlex.join(["dynpix", *command.words]))
            return 0
        failures = run_commands(commands, lambda words: execute(words, args.workdir), _say)
    found = [(table, [plan.reached(table, row) for row in rows]) for table, rows in chosen]
    if args.json:
        print(json.dumps([numbers(plan, table, rows) for table, rows in found], indent=2))
    else:
        _print(found, markdown=args.markdown)
    if args.keep:
        keep(args.keep, args.paper, found)
    for line in failures:
        _say(line)
    return 1 if failures else 0


def print_kept(args: argparse.Namespace) -> int:
    """Prints the tables of a file, and what its numbers come from; returns 0."""
    others = ("paper", "workdir", "args", "set", "seeds", "rows", "keep", "json")
    given = [name for name in others if getattr(args, name)]
    if given:
        raise UserError(f"--kept {args.kept}: it does not go with {', '.join(given)}")
    content = kept(args.kept)
    _print(content.found, markdown=args.markdown)
    for name, values in content.facts.items():
        print(f"{name}: {'; '.join(values)}" + ("\n" if args.markdown else ""))
    return 0


def _print(found: Sequence[tuple[Table, Sequence[Reached]]], *, markdown: bool) -> None:
    for table, rows in found:
        print(f"{table.number}: {table.title}" + ("\n" if markdown else ""))
        (print_markdown if markdown else print_table)(*cells(table, rows))
        print()


def execute(command: Sequence[str], workdir: Path) -> int:
    """Runs `dynpix COMMAND` in a process of its own; what it prints goes to stderr.

    The first Ctrl-C or SIGTERM reaches the program, which saves what it has; then this one ends, too.

    Raises:
        KeyboardInterrupt: A signal came.
    """
    _say(f"$ {shlex.join(['dynpix', *command])}")
    # Rows and seeds share programs.
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(workdir.absolute() / "compiled")
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
    came: list[int] = []
    with subprocess.Popen([*PROGRAM, *command], stdout=sys.stderr, env=environment) as process:

        def stop(number: int, frame: FrameType | None) -> None:
            came.append(number)
            if number == signal.SIGTERM:  # Ctrl-C reaches the whole group
                process.send_signal(number)

        previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            status = process.wait()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt
    return status


def numbers(plan: Reproduction, table: Table, rows: Sequence[Reached]) -> dict[str, Any]:
    """A table for JSON; `measured` has a value for each finished run."""
    entries = []
    for reached in rows:
        row = reached.row
        entries.append(
            {
                "network": row.network,
                "config": table.spec(row),
                "paper": dict(zip(table.metrics, row.paper, strict=True)),
                "paper_macs": row.macs,
                "paper_delta_m": row.printed,
                "measured": {metric: _values(table, reached, metric) for metric in table.metrics},
                "delta_m": list(reached.drops),
                "macs": [one.macs for one in reached.results],
                "density": [one.density for one in reached.results],
                "milliseconds": [dict(one.milliseconds) for one in reached.results],
                "files": [one.file for one in reached.results],
            }
        )
    seeds = [seed for seed in plan.seeds(table) if seed is not None]
    return {"table": table.number, "title": table.title, "note": table.note, "seeds": seeds, "rows": entries}


def cells(table: Table, rows: Sequence[Reached]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells; several seeds as mean ± standard deviation, a missing value as "-".

    Columns that the paper has for none of the rows are left out.
    """
    columns: list[Column] = [
        ("network", lambda reached: reached.row.network),
        *_score_columns(table, rows),
        *_cost_columns(table, rows),
        ("runs", lambda reached: str(len(reached.results))),
    ]
    return [head for head, _ in columns], [[cell(reached) for _, cell in columns] for reached in rows]


def _score_columns(table: Table, rows: Sequence[Reached]) -> Iterator[Column]:
    for index, score in enumerate(table.scores):
        if any(reached.row.paper[index] is not None for reached in rows):
            yield f"{score.label} paper", partial(_paper_score, score, index)
        yield score.label, partial(_own_score, table, score)
    first = table.scores[0]
    for kind in kinds_of_chance(one for reached in rows for one in reached.results):
        yield f"{first.label}, {kind} masks", partial(_chance, table, first, kind)
    if table.has_delta:
        if any(reached.row.printed is not None for reached in rows):
            yield f"{DELTA_M.label} paper", lambda reached: score_text(DELTA_M, reached.row.printed)
        yield DELTA_M.label, lambda reached: _spread(DELTA_M, reached.drops)


def _cost_columns(table: Table, rows: Sequence[Reached]) -> Iterator[Column]:
    unit = macs_unit(table)
    if any(reached.row.macs is not None for reached in rows):
        yield f"{unit} paper", lambda reached: macs_text(table, reached.row.macs)
    yield unit, lambda reached: macs_text(table, _mean(one.macs for one in reached.results))
    results = [one for reached in rows for one in reached.results]
    if any(one.density is not None for one in results):
        yield "density", _density
    for mode in dict.fromkeys(mode for one in results for mode in one.milliseconds):
        yield f"{mode} ms", partial(_milliseconds, mode)


def _paper_score(score: Score, index: int, reached: Reached) -> str:
    return score_text(score, reached.row.paper[index])


def _own_score(table: Table, score: Score, reached: Reached) -> str:
    return _spread(score, _values(table, reached, score.name))


def _chance(table: Table, score: Score, kind: str, reached: Reached) -> str:
    """The score with masks of chance, of the runs that have gates."""
    found = tuple(one.by_chance(kind) for one in reached.results)
    return _spread(score, _values(table, Reached(reached.row, found), score.name))


def _density(reached: Reached) -> str:
    found = _mean(one.density for one in reached.results if one.density is not None)
    return "-" if found is None else f"{found:.3f}"


def _milliseconds(mode: str, reached: Reached) -> str:
    times = [one.milliseconds for one in reached.results]
    found = _mean(one[mode] for one in times if mode in one)
    return "-" if found is None else f"{found:.1f}"


def _mean(values: Iterable[float]) -> float | None:
    """The mean; None without values."""
    numbers = list(values)
    return mean(numbers) if numbers else None


def _values(table: Table, reached: Reached, metric: str) -> list[float]:
    return [value for one in reached.results if (value := table.value(one, metric)) is not None]


def _spread(score: Score, values: Sequence[float]) -> str:
    if not values:
        return "-"
    text = score.text(mean(values))
    return text if len(values) == 1 else f"{text} ± {score.text(stdev(values))}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
