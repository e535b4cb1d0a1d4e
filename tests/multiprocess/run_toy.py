"""Trains the toy in a job: `python -m tests.multiprocess.run_toy WORKDIR --distributed=... [OPTIONS]`."""

from __future__ import annotations

import argparse
import os
import signal
import time
from typing import Any

import jax

from dynpix_jax.cli.common import add_distributed, run_main
from dynpix_jax.core import processes
from dynpix_jax.core.errors import UserError
from dynpix_jax.training import checkpoints
from dynpix_jax.training.loop import train
from dynpix_jax.training.sharding import local_rows, make_mesh
from dynpix_jax.training.writers import Writer
from tests.training import toy
from tests.training.run_toy import wait_for_save


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir")
    add_distributed(parser)
    parser.add_argument("--signal", default="SIGKILL")
    parser.add_argument("--signal-at", type=int, help="send ourselves --signal at this step")
    parser.add_argument("--in-save", type=int, help="or in this save")
    parser.add_argument("--in-evaluation", action="store_true", help="or while others evaluate")
    parser.add_argument("--unreadable-at", type=int, help="step whose batch cannot be read")
    parser.add_argument("--bug-at", type=int, help="step whose batch meets a bug")
    parser.add_argument("--mistake", action="store_true")
    parser.add_argument("--patience", type=float, help="seconds after which another process counts as dead")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--slowly", action="store_true", help="a step takes a tenth of a second")
    args = parser.parse_args()
    processes.DEAD_SECONDS = args.patience or processes.DEAD_SECONDS
    processes.start(args.distributed)
    if args.mistake:
        raise UserError("no such data root")

    def die() -> None:
        os.kill(os.getpid(), signal.Signals[args.signal])

    class Watched(Writer):
        def tick(self, step: int, stage: str) -> None:
            time.sleep(0.1 * args.slowly)
            if step == args.signal_at:
                wait_for_save(args.workdir, step)
                die()

    run = toy.run({"scale": args.scale}, eval_every=4)
    rows = list(local_rows(make_mesh(run.training.mesh, 4), 4))

    def part(step: int, batch: Any) -> Any:
        if step == args.unreadable_at:
            raise UserError("corrupt image 3.jpg")
        if step == args.bug_at:
            raise RuntimeError("a bug")
        return {name: value[rows] for name, value in batch.items()}

    def evaluate(system: Any, variables: Any) -> dict[str, float]:
        if args.in_evaluation:
            wait_for_save(args.workdir, 5)
            die()
        found = jax.jit(lambda tree: tree["params"]["head"]["bias"][0])(variables)
        return {"bias": float(found)}

    save = checkpoints.Checkpoints.save

    def dying(self: Any, state: Any, checkpoint: Any, *, wait: bool) -> None:
        if checkpoint.step == args.in_save:
            self.wait()
            die()
        save(self, state, checkpoint, wait=wait)

    checkpoints.Checkpoints.save = dying
    batches = toy.Batches(toy.batches(4).data.map_with_index(part))
    result = train(run, args.workdir, batches=batches, evaluate_fn=evaluate, writers=[Watched()])
    print("finished" if result.finished else "stopped", int(result.state.step))


if __name__ == "__main__":
    run_main(main)
