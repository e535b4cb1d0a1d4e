"""Times the loader of a config's training data: its start, its speed, and what an image costs a processor.

example:
  dynpix bench loader --config=configs/pag/camvid.py:budget=gpu --workers 0 1 2 4

"start" is the time until the first batch is there, "CPU ms" the processor time an image of this process and
of the loader's, whose start is part of it. Images a second are those of all workers on this machine, with
nothing but loading to do.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass

from dynpix_jax.bench.arguments import check_counts, check_not_set
from dynpix_jax.core.config import RunConfig
from dynpix_jax.core.text import aligned
from dynpix_jax.run_config import read_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the program."""
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]", help="config with its argument")
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2, 4], metavar="N")
    parser.add_argument("--batches", type=int, default=50, metavar="N", help="that are timed")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="change config values"
    )


def run(args: argparse.Namespace) -> int:
    """Prints a row for each number of workers; returns 0."""
    check_counts(args, "batches")
    check_not_set(args.set, "training.workers", "this program sets it; give --workers instead")
    rows = []
    for workers in args.workers:
        found = timed(read_run(args.config, [*args.set, f"training.workers={workers}"]), args.batches)
        rows.append(
            [
                str(workers),
                f"{found.start:.1f}",
                f"{found.images / found.seconds:.1f}",
                f"{1e3 * found.cpu / found.images:.1f}",
            ]
        )
    print(aligned(("workers", "start, s", "images/s", "CPU ms"), rows))
    return 0


@dataclass(frozen=True)
class Timed:
    """Seconds until the first batch; images after it, their seconds and processor seconds."""

    start: float
    images: int
    seconds: float
    cpu: float


def timed(config: RunConfig, batches: int) -> Timed:
    """Draws batches of a config's training data."""
    from dynpix_jax.training.inputs import train_loader  # the other programs need no extra `train`

    loader, images = train_loader(config), 0
    begun, before = time.perf_counter(), _cpu()
    iterator = loader.start()
    next(iterator)
    first, cpu = time.perf_counter(), _cpu()
    for _ in range(batches):
        images += len(next(iterator)["image"])
    last = time.perf_counter()
    iterator.close()  # the loader's processes end, and their time is counted
    used = _cpu() - (before if config.training.workers else cpu)
    return Timed(first - begun, images, last - first, used)


def _cpu() -> float:
    """Processor seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])
