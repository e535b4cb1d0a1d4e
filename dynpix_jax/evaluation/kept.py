"""Files that keep what rows of a paper's tables have reached, when their runs are gone.

A page of results is printed from them, so that no number in it can drift from what was measured.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynpix_jax.core.errors import UserError, suggest
from dynpix_jax.core.text import parse_json, write_text
from dynpix_jax.evaluation.paper_tables import Row, Table
from dynpix_jax.evaluation.reproduce import Reached
from dynpix_jax.evaluation.results import Measured
from dynpix_jax.evaluation.table_files import read_tables

KEPT = ("scores", "macs", "data", "stage", "tasks", "density", "milliseconds", "alternative", "chance")
"""Fields of `Measured` that a file keeps."""
FACTS = ("device", "versions")
"""Facts of an eval.json that a file keeps."""


@dataclass(frozen=True)
class Kept:
    """What a file has.

    Attributes:
        found: Tables with what their rows have reached.
        facts: The devices and versions that its numbers come from.
    """

    found: list[tuple[Table, list[Reached]]]
    facts: dict[str, list[str]]


def keep(file: Path, paper: str, found: Sequence[tuple[Table, Sequence[Reached]]]) -> None:
    """Writes what rows have reached; rows without results are left out.

    Args:
        file: A file *.json.
        paper: The paper's name, or the file of its tables.
        found: Tables with their rows.

    Raises:
        UserError: Nothing has been reached, or the file cannot be written.
    """
    tables = []
    for table, rows in found:
        entries = {one.row.network: _to_dict(one) for one in rows if one.results}
        if entries:
            tables.append({"table": _name(table), "rows": entries})
    if not tables:
        raise UserError(f"--keep {file}: none of these rows has been evaluated; run them first")
    write_text(file, json.dumps({"paper": paper, "tables": tables}, indent=1, sort_keys=True) + "\n")


def kept(file: Path) -> Kept:
    """Reads what `keep` has written.

    Raises:
        UserError: No such file, or one that `keep` did not write, or of rows that the paper does not have.
    """
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
        named = {tuple(_name(table)): table for table in read_tables(content["paper"]).all}
        found = []
        for one in content["tables"]:
            table, entries = named[tuple(one["table"])], one["rows"]
            rows = {row.network: row for row in table.rows}
            if unknown := [name for name in entries if name not in rows]:
                raise UserError(f"{file}: {table.number}: no row {unknown[0]!r}; {suggest(unknown[0], rows)}")
            known = [(row, entries[name]) for name, row in rows.items() if name in entries]
            found.append((table, [_reached(row, entry) for row, entry in known]))
        return Kept(found, _facts(content["tables"]))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is not what `dynpix reproduce --keep` writes ({type(error).__name__}: {error})"
        ) from None


def _facts(tables: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    rows = [row for table in tables for row in table["rows"].values()]
    found = {name: {value for row in rows for value in row["facts"].get(name, ())} for name in FACTS}
    return {name: sorted(values) for name, values in found.items()}


def _name(table: Table) -> list[str]:
    return [table.number, table.source, table.task, table.title]


def _to_dict(reached: Reached) -> dict[str, Any]:
    files = (Path(file) for one in reached.results for file in one.files)
    contents = [parse_json(file.read_text(encoding="utf-8")) for file in files]
    return {
        "results": [{name: getattr(one, name) for name in KEPT} for one in reached.results],
        "drops": list(reached.drops),
        "facts": {name: sorted({one[name] for one in contents if name in one}) for name in FACTS},
    }


def _reached(row: Row, entry: dict[str, Any]) -> Reached:
    results = [Measured(files=(), **{**one, "tasks": tuple(one["tasks"])}) for one in entry["results"]]
    return Reached(row, tuple(results), tuple(entry["drops"]))
