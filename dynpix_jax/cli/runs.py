"""The arguments that name a trained network, for `dynpix eval`, `predict` and others."""

from __future__ import annotations

import argparse
from typing import get_args

from dynpix_jax.cli.common import add_overrides
from dynpix_jax.cli.compilation_cache import add_cache_argument
from dynpix_jax.core.config import RunConfig
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.settings import Implementation
from dynpix_jax.core.text import a_path
from dynpix_jax.run_config import read_run
from dynpix_jax.serving.network_file import find_network, is_network, network_run, network_stage
from dynpix_jax.serving.trained import saved_run


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that name a trained network; see `run_of`."""
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--workdir", type=a_path, metavar="DIR", help="where it was trained")
    where.add_argument(
        "--model",
        metavar="NAME",
        help="a network that ships (dynpix models), or a file that holds its config (dynpix export)",
    )
    where.add_argument(
        "--weights",
        type=a_path,
        metavar="FILE",
        help="in place of a workdir: weights of the network of --config (see dynpix import-weights --config)",
    )
    parser.add_argument(
        "--config", metavar="FILE[:ARG]", help="config of the training (default: the one that DIR holds)"
    )
    add_overrides(parser)
    parser.add_argument(
        "--implementation",
        choices=get_args(Implementation),
        help="of sparse blocks (execution.implementation; default: by platform, shapes and density)",
    )
    parser.add_argument(
        "--stage",
        metavar="NAME[:STEP]",
        help="what this training stage ended with, or its checkpoint of this step (default: the newest)",
    )
    add_cache_argument(parser)


def run_of(args: argparse.Namespace) -> RunConfig:
    """The settings of the run that arguments name, from its config file or, without one, its checkpoints.

    What --model names is put in the place of --workdir or --weights.

    Raises:
        UserError: A wrong config; no config and no checkpoint.
    """
    overrides = list(args.set)
    if args.model is not None:
        path = find_network(args.model)
        args.workdir, args.weights = (path, None) if path.is_dir() else (None, path)
    if args.implementation is not None:
        overrides.append(f"execution.implementation={args.implementation}")
    if args.config is not None:
        return read_run(args.config, overrides)
    if args.weights is not None:
        if args.model is None and not is_network(args.weights):
            raise UserError(f"--weights {args.weights}: give the --config of its network, too")
        args.stage = args.stage or network_stage(args.weights)
        return network_run(args.weights, overrides)
    return saved_run(args.workdir, overrides)
