"""Tables of a paper: each row with the config that makes it, the paper's scores, and the scores of runs.

A run is a row's if it was evaluated (eval.json) on the row's data set, and its network is the one that the
row's config ends with. What a run was trained with besides does not matter: budgets, folders, seeds.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dynpix_jax.tasks import Score, boundaries, depth, normals, segmentation
from dynpix_jax.utils.configs import load_config
from dynpix_jax.utils.errors import UserError

SCORES: dict[str, tuple[Score, ...]] = {
    "boundaries": boundaries.SCORES,
    "segmentation": (*segmentation.SCORES, segmentation.IIOU),
    "depth": depth.SCORES,
    "normals": normals.SCORES,
}
"""Task -> what the metrics of its tables can be."""

BUDGETS = ("cpu", "gpu")
"""Values of the configs' argument ``budget``; it may change the network (Res6)."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One network of a table.

    network: its name there. argument: of the table's config. paper: the table's metrics, None where the paper
    has none. macs: the paper's "FLOPs consumption", multiply-adds; None without.
    """

    network: str
    argument: str
    paper: tuple[float | None, ...]
    macs: float | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """One table, or the part of it about one data set.

    number: such as "Table 3". title: what it is about. config: file. source: its data set, as `SourceSpec`
    names it. metrics: scores of the task, by name. note: what a reader must know.
    """

    number: str
    title: str
    config: str
    source: str
    task: str
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""

    @property
    def scores(self) -> tuple[Score, ...]:
        """The metrics with their labels."""
        known = {score.name: score for score in SCORES[self.task]}
        return tuple(known[name] for name in self.metrics)

    def spec(self, row: Row) -> str:
        """What --config takes for a row."""
        return f"{self.config}:{row.argument}"


@dataclasses.dataclass(frozen=True)
class Measured:
    """A row of an eval.json.

    scores: by name, of the mode that was run first. macs: executed, mean per image. data: such as "nyuv2
    test, 654 images". file: the eval.json. stage: of training.
    """

    scores: dict[str, float]
    macs: float
    data: str
    file: str
    stage: str


Runs = dict[tuple[str, str], Measured]
"""Results by data set and network (its model section as JSON)."""


def read_runs(folder: Path) -> Runs:
    """Every row of every eval.json below `folder`; of several with one network the file written last.

    Raises:
        UserError: no such folder, or an eval.json that is none.
    """
    if not folder.is_dir():
        raise UserError(f"folder of runs not found: {folder.absolute()}")
    runs: Runs = {}
    for file in sorted(folder.rglob("eval.json"), key=lambda path: path.stat().st_mtime):
        try:
            runs.update(_read_run(file))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise UserError(f"{file} is not what eval.py writes ({type(error).__name__}: {error})") from None
    return runs


def find_run(runs: Runs, table: Table, row: Row) -> Measured | None:
    """The result of a row, if there is one.

    Raises:
        UserError: the row's config is not there.
    """
    if not any(source == table.source for source, _ in runs):
        return None
    for budget in BUDGETS:
        argument = ",".join(filter(None, (row.argument, f"budget={budget}")))
        config = json.loads(json.dumps(load_config(f"{table.config}:{argument}").to_dict()))
        stage = config["training"]["stages"][-1]
        if (found := runs.get((table.source, _network(config["model"], stage)))) is not None:
            return found
    return None


def _read_run(file: Path) -> Iterator[tuple[tuple[str, str], Measured]]:
    content = json.loads(file.read_text(encoding="utf-8"))
    stages = {stage["name"]: stage for stage in content["config"]["training"]["stages"]}
    source = content["data"].split(",")[0].split()[0]
    for row in content["rows"]:
        first = next(iter(row["modes"].values()))
        scores = {name: float(value) for name, value in first.items() if isinstance(value, int | float)}
        found = Measured(scores, float(row["macs_per_image"]), content["data"], str(file), row["stage"])
        yield (source, _network(content["config"]["model"], stages[row["stage"]])), found


def _network(model: Mapping[str, Any], stage: Mapping[str, Any]) -> str:
    """The model section with the overrides of a stage, as JSON."""
    return json.dumps(_overridden(model, stage.get("model") or {}), sort_keys=True)


def _overridden(section: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A section with changes that reach into its sections."""
    changed = dict(section)
    for name, value in changes.items():
        inside = changed.get(name)
        if isinstance(inside, Mapping) and isinstance(value, Mapping):
            value = _overridden(inside, value)
        changed[name] = value
    return changed
