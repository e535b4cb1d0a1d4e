"""What `eval.py` prints and writes of evaluated networks: tables, eval.json, the pictures of report.html."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dynpix_jax
from dynpix_jax.cli.tables import budget_table, exit_table, print_table
from dynpix_jax.core.capabilities import Chooses, choices_of, density
from dynpix_jax.core.config import RunConfig
from dynpix_jax.core.source import Element, Source
from dynpix_jax.core.system import System
from dynpix_jax.evaluation.evaluator import Evaluation
from dynpix_jax.evaluation.multitask import DELTA_M
from dynpix_jax.evaluation.results import EvaluatedData
from dynpix_jax.evaluation.runner import choice_maps, earlier_predictions, exit_maps, ponder_maps
from dynpix_jax.evaluation.scorers import truth
from dynpix_jax.serving.trained import Trained
from dynpix_jax.tasks import all_scores
from dynpix_jax.visualization.example import Example, RowPrediction
from dynpix_jax.visualization.exits import Exit
from dynpix_jax.visualization.report import Budget, ChanceBudget, chance_lines, report_html
from dynpix_jax.visualization.task_pictures import task_pictures


@dataclass(frozen=True)
class Evaluated:
    """A network and what its evaluation has found."""

    run: Trained
    evaluation: Evaluation
    drop: float | None = None

    @property
    def drops(self) -> dict[str, float]:
        """Δm under its score's name; {} without a reference."""
        return {} if self.drop is None else {DELTA_M.name: self.drop}

    @cached_property
    def budget(self) -> Budget:
        """The row of the table: the scores of the mode that was run first, the times of all."""
        found = self.evaluation
        return Budget(
            stage=self.run.title,
            rho=self.run.rho,
            density=found.density,
            macs=found.macs,
            macs_open=found.macs_open,
            scores=found.numbers | self.drops,
            milliseconds={
                mode: (scores.milliseconds, *scores.milliseconds_spread)
                for mode, scores in found.modes.items()
            },
            curve=found.curve,
            per_class=found.per_class,
            exits=[(one.macs, one.numbers) for one in found.exits],
            chance={
                kind: ChanceBudget(density(self.run.system, one.shares), one.macs, one.numbers)
                for kind, one in found.chance.items()
            },
        )

    def to_dict(self) -> dict[str, Any]:
        """The row of eval.json."""
        run = self.run
        other = {"alternative": run.alternative} if run.alternative else {}
        facts = {"stage": run.stage, **other, "step": run.step, "target_rho": run.rho}
        return {**facts, **self.evaluation.to_dict(), **self.drops}

    def prediction(self, index: int, photo: np.ndarray) -> RowPrediction:
        """What the network predicts of the image with that index, which is ``photo``."""
        system, size = self.run.system, photo.shape[:2]
        _, by_mode = self.evaluation.seen[index]
        result = next(iter(by_mode.values()))
        outputs = result.outputs
        return RowPrediction(
            self.budget.label,
            {
                name: np.asarray(task.decode(outputs.predictions[name])[0])
                for name, task in self.evaluation.tasks.items()
            },
            ponder_maps(system, result, size),
            {block: np.asarray(mask[0]) for block, mask in outputs.gates.items()},
            earlier_predictions(system, result, size),
            choice_maps(system, result, size),
            [Exit(*one) for one in exit_maps(system, result, size)],
        )


def evaluated_data(config: RunConfig, source: Source) -> EvaluatedData:
    """The evaluated data, such as "scenes val, 40 images"."""
    count = min(config.evaluation.limit or len(source), len(source))
    return EvaluatedData(source.spec.name, config.data.eval.source.split, count)


def print_rows(rows: Sequence[Evaluated]) -> None:
    """Prints the table, and one of the exits of each network that has them."""
    scores = all_scores(rows[0].evaluation.tasks)
    budgets = [row.budget for row in rows]
    lines = [line for budget in budgets for line in budget.with_chance]
    print_table(*budget_table((*scores, *([] if rows[0].drop is None else [DELTA_M])), lines))
    for line in chance_lines(scores[0], budgets):
        print(line)
    for budget in budgets:
        if budget.exits:
            print(f"\n{budget.label}: exits")
            print_table(*exit_table(scores, budget))


def to_json(config: RunConfig, data: EvaluatedData, rows: Sequence[Evaluated]) -> dict[str, Any]:
    """The content of eval.json."""
    facts = _facts(config, data, rows) | asdict(data)
    return {"config": config.given, **facts, "rows": [row.to_dict() for row in rows]}


def report(config: RunConfig, data: EvaluatedData, source: Source, rows: Sequence[Evaluated]) -> str:
    """The content of report.html."""
    tasks, budgets = rows[0].evaluation.tasks, [row.budget for row in rows]
    fields = {name: source.spec.fields[task.target] for name, task in tasks.items()}
    pictures = {
        name: task_pictures(task, fields[name].classes, fields[name].palette) for name, task in tasks.items()
    }
    examples = list(make_examples(source, rows))
    return report_html(config.name, _facts(config, data, rows), tasks, budgets, examples, pictures)


def make_examples(source: Source, rows: Sequence[Evaluated]) -> Iterator[Example]:
    """The pictures of the report: the first images, with the predictions of all rows."""
    # Stages before the one that adds choices have none.
    systems = [row.run.system for row in rows]
    system = next((one for one in systems if choices_of(one)), systems[0])
    for index, (name, _) in enumerate(rows[0].evaluation.seen):
        element = source[index]
        labelled = {name: truth(task, source, index) for name, task in rows[0].evaluation.tasks.items()}
        predictions = [row.prediction(index, element["image"]) for row in rows]
        choices = _true_choices(system, element)
        yield Example(name, element["image"], labelled, predictions, choices_of(system), choices)


def _facts(config: RunConfig, data: EvaluatedData, rows: Sequence[Evaluated]) -> dict[str, str]:
    """The evaluated run, its data, the device and versions."""
    device = jax.devices()[0]
    packages = {name: importlib.metadata.version(name) for name in ("jax", "flax", "numpy")}
    versions = {"dynpix_jax": dynpix_jax.__version__, "python": platform.python_version(), **packages}
    facts = {
        "name": config.name,
        "data": str(data),
        "checkpoints": ", ".join(dict.fromkeys(row.run.origin for row in rows)),
        "device": f"{device.platform}: {device.device_kind}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    drops = [DELTA_M.text(row.drop) for row in rows if row.drop is not None]
    if drops:
        facts["delta_m"] = f"{', '.join(drops)} ({DELTA_M.meaning}: {config.evaluation.reference})"
    return facts


def _true_choices(system: System, element: Element) -> np.ndarray | None:
    if not isinstance(system, Chooses):
        return None
    found = system.true_choices({name: jnp.asarray(value)[None] for name, value in element.items()})
    return None if found is None else np.asarray(found[0])
