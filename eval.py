"""Evaluate a trained run: `python eval.py --workdir=DIR`, or `--weights=FILE --config=FILE --out=DIR`.

Prints a table (accuracy beside computation and time), and leaves DIR/eval.json with all numbers and
DIR/report.html with curves and pictures. With evaluation.reference (a file of `dynpix reference`) a network
for several tasks is compared with a network for each: Δm.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import Progress

import dynpix_jax
from dynpix_jax.cli.common import run_main
from dynpix_jax.cli.compilation_cache import use_compilation_cache
from dynpix_jax.cli.runs import (
    Trained,
    add_run_arguments,
    finished_stages,
    open_run,
    run_of,
    with_alternatives,
)
from dynpix_jax.cli.tables import budget_table, exit_table, print_table
from dynpix_jax.core.capabilities import Chooses, choices_of
from dynpix_jax.core.config import RunConfig
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.settings import EvaluationConfig
from dynpix_jax.core.source import Element, Source
from dynpix_jax.core.system import System
from dynpix_jax.evaluation.evaluator import Evaluation, evaluate_system
from dynpix_jax.evaluation.multitask import DELTA_M, Reference, read_reference
from dynpix_jax.evaluation.results import Measured, delta_scores
from dynpix_jax.evaluation.runner import choice_maps, earlier_predictions, exit_maps, ponder_maps
from dynpix_jax.evaluation.scorers import truth
from dynpix_jax.tasks import all_scores
from dynpix_jax.training.inputs import data_source
from dynpix_jax.visualization.example import Example, Prediction
from dynpix_jax.visualization.exits import Exit
from dynpix_jax.visualization.report import Budget, write_report
from dynpix_jax.visualization.task_pictures import task_pictures

_EXAMPLE = """\
example:
  python eval.py --workdir=runs/quickstart --set evaluation.every_stage=True
"""


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Evaluates a trained run: accuracy, MACs and milliseconds; eval.json and report.html.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_run_arguments(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where eval.json and report.html go (default: the workdir; --weights needs one)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run with `argv` (the process's own by default); returns 0."""
    args = make_parser().parse_args(argv)
    use_compilation_cache(args)
    config = run_of(args)
    settings = config.evaluation
    if args.weights is not None and args.out is None:
        raise UserError(f"--weights {args.weights}: give --out, the folder for eval.json and report.html")
    every_stage = settings.every_stage and args.weights is None  # a file has one network
    opened = open_runs(config, args.workdir, args.stage, args.weights, every_stage=every_stage)
    runs = with_alternatives(opened, settings.also)
    source = data_source(config, "eval")
    reference = read_reference(Path(settings.reference)) if settings.reference else None
    if reference is not None:
        count = min(settings.limit or len(source), len(source))
        reference.check(tuple(runs[0].system.tasks), data_name(config, source, count))
    evaluations = []
    implementation = config.execution.implementation
    for run in runs:
        with _progress(f"{config.name}, stage {name_of(run)}") as report:
            evaluations.append(
                evaluate_system(
                    run.system,
                    run.variables,
                    source,
                    settings,
                    implementation=implementation,
                    progress=report,
                )
            )

    facts = describe(config, opened, evaluations[0], source)
    drops = [drop(evaluation, facts["data"], reference) for evaluation in evaluations]
    rows = [budget(*parts) for parts in zip(runs, evaluations, drops, strict=True)]
    tasks = evaluations[0].tasks
    print_table(*budget_table((*all_scores(tasks), *([DELTA_M] if reference else [])), rows))
    for row in rows:
        if row.exits:
            print(f"\n{row.label}: exits")
            print_table(*exit_table(all_scores(tasks), row))
    if reference is not None:
        values = (DELTA_M.text(found["delta_m"]) for found in drops)
        facts["delta_m"] = f"{', '.join(values)} ({DELTA_M.meaning}: {settings.reference})"
    numbers = {
        "config": config.given,
        **facts,
        "rows": [row_numbers(*parts) for parts in zip(runs, evaluations, drops, strict=True)],
    }
    out = args.out or args.workdir
    write_json(out / "eval.json", numbers)
    labels = [row.label for row in rows]
    examples = list(make_examples(source, runs, labels, evaluations, settings))
    fields = {name: source.spec.fields[task.target] for name, task in tasks.items()}
    pictures = {
        name: task_pictures(task, fields[name].classes, fields[name].palette) for name, task in tasks.items()
    }
    write_report(out / "report.html", config.name, facts, tasks, rows, examples, pictures)
    print(f"numbers: {out / 'eval.json'}\npictures: {out / 'report.html'}")
    return 0


def open_runs(
    config: RunConfig, workdir: Path, stage: str | None, weights: Path | None = None, *, every_stage: bool
) -> list[Trained]:
    """Networks to evaluate: newest checkpoint, end of `stage`, `every_stage`'s end, or `weights`."""
    if stage is not None or not every_stage:
        return [open_run(config, workdir, stage, weights)]
    newest = open_run(config, workdir)
    runs = [open_run(config, workdir, name) for name in finished_stages(workdir)]
    # A stage that has not ended yet is evaluated at the newest checkpoint.
    return runs if runs and runs[-1].step == newest.step else [*runs, newest]


def drop(evaluation: Evaluation, data: str, reference: Reference | None) -> dict[str, float]:
    """The average drop against networks for a task each, under its score's name; {} without a reference."""
    if reference is None:
        return {}
    tasks = tuple(evaluation.tasks)
    scores = delta_scores(evaluation.tasks)
    result = Measured(evaluation.numbers, evaluation.macs, data, "", "", tasks, delta_scores=scores)
    return {DELTA_M.name: reference.delta_m(result)}


def budget(run: Trained, evaluation: Evaluation, drop: dict[str, float]) -> Budget:
    """The row of the table: the scores of the mode that was run first, the times of all."""
    return Budget(
        stage=name_of(run),
        rho=run.rho,
        density=evaluation.density,
        macs=evaluation.macs,
        macs_open=evaluation.macs_open,
        scores=evaluation.numbers | drop,
        milliseconds={
            mode: (scores.milliseconds, *scores.milliseconds_spread)
            for mode, scores in evaluation.modes.items()
        },
        curve=evaluation.curve,
        per_class=evaluation.per_class,
        exits=[(one.macs, one.numbers) for one in evaluation.exits],
    )


def name_of(run: Trained) -> str:
    """The name of the stage, and of its alternative."""
    return f"{run.stage}, {run.alternative}" if run.alternative else run.stage


def row_numbers(run: Trained, evaluation: Evaluation, drop: dict[str, float]) -> dict[str, Any]:
    """A row of eval.json."""
    other = {"alternative": run.alternative} if run.alternative else {}
    facts = {"stage": run.stage, **other, "step": run.step, "target_rho": run.rho}
    return {**facts, **evaluation.to_dict(), **drop}


def describe(
    config: RunConfig, runs: Sequence[Trained], evaluation: Evaluation, source: Source
) -> dict[str, str]:
    """The evaluated run, its data, the device and versions, for the report."""
    device = jax.devices()[0]
    packages = {name: importlib.metadata.version(name) for name in ("jax", "flax", "numpy")}
    versions = {"dynpix_jax": dynpix_jax.__version__, "python": platform.python_version(), **packages}
    return {
        "name": config.name,
        "data": data_name(config, source, evaluation.images),
        "checkpoints": ", ".join(run.origin for run in runs),
        "device": f"{device.platform}: {device.device_kind}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def data_name(config: RunConfig, source: Source, images: int) -> str:
    """The evaluated data, such as "scenes val, 40 images"."""
    return f"{source.spec.name} {config.data.eval.source.split}, {images} images"


def make_examples(
    source: Source,
    runs: Sequence[Trained],
    labels: Sequence[str],
    evaluations: Sequence[Evaluation],
    settings: EvaluationConfig,
) -> Iterator[Example]:
    """The pictures of the report: the first images, with the predictions of all rows."""
    tasks = evaluations[0].tasks
    for index, (name, _) in enumerate(evaluations[0].seen):
        photo = source[index]["image"]
        predictions = []
        for run, label, evaluation in zip(runs, labels, evaluations, strict=True):
            result = evaluation.seen[index][1][settings.modes[0]]
            outputs = result.outputs
            by_task = {
                task: np.asarray(decoder.decode(outputs.predictions[task])[0])
                for task, decoder in tasks.items()
            }
            predictions.append(
                Prediction(
                    label,
                    by_task,
                    ponder_maps(run.system, result, photo.shape[:2]),
                    {block: np.asarray(mask[0]) for block, mask in outputs.gates.items()},
                    earlier_predictions(run.system, result, photo.shape[:2]),
                    choice_maps(run.system, result, photo.shape[:2]),
                    [Exit(*one) for one in exit_maps(run.system, result, photo.shape[:2])],
                )
            )
        labelled = {name: truth(task, source, index) for name, task in tasks.items()}
        # Stages before the one that adds choices have none.
        system = next((run.system for run in runs if choices_of(run.system)), runs[0].system)
        yield Example(
            name, photo, labelled, predictions, choices_of(system), _true_choices(system, source[index])
        )


def _true_choices(system: System, element: Element) -> np.ndarray | None:
    if not isinstance(system, Chooses):
        return None
    found = system.true_choices({name: jnp.asarray(value)[None] for name, value in element.items()})
    return None if found is None else np.asarray(found[0])


def write_json(path: Path, numbers: dict[str, Any]) -> None:
    """Writes numbers as JSON. Raises UserError where no file can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


@contextmanager
def _progress(title: str) -> Iterator[Callable[[int, str], None]]:
    """A bar on stderr while images are run and scored; nothing where stderr is no terminal."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, name: bar.update(task, completed=done, description=f"{title}: {name}")


if __name__ == "__main__":
    run_main(main)
