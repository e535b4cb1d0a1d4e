"""`dynpix check-config`: finds mistakes of a config before any data is read."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from dynpix_jax.run_config import read_run
from dynpix_jax.training.checks import check_stages

_EXAMPLE = """\
example:
  dynpix check-config configs/pag/bsds500.py:variant=gated,rho=0.7

Builds the network of every stage (shapes only) and checks every key. No data is read.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the `dynpix` parser."""
    parser = subparsers.add_parser(
        "check-config",
        help="read a config strictly and tell what it trains",
        description="Reads a config strictly and tells what it trains.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "config", metavar="CONFIG", help="path/to/config.py or path/to/config.py:name=value,..."
    )
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="change config values"
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def check(spec: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Summary of the config `spec` after `overrides`, with the steps and parameters of each stage.

    Raises:
        UserError: Whatever is wrong, with the key's full path.
    """
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
