"""Evaluates a trained run: accuracy beside MACs and milliseconds.

Prints a table, and leaves eval.json with all numbers, report.html with curves and pictures, and tensorboard/
with the scores. With evaluation.reference (a file of `dynpix reference`) a network for several tasks is
compared with a network for each: Δm.

example:
  dynpix eval --workdir=runs/quickstart --config.evaluation.every_stage=True
  dynpix eval --weights=FILE --config=FILE --out=DIR

Several processes (--distributed) share the images. In a clone, `python eval.py` is the same program.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress

from dynpix_jax.cli.common import add_distributed, main_of
from dynpix_jax.cli.compilation_cache import use_compilation_cache
from dynpix_jax.cli.evaluated import Evaluated, evaluated_data, print_rows, report, to_json
from dynpix_jax.cli.runs import add_run_arguments, run_of
from dynpix_jax.core import processes
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.text import a_path, write_text
from dynpix_jax.evaluation.evaluator import evaluate_system
from dynpix_jax.evaluation.multitask import read_reference
from dynpix_jax.serving.trained import open_runs

if TYPE_CHECKING:
    from dynpix_jax.training.writers import Writer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_run_arguments(parser)
    parser.add_argument(
        "--out",
        type=a_path,
        metavar="DIR",
        help="where eval.json and report.html go (default: the workdir; --weights needs one)",
    )
    add_distributed(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluates; returns 0."""
    # Here, since --help and `dynpix completion` do without the extra `train`; the writer is used after the
    # evaluation, and its lack would show only then.
    from dynpix_jax.training.inputs import data_source
    from dynpix_jax.training.writers import TensorBoardWriter

    use_compilation_cache(args)
    processes.start(args.distributed)
    processes.end_at_sigterm()
    config, out = run_of(args), args.out or args.workdir
    settings = config.evaluation
    if out is None:
        raise UserError(f"--weights {args.weights}: give --out, the folder for eval.json and report.html")
    runs = open_runs(config, args.workdir, args.stage, args.weights)
    source = data_source(config, "eval")
    data = evaluated_data(config, source)
    reference = read_reference(Path(settings.reference)) if settings.reference else None
    if reference is not None:
        reference.check(tuple(runs[0].system.tasks), str(data))
    rows = []
    for one in runs:
        with _progress(f"{config.name}, stage {one.title}") as progress:
            evaluation = evaluate_system(
                one.system,
                one.variables,
                source,
                settings,
                implementation=config.execution.implementation,
                progress=progress,
            )
        drop = None if reference is None else reference.delta_m(evaluation.measured(str(data)))
        rows.append(Evaluated(one, evaluation, drop))
    if not processes.is_first():
        return 0
    print_rows(rows)
    _log(TensorBoardWriter(out / "tensorboard"), rows)
    write_text(out / "eval.json", json.dumps(to_json(config, data, rows), indent=2) + "\n")
    write_text(out / "report.html", report(config, data, source, rows))
    print(f"numbers: {out / 'eval.json'}\npictures: {out / 'report.html'}")
    return 0


def _log(writer: Writer, rows: Sequence[Evaluated]) -> None:
    """Writes the scores, which TensorBoard shows beside those of training, and closes the writer."""
    for row in rows:
        kind = f"eval/{row.run.alternative}" if row.run.alternative else "eval"
        writer.write(row.run.step, kind, row.evaluation.logged | row.drops)
    writer.close()


@contextmanager
def _progress(title: str) -> Iterator[Callable[[int, str], None]]:
    """A bar on stderr while images are run and scored; nothing where stderr is no terminal."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, name: bar.update(task, completed=done, description=f"{title}: {name}")


main = main_of("eval", __doc__, add_arguments, run)
"""Runs the command with the given arguments (the process's own by default)."""
