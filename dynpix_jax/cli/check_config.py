"""Reads a config strictly and tells what it trains.

example:
  dynpix check-config configs/pag/bsds500.py:variant=gated,rho=0.7

Builds the network of every stage (shapes only) and checks every key. No data is read.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from dynpix_jax.cli.common import add_overrides
from dynpix_jax.run_config import read_run
from dynpix_jax.training.checks import check_stages


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "config", metavar="CONFIG", help="path/to/config.py or path/to/config.py:name=value,..."
    )
    add_overrides(parser)
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def check(spec: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Summary of the config `spec` after `overrides`, with the steps and parameters of each stage."""
    run = read_run(spec, overrides)
    stages = check_stages(run)
    return {
        "config": spec,
        "name": run.name,
        "seed": run.seed,
        "system": run.stages[-1].model.system,
        "batch_size": run.training.batch_size,
        "stages": [dataclasses.asdict(stage) for stage in stages],
    }


def run(args: argparse.Namespace) -> int:
    """Prints the summary; returns 0."""
    summary = check(args.config, args.set)
    if args.json:
        print(json.dumps(summary, indent=2))
        return 0
    print(f"{args.config}: ok")
    print("  {name}: system {system}, seed {seed}, batch size {batch_size}".format(**summary))
    for stage in summary["stages"]:
        print(f"  stage {stage['name']}: {stage['steps']:,} steps, {stage['parameters']:,} parameters")
    return 0
