"""Trains a config in float32 and in bfloat16, with the same start and batches, and compares the losses.

Both runs stay in the workdir and can be evaluated; a run that is there continues.

example:
  dynpix bench precision --config=configs/pag/scenes.py --workdir runs/precision/pag
  python eval.py --workdir runs/precision/pag/bfloat16
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynpix_jax.bench.arguments import check_not_set
from dynpix_jax.core.config import RunConfig
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.text import a_path, aligned
from dynpix_jax.run_config import read_run

DTYPES = ("float32", "bfloat16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the program."""
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]", help="config with its argument")
    parser.add_argument("--workdir", required=True, type=a_path, metavar="DIR", help="a folder for both runs")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="change config values"
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")


def run(args: argparse.Namespace) -> int:
    """Trains and prints; gives the exit status."""
    # The other programs need no extra `train`.
    from dynpix_jax.training.inputs import train_loader
    from dynpix_jax.training.loop import train

    check_not_set(args.set, "model.compute_dtype", f"this program trains with each of {', '.join(DTYPES)}")
    runs = {dtype: _with_dtype(args, dtype) for dtype in DTYPES}
    for dtype, config in runs.items():
        train(config, args.workdir / dtype, batches=train_loader(config))
    rows = compared(*(_train_lines(args.workdir / dtype) for dtype in DTYPES))
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    cells = [
        (row["stage"], row["steps"], *(f"{row[dtype]:.5f}" for dtype in DTYPES), f"{row['difference']:+.2%}")
        for row in rows
    ]
    print(aligned(("stage", "steps", *DTYPES, "difference"), cells))
    return 0


def _with_dtype(args: argparse.Namespace, dtype: str) -> RunConfig:
    """The config, computing in ``dtype``; a UserError if one of its stages says otherwise."""
    config = read_run(args.config, [*args.set, f"model.compute_dtype={dtype}"])
    for index, stage in enumerate(config.stages):
        found = getattr(stage.model, "compute_dtype", dtype)
        if found != dtype:
            raise UserError(
                f"config.training.stages[{index}].model.compute_dtype: stage '{stage.name}' computes in "
                f"{found} in both runs; leave it out"
            )
    return config


def compared(
    exact: Sequence[Mapping[str, Any]], rounded: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Mean losses of each stage and of its last quarter, from the lines of two runs."""
    rows = []
    for stage in dict.fromkeys(line["stage"] for line in exact):
        lines = [[line for line in run if line["stage"] == stage] for run in (exact, rounded)]
        count = len(lines[0])
        for first in dict.fromkeys((0, count - -(-count // 4))):
            means = [sum(line["loss"] for line in run[first:]) / (count - first) for run in lines]
            rows.append(
                {
                    "stage": stage,
                    "steps": "all" if first == 0 else f"after {lines[0][first - 1]['step']}",
                    **dict(zip(DTYPES, means, strict=True)),
                    "difference": means[1] / means[0] - 1,
                }
            )
    return rows


def _train_lines(workdir: Path) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "train"]
