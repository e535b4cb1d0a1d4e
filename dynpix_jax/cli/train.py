"""Trains the system of a config, from where its workdir stands.

The same command continues a run that was stopped. The workdir gets config.json, metrics.jsonl, checkpoints/,
tensorboard/.

example:
  dynpix train --config=pag/bsds500.py:variant=gated,rho=0.7 --workdir=runs/gated \\
      --config.training.batch_size=4

In a clone, `python train.py` is the same program.
"""

from __future__ import annotations

import argparse
from functools import partial

import jax

from dynpix_jax.cli.common import CONFIG_HELP, add_distributed, add_overrides, main_of
from dynpix_jax.cli.compilation_cache import add_cache_argument, use_compilation_cache
from dynpix_jax.core import processes
from dynpix_jax.core.text import a_path
from dynpix_jax.evaluation.evaluator import evaluate
from dynpix_jax.run_config import read_run
from dynpix_jax.training.checks import check_stages
from dynpix_jax.training.watching import parse_profile
from dynpix_jax.visualization.comparison import comparison


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]", help=CONFIG_HELP)
    parser.add_argument("--workdir", required=True, type=a_path, metavar="DIR", help="where the run is kept")
    add_overrides(parser)
    parser.add_argument(
        "--accept-changed-data", action="store_true", help="continue a run on other data than it began with"
    )
    add_cache_argument(parser)
    add_distributed(parser)
    parser.add_argument(
        "--profile",
        metavar="START:STEPS",
        help="write a trace of so many steps after step START to profile/ in the workdir, for XProf",
    )


def run(args: argparse.Namespace) -> int:
    """Trains; returns 0 when trained or stopped by SIGTERM."""
    # Here, since --help and `dynpix completion` do without the extra `train`.
    from dynpix_jax.training import wandb_writer
    from dynpix_jax.training.inputs import data_source, train_loader, train_record
    from dynpix_jax.training.loop import train

    use_compilation_cache(args)
    profile = None if args.profile is None else parse_profile(args.profile)
    processes.start(args.distributed)

    # Check all stages first: a mistake in a later one would show only after hours.
    settings = read_run(args.config, args.set)
    if settings.training.wandb:
        wandb_writer.check_installed()
    loader, evaluate_fn = train_loader(settings), None
    if settings.training.eval_every:
        evaluate_fn = partial(
            evaluate,
            source=data_source(settings, "eval"),
            settings=settings.evaluation,
            draw=comparison,
            implementation=settings.execution.implementation,
        )
    check_stages(settings, loader.spec)
    if processes.is_first():
        print(
            f"{settings.name}: {' -> '.join(stage.name for stage in settings.stages)},"
            f" {settings.training.total_steps} steps of {settings.training.batch_size} images,"
            f" seed {settings.seed}, on {jax.device_count()} x {jax.devices()[0].device_kind},"
            f" workdir {args.workdir}"
        )
    data = train_record(settings, accept_changed=args.accept_changed_data)
    train(settings, args.workdir, batches=loader, evaluate_fn=evaluate_fn, data=data, profile=profile)
    return 0


main = main_of("train", __doc__, add_arguments, run)
"""Runs the command with the given arguments (the process's own by default)."""
