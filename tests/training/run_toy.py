"""Trains the toy system in a process of its own: `python -m tests.training.run_toy WORKDIR [options]`."""

from __future__ import annotations

import argparse
import os
import signal
import time
import warnings
from pathlib import Path

warnings.simplefilter("error")  # as in the tests

from dynpix_jax.cli.common import run_main  # noqa: E402
from dynpix_jax.training import checkpoints, loop, writers  # noqa: E402
from tests.training import toy  # noqa: E402


def wait_for_save(workdir: str, step: int) -> None:
    """Until the last checkpoint before ``step``, which another thread writes, is complete."""
    due, found = (step - 1) // 2 * 2, checkpoints.Checkpoints(Path(workdir) / "checkpoints")
    while due not in found.steps():
        time.sleep(0.01)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir")
    parser.add_argument("--kill-at", type=int, help="die when this update is dispatched")
    parser.add_argument(
        "--kill-in-save", type=int, help="die between orbax's part of this save and the manifest"
    )
    args = parser.parse_args()

    class Killer(writers.ConsoleWriter):
        def tick(self, step: int, stage: str) -> None:
            if step == args.kill_at:
                wait_for_save(args.workdir, step)
                os.kill(os.getpid(), signal.SIGKILL)

    loop.ConsoleWriter = Killer
    write_json = checkpoints._write_json

    def dying(file, value):
        if value["step"] == args.kill_in_save:
            os.kill(os.getpid(), signal.SIGKILL)
        write_json(file, value)

    checkpoints._write_json = dying
    toy.train_evaluated(Path(args.workdir))
    return 0


if __name__ == "__main__":
    run_main(main)
