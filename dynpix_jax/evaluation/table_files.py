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

The keys of a table are the fields of `Table`; the columns are its metrics, those that ``more`` names, and
the fields of `Row`, of which ``network`` and ``argument`` are needed. Scores have the units of eval.json,
``macs`` and ``counted`` are in 1e9 (``gibi = true``: in 2**30), "-" stands for what the paper does not print.

Rows of other authors have the network, its authors, and the columns of numbers but ``delta_m`` and
``counted``; scores of each class have a line a class; ``starts`` are arguments of runs that rows continue
from and that the paper does not print; a table of costs names the program that measures it:

    others = [["HED", "Xie and Tu [2]", 0.782]]

    [[tables.classes]]
    score = "iou"
    columns = ["class", "base", "MP@Res4"]
    rows = [["road", 0.98, 0.98]]

    [[benchmarks]]
    number = "Table 4"
    title = "memory of a training step"
    program = "dynpix bench pixelnet-sampling"
    columns = ["network", "memory, MB"]
    rows = [["ours, fc-3", 465]]
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
from dynpix_jax.evaluation.paper_tables import Benchmark, ClassScores, Row, Table

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
        benchmarks: The paper's tables about cost.
        note: Which of the paper's tables are not there, and why.
    """

    tables: tuple[Table, ...]
    comparisons: tuple[Table, ...] = ()
    benchmarks: tuple[Benchmark, ...] = ()
    note: str = ""

    @property
    def all(self) -> tuple[Table, ...]:
        """Those with configs: the paper's, then the others."""
        return (*self.tables, *self.comparisons)


@dataclasses.dataclass(frozen=True)
class _Classes:
    """`ClassScores` as the file has them."""

    score: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclasses.dataclass(frozen=True)
class _Body:
    """What a table has beside the fields of `Table` that it writes as they are."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    others: tuple[tuple[Any, ...], ...] = ()
    classes: tuple[_Classes, ...] = ()


@dataclasses.dataclass(frozen=True)
class _File:
    tables: tuple[dict[str, Any], ...] = ()
    comparisons: tuple[dict[str, Any], ...] = ()
    benchmarks: tuple[dict[str, Any], ...] = ()
    note: str = ""


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
    benchmarks = tuple(
        _benchmark(section, f"{file}: benchmarks[{index}]")
        for index, section in enumerate(sections.benchmarks)
    )
    found = PaperTables(tables, comparisons, benchmarks, sections.note)
    _check_order(found, str(file))
    return found


def _check_order(paper: PaperTables, file: str) -> None:
    """Refuses a row that continues from no row of the tables, from two, or in a cycle."""
    parents: dict[str, dict[str, str]] = {table.config: {} for table in paper.all}
    for table in paper.all:
        parents[table.config] |= dict.fromkeys(table.starts, "")
    rows = [
        (table.config, row, f"{file}: {table.number}, row {row.network!r}: after: ")
        for table in paper.all
        for row in table.rows
    ]
    for config, row, path in rows:
        first = parents[config].setdefault(row.argument, row.after)
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
    names = {field.name for field in dataclasses.fields(_Body)}
    header = {name: value for name, value in given.items() if name not in names}
    table = from_config(Table, {**header, "rows": ()}, path)
    body = from_config(_Body, {name: given[name] for name in names if name in given}, path)
    path = f"{path} ({table.number})"
    _check_columns(table, body.columns, path)
    rows = tuple(_row(table, body.columns, cells, path) for cells in body.rows)
    numbers = [name for name in body.columns if name not in (*_TEXTS, "delta_m", "counted")]
    columns = ("network", "by", *numbers)
    others = tuple(_row(table, columns, cells, f"{path}.others") for cells in body.others)
    _check_names(rows, others, path)
    networks = [row.network for row in rows]
    classes = tuple(_classes(one, networks, path) for one in body.classes)
    return dataclasses.replace(table, rows=rows, others=others, classes=classes)


def _check_columns(table: Table, columns: Sequence[str], path: str) -> None:
    try:
        table.scores  # noqa: B018
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except KeyError as error:
        raise UserError(f"{path}.metrics: no metric {error}") from None
    known = (*_TEXTS, *_NUMBERS, *table.metrics, *table.more)
    for name in columns:
        if name not in known:
            raise UserError(f"{path}.columns: {suggest(name, known)}")
    if missing := [name for name in ("network", "argument") if name not in columns]:
        raise UserError(f"{path}.columns: {' and '.join(missing)} missing")


def _check_names(rows: Sequence[Row], others: Sequence[Row], path: str) -> None:
    names = [row.network for row in rows]
    every = [(row.network, row.by) for row in (*rows, *others)]
    for name, by in every:
        if every.count((name, by)) > 1:
            raise UserError(f"{path}, row {name!r}: there are two of that name")
    for row in rows:
        if row.reference and row.reference not in names:
            raise UserError(
                f"{path}, row {row.network!r}: reference: no row {row.reference!r};"
                f" {suggest(row.reference, names)}"
            )


def _row(table: Table, columns: Sequence[str], cells: Sequence[Any], path: str) -> Row:
    texts, numbers = _cells(columns, (*_TEXTS, "by"), cells, path)
    unit = 2**30 if table.gibi else 1e9
    macs, counted = (None if one is None else one * unit for one in map(numbers.get, ("macs", "counted")))
    return Row(
        **{"argument": "", **texts},
        paper=tuple(map(numbers.get, table.metrics)),
        macs=macs,
        counted=counted,
        printed=numbers.get("delta_m"),
        more=tuple(map(numbers.get, table.more)),
    )


def _classes(section: _Classes, networks: Sequence[str], path: str) -> ClassScores:
    path = f"{path}.classes ({section.score})"
    for name in section.columns[1:]:
        if name not in networks:
            raise UserError(f"{path}.columns: no row {name!r}; {suggest(name, networks)}")
    lines = [_cells(section.columns, section.columns[:1], cells, path) for cells in section.rows]
    return ClassScores(
        section.score,
        tuple(texts[section.columns[0]] for texts, _ in lines),
        {name: tuple(numbers[name] for _, numbers in lines) for name in section.columns[1:]},
    )


def _benchmark(given: Mapping[str, Any], path: str) -> Benchmark:
    found = from_config(Benchmark, given, path)
    path = f"{path} ({found.number})"
    if found.columns[:1] != ("network",):
        raise UserError(f"{path}.columns: expected network first")
    for cells in found.rows:
        _check_count(found.columns, cells, path)
    rows = tuple(tuple(None if cell == MISSING else cell for cell in cells) for cells in found.rows)
    return dataclasses.replace(found, rows=rows)


def _check_count(columns: Sequence[str], cells: Sequence[Any], path: str) -> None:
    if len(cells) != len(columns):
        raise UserError(
            f"{path}, row {cells[0] if cells else ''!r}: {len(cells)} cells,"
            f" expected {len(columns)}: {', '.join(columns)}"
        )


def _cells(
    columns: Sequence[str], text: Sequence[str], cells: Sequence[Any], path: str
) -> tuple[dict[str, str], dict[str, float | None]]:
    """Texts and numbers of a row by column; `text` are the columns of texts."""
    _check_count(columns, cells, path)
    texts: dict[str, str] = {}
    numbers: dict[str, float | None] = {}
    for name, cell in zip(columns, cells, strict=True):
        if name in text and isinstance(cell, str):
            texts[name] = cell
        elif name not in text and (cell == MISSING or type(cell) in (int, float)):
            numbers[name] = None if cell == MISSING else float(cell)
        else:
            expected = "text" if name in text else f'a number or "{MISSING}"'
            raise UserError(f"{path}, row {cells[0]!r}: {name}: {cell!r}; expected {expected}")
    return texts, numbers
