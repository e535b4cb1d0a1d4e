"""Trains the system of a config, from where its workdir stands.

The same command continues a run that was stopped. The workdir gets config.json, metrics.jsonl, checkpoints/,
tensorboard/.

example:
  python train.py --config=configs/pag/bsds500.py:variant=gated,rho=0.7 --workdir=runs/gated \\
      --set training.batch_size=4
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax

from dynpix_jax.cli.common import add_overrides, help_of, run_main
from dynpix_jax.cli.compilation_cache import add_cache_argument, use_compilation_cache
from dynpix_jax.core.errors import UserError
from dynpix_jax.evaluation.evaluator import evaluate
from dynpix_jax.run_config import read_run
from dynpix_jax.training.checks import check_stages
from dynpix_jax.training.inputs import data_source, train_loader
from dynpix_jax.training.loop import train
from dynpix_jax.visualization.comparison import comparison


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(**help_of(__doc__))
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]", help="config file with its argument")
    parser.add_argument("--workdir", required=True, type=Path, metavar="DIR", help="where the run is kept")
    add_overrides(parser)
    add_cache_argument(parser)
    several = parser.add_argument_group(
        "several processes", "give all three; the workdir must be on a shared disk"
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    several.add_argument("--num_processes", type=int, metavar="N", help="how many there are")
    several.add_argument("--process_id", type=int, metavar="I", help="which one this is, from 0")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run with `argv` (the process's own by default); 0 when trained or stopped by SIGTERM."""
    parser = make_parser()
    args = parser.parse_args(argv)
    use_compilation_cache(args)
    flags = (args.coordinator, args.num_processes, args.process_id)
    if any(flag is not None for flag in flags):
        if None in flags:
            parser.error("--coordinator, --num_processes and --process_id go together")
        try:
            jax.distributed.initialize(*flags)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"--coordinator {args.coordinator}: {error}") from error

    # Check all stages first: a mistake in a later one would show only after hours.
    run = read_run(args.config, args.set)
    loader, evaluate_fn = train_loader(run), None
    if run.training.eval_every:
        evaluate_fn = partial(
            evaluate,
            source=data_source(run, "eval"),
            settings=run.evaluation,
            draw=comparison,
            implementation=run.execution.implementation,
        )
    check_stages(run, loader.spec)
    if jax.process_index() == 0:
        print(
            f"{run.name}: {' -> '.join(stage.name for stage in run.stages)},"
            f" {run.training.total_steps} steps of {run.training.batch_size} images, seed {run.seed},"
            f" on {jax.device_count()} x {jax.devices()[0].device_kind}, workdir {args.workdir}"
        )
    train(run, args.workdir, batches=loader, evaluate_fn=evaluate_fn)
    return 0


if __name__ == "__main__":
    run_main(main)
