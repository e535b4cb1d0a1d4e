"""`dynpix check-config`: what a config can have wrong, found before any data is read."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from dynpix_jax import models
from dynpix_jax.training.inputs import data_config
from dynpix_jax.training.optim import stage_optimizer
from dynpix_jax.training.settings import stage_model, training_config
from dynpix_jax.utils.configs import from_config, load_config
from dynpix_jax.utils.errors import UserError
from dynpix_jax.utils.overrides import apply_overrides
from dynpix_jax.utils.trees import named_leaves

_EXAMPLE = """\
example:
  dynpix check-config configs/pag/bsds500.py:rho=0.7

Builds the network of every stage (shapes only) and checks every key. No data is read.
"""


@dataclasses.dataclass(frozen=True)
class _Config:
    """The sections of a config."""

    name: str
    seed: int
    model: dict[str, Any]
    data: dict[str, Any]
    training: dict[str, Any]
    evaluation: dict[str, Any]


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
        UserError: whatever is wrong, with the key's full path.
    """
    config = apply_overrides(load_config(spec), overrides)
    top = from_config(_Config, config)
    training = training_config(config)
    for part in ("train", "eval"):
        data_config(config, part)
    stages = []
    for stage in training.stages:
        try:
            system = models.build(stage_model(config, stage))
        except UserError as error:
            raise UserError(f"stage '{stage.name}': {error}") from error
        # Sizes of the parameters do not depend on the image's; a small one keeps tracing quick.
        batch = {"image": np.zeros((1, 64, 64, 3), np.uint8)}
        variables = jax.eval_shape(partial(system.init, batch=batch), jax.random.key(0))
        # The stage's rules must cover every parameter, and each must match one.
        stage_optimizer(variables["params"], training, stage)
        count = sum(leaf.size for _, leaf in named_leaves(variables["params"]))
        stages.append({"name": stage.name, "steps": stage.steps, "parameters": count})
    return {
        "config": spec,
        "name": top.name,
        "seed": top.seed,
        "system": config.model.system,
        "batch_size": training.batch_size,
        "stages": stages,
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
