"""Writes the file that eval.py compares a multi-task run with (its Δm).

example:
  dynpix reference runs/depth runs/normals runs/parts --out runs/single.json
  python eval.py --config=... --workdir=... --set evaluation.reference=runs/single.json

Runs of one task (seeds) are averaged. What counts is the last row of each eval.json.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from dynpix_jax.cli.tables import print_table
from dynpix_jax.core.text import a_path
from dynpix_jax.evaluation.multitask import make_reference, write_reference


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "runs", nargs="+", type=a_path, metavar="RUN", help="workdir of an evaluated single-task run"
    )
    parser.add_argument("--out", required=True, type=a_path, metavar="FILE", help="JSON file to write")
    parser.add_argument("--json", action="store_true", help="print the reference as JSON")


def run(args: argparse.Namespace) -> int:
    """Writes the file and prints it; returns 0."""
    reference = make_reference(args.runs)
    write_reference(args.out, reference)
    if args.json:
        print(json.dumps({"out": str(args.out), **asdict(reference)}, indent=2))
        return 0
    cells = [
        [task, entry.score, f"{entry.value:.4f}", str(len(entry.runs))]
        for task, entry in reference.tasks.items()
    ]
    print_table(["task", "score", "value", "runs"], cells)
    print(f"{reference.data}: {args.out}")
    return 0
