"""Tables of a paper as data: ``papers/<paper>/tables.toml``, or a file of one's own in the same format.

    [[tables]]                                    # of the paper; [[comparisons]]: of this repository
    number = "Table 1"
    title = "boundaries on BSDS500"
    config = "configs/pag/bsds500.py"
    source = "bsds500"
    task = "boundaries"
    metrics = ["ods"]
    columns = ["network", "argument", "after", "ods"]
    rows = [
      ["base",    "variant=base",      "",             0.790],
      ["MP@Res4", "variant=multipool", "variant=base", 0.792],
    ]

The keys of a table are the fields of `Table`; the columns are its metrics and the fields of `Row`, of which
``network`` and ``argument`` are needed. Scores have the units of eval.json, ``macs`` and ``counted`` are in
1e9 (``gibi = true``: in 2**30), "-" stands for what the paper does not print.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dynpix_jax
from dynpix_jax.core.errors import UserError, suggest
from dynpix_jax.core.sections import from_config
from dynpix_jax.evaluation.paper_tables import BUDGETS, Row, Table

_FILES = Path(dynpix_jax.__file__).parent / "papers"
PAPERS = tuple(sorted(file.parent.name for file in _FILES.glob("*/tables.toml")))
"""Papers whose tables ship in the package."""

MISSING = "-"
"""In a column of numbers: the paper does not print it."""

_TEXTS = ("network", "argument", "after", "reference", "alternative")
_NUMBERS = ("delta_m", "macs", "counted")


@dataclasses.dataclass(frozen=True)
class PaperTables:
    """All tables of a file.

    Attributes:
        tables: Those of the paper.
        comparisons: Tables of this repository's own measurements.
    """

    tables: tuple[Table, ...]
    comparisons: tuple[Table, ...] = ()

    @property
    def all(self) -> tuple[Table, ...]:
        """The paper's, then the others."""
        return (*self.tables, *self.comparisons)


@dataclasses.dataclass(frozen=True)
class _Section:
    """A table as the file has it; see `Table`."""

    number: str
    title: str
    config: str
    source: str
    metrics: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    task: str = ""
    note: str = ""
    budgets: tuple[str, ...] = BUDGETS
    gibi: bool = False
    seeds: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class _File:
    tables: tuple[dict[str, Any], ...] = ()
    comparisons: tuple[dict[str, Any], ...] = ()


def read_tables(paper: str) -> PaperTables:
    """The tables of a paper by its name, or of a file whose name ends with ".toml".

    Raises:
        UserError: No such paper or file, or something in it is wrong; names file, table and row.
    """
    if paper.endswith(".toml"):
        return _read(Path(paper))
    if paper not in PAPERS:
        raise UserError(f"no tables of {paper!r}; {suggest(paper, PAPERS)}; your own: a file *.toml")
    return _read(_FILES / paper / "tables.toml")


def _read(file: Path) -> PaperTables:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: {error}") from None
    sections = from_config(_File, content, str(file))
    tables, comparisons = (
        tuple(_table(section, f"{file}: {name}[{index}]") for index, section in enumerate(given))
        for name, given in (("tables", sections.tables), ("comparisons", sections.comparisons))
    )
    found = PaperTables(tables, comparisons)
    _check_order(found, str(file))
    return found


def _check_order(paper: PaperTables, file: str) -> None:
    """Refuses a row that continues from no row of the tables, from two, or in a cycle."""
    parents: dict[str, dict[str, str]] = {}
    rows = [
        (table.config, row, f"{file}: {table.number}, row {row.network!r}: after: ")
        for table in paper.all
        for row in table.rows
    ]
    for config, row, path in rows:
        first = parents.setdefault(config, {}).setdefault(row.argument, row.after)
        if first != row.after:
            raise UserError(f"{path}{row.after!r} here, {first!r} in another row of the same argument")
    for config, row, path in rows:
        known, seen = parents[config], [row.argument]
        while after := known[seen[-1]].partition("@")[0]:
            if after not in known:
                raise UserError(f"{path}no row of {config} is {after!r}; {suggest(after, known)}")
            if after in seen:
                raise UserError(f"{path}{after!r}: a row would continue from itself")
            seen.append(after)


def _table(given: Mapping[str, Any], path: str) -> Table:
    section = from_config(_Section, given, path)
    path = f"{path} ({section.number})"
    header = {
        field.name: getattr(section, field.name)
        for field in dataclasses.fields(section)
        if field.name not in ("columns", "rows")
    }
    empty = Table(**header, rows=())
    try:
        empty.scores  # noqa: B018
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except KeyError as error:
        raise UserError(f"{path}.metrics: no metric {error}") from None
    for name in section.columns:
        if name not in (*_TEXTS, *_NUMBERS, *section.metrics):
            raise UserError(f"{path}.columns: {suggest(name, (*_TEXTS, *_NUMBERS, *section.metrics))}")
    if missing := [name for name in ("network", "argument") if name not in section.columns]:
        raise UserError(f"{path}.columns: {' and '.join(missing)} missing")
    rows = tuple(_row(empty, section.columns, cells, path) for cells in section.rows)
    _check_names(rows, path)
    return dataclasses.replace(empty, rows=rows)


def _check_names(rows: Sequence[Row], path: str) -> None:
    names = [row.network for row in rows]
    for row in rows:
        if names.count(row.network) > 1:
            raise UserError(f"{path}, row {row.network!r}: there are two of that name")
        if row.reference and row.reference not in names:
            raise UserError(
                f"{path}, row {row.network!r}: reference: no row {row.reference!r};"
                f" {suggest(row.reference, names)}"
            )


def _row(table: Table, columns: Sequence[str], cells: Sequence[Any], path: str) -> Row:
    path = f"{path}, row {cells[0] if cells else ''!r}"
    if len(cells) != len(columns):
        raise UserError(f"{path}: {len(cells)} cells, expected {len(columns)}: {', '.join(columns)}")
    texts: dict[str, str] = {}
    numbers: dict[str, float | None] = {}
    for name, cell in zip(columns, cells, strict=True):
        if name in _TEXTS and isinstance(cell, str):
            texts[name] = cell
        elif name not in _TEXTS and (cell == MISSING or type(cell) in (int, float)):
            numbers[name] = None if cell == MISSING else float(cell)
        else:
            expected = "text" if name in _TEXTS else f'a number or "{MISSING}"'
            raise UserError(f"{path}: {name}: {cell!r}; expected {expected}")
    unit = 2**30 if table.gibi else 1e9
    macs, counted = (
        None if (value := numbers.get(name)) is None else value * unit for name in ("macs", "counted")
    )
    return Row(
        **texts,
        paper=tuple(numbers.get(metric) for metric in table.metrics),
        macs=macs,
        counted=counted,
        printed=numbers.get("delta_m"),
    )
