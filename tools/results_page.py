"""Writes docs/results.md: the template docs/results/page.md.jinja, filled with the files beside it.

    python -m tools.results_page

Every measured number in the page is taken from a file docs/results/NAME.json, so that none can drift from
what was measured. There are three kinds of files: what `dynpix reproduce --keep` writes; what another command
prints with --json; and records, which are tables of programs that have no --json, or of code that is gone:
"about" says how they were measured.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import jinja2

from dynpix_jax.cli import main as dynpix
from dynpix_jax.cli.common import run_main
from dynpix_jax.cli.plan import duration
from dynpix_jax.cli.tables import markdown
from dynpix_jax.evaluation.kept import kept
from dynpix_jax.evaluation.paper_tables import Table
from dynpix_jax.evaluation.reproduce import Reached
from dynpix_jax.evaluation.results import Measured, kinds_of_chance
from dynpix_jax.serving.network_file import shipped_networks

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "results"
TEMPLATE = FOLDER / "page.md.jinja"
PAGE = FOLDER.parent / "results.md"


class Reproduced:
    """What `dynpix reproduce --keep` wrote: rows by network, or by network and the table's task.

    Attributes:
        markdown: Its tables, devices and versions.
        networks: Names of the rows, in the tables' order.
    """

    def __init__(self, file: Path) -> None:
        """Reads the file."""
        self.markdown = _printed(["reproduce", "--kept", str(file), "--markdown"])
        self._rows: dict[Any, Row] = {}
        self.networks: list[str] = []
        for table, rows in kept(file).found:
            for reached in rows:
                row = Row(table, reached)
                self.networks.append(reached.row.network)
                self._rows |= {reached.row.network: row, (reached.row.network, table.task): row}

    def __getitem__(self, network: str | tuple[str, str]) -> Row:
        """The row of a network; of (network, task) where tables of several tasks have it."""
        return self._rows[network]


class Row:
    """Means of a row's runs: `row.ods`, `row.macs`, `row.density`, `row.dense_ms`, `row.delta_m`.

    Attributes:
        runs: The same of each run.
        spread: Their standard deviations.
        paper: What the paper prints.
        chance: Kind of masks, "shuffled" or "other image" -> means of the scores with them.
    """

    def __init__(self, table: Table, reached: Reached) -> None:
        """Takes the numbers of all runs together."""
        self.runs = [_numbers(table, one) for one in reached.results]
        for run, drop in zip(self.runs, reached.drops, strict=False):  # tables of one task have no drops
            run["delta_m"] = drop
        self.spread = _each(stdev, self.runs) if len(self.runs) > 1 else {}
        self.paper = dict(zip(table.metrics, reached.row.paper, strict=True))
        self.chance = {
            kind: _each(mean, [_scores(table, one.by_chance(kind)) for one in reached.results])
            for kind in kinds_of_chance(reached.results)
        }
        self._means = _each(mean, self.runs)

    def __getitem__(self, name: str) -> float:
        """The mean of a number."""
        return self._means[name]


class Recorded:
    """A table that was written down: rows by the first cell, cells by their heads.

    Attributes:
        markdown: The table, and below it how it was measured.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        """Takes the content of a file."""
        heads, rows = content["heads"], content["rows"]
        self.markdown = f"{markdown(heads, rows)}\n\n{content['about']}"
        self._rows = {row[0]: dict(zip(heads, row, strict=True)) for row in rows}

    def __getitem__(self, name: str) -> dict[str, str]:
        """The cells of a row."""
        return self._rows[name]


def _numbers(table: Table, one: Measured) -> dict[str, float]:
    costs = {"macs": one.macs, **{f"{mode}_ms": value for mode, value in one.milliseconds.items()}}
    density = {} if one.density is None else {"density": one.density}
    return {**_scores(table, one), **costs, **density}


def _scores(table: Table, one: Measured) -> dict[str, float]:
    found = {metric: table.value(one, metric) for metric in table.metrics}
    return {metric: value for metric, value in found.items() if value is not None}


def _each(what: Callable[[Sequence[float]], float], runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: what([one[name] for one in runs]) for name in runs[0] if all(name in one for one in runs)}


def _printed(command: Sequence[str]) -> str:
    """What a command prints.

    Raises:
        RuntimeError: It failed; why stands on stderr.
    """
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        if status := dynpix.main(command):
            raise RuntimeError(f"dynpix {' '.join(command)}: exit status {status}")
    return printed.getvalue().rstrip("\n")


class Files:
    """The result files of a folder, read when the page names them.

    Attributes:
        used: Those that were, by name.
    """

    def __init__(self, folder: Path) -> None:
        """Nothing is read yet."""
        self.used: dict[str, Any] = {}
        self._folder = folder

    def read(self, name: str) -> Any:
        """A file by its path without ".json": `Reproduced`, `Recorded`, or what a command printed."""
        if name not in self.used:
            file = self._folder / f"{name}.json"
            content = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(content, dict) and "tables" in content:
                self.used[name] = Reproduced(file)
            else:
                recorded = isinstance(content, dict) and "heads" in content
                self.used[name] = Recorded(content) if recorded else content
        return self.used[name]

    def unused(self) -> Iterator[str]:
        """Names of files that the page does not have."""
        files = sorted(self._folder.rglob("*.json"))
        names = (file.relative_to(self._folder).with_suffix("").as_posix() for file in files)
        return (name for name in names if name not in self.used)


def digits(value: float, number: int) -> str:
    """A number without the zero in front, such as ".0164"; 12.5 stays "12.5"."""
    sign = "-" if round(value, number) < 0 else ""
    return sign + f"{abs(value):.{number}f}".removeprefix("0")


def _spread(row: Row, name: str, number: int) -> str:
    return f"{digits(row[name], number)} ± {digits(row.spread[name], number)}"


def _sha256(network: str) -> str:
    """Of the file of a network that ships."""
    return hashlib.sha256(shipped_networks()[network].read_bytes()).hexdigest()


def filled(template: str, files: Files) -> str:
    """The page.

    Args:
        template: Jinja2; `read(NAME)` is a file, `|digits(4)` ".7723", `|percent` "81", `|giga(2)` "62.93",
            `hours|duration` "12 min", `row|spread("ods", 4)` ".7368 ± .0022", `row|each("ods", 4)` every
            run; `sha256("boundaries")` is that of a network that ships. `printed(".790")` is a number that
            was not measured here, but stands in a paper or in another program's output.
        files: Where the numbers are.

    Raises:
        jinja2.UndefinedError: A file does not have what the template asks for.
    """
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True, autoescape=False
    )
    environment.filters |= {
        "digits": digits,
        "percent": lambda share, number=0: f"{100 * share:.{number}f}",
        "giga": lambda value, number: digits(value / 1e9, number),
        "spread": _spread,
        "duration": duration,
        "each": lambda row, name, number: ", ".join(digits(one[name], number) for one in row.runs),
    }
    return environment.from_string(template).render(read=files.read, printed=str, sha256=_sha256)


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page; returns 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(sys.argv[1:] if argv is None else argv)
    PAGE.write_text(filled(TEMPLATE.read_text(encoding="utf-8"), Files(FOLDER)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    run_main(main)
