"""The smallest gated network on scenes, as `train.py` trains it: `python -m tests.training.gated WORKDIR`."""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    warnings.simplefilter("error")  # as in the tests

from dynpix_jax.run_config import read_run
from dynpix_jax.training import writers
from dynpix_jax.training.inputs import train_loader
from dynpix_jax.training.loop import Result, train
from tests.tiny import SHORT_CONFIG

BATCH_SIZE = 8
STEPS = (1, 5)
"""Of the base and of the gated stage."""


def train_gated(workdir: Path, watch: Sequence[writers.Writer] = ()) -> Result:
    """A step without gates and five with them; a line of metrics every step, a checkpoint every other."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tiny.py"
        augmented = SHORT_CONFIG.replace('"split": "train"}', '"split": "train"}, "augment": {"flip": True}')
        file.write_text(augmented)
        run = read_run(
            file,
            [
                "data.train.source.size=(32, 48)",
                f"training.batch_size={BATCH_SIZE}",
                "model.drop_blocks=6",
                "training.checkpoint_every=2",
                "training.log_every=1",
                *(f"training.stages[{stage}].steps={steps}" for stage, steps in enumerate(STEPS)),
            ],
        )
    lines = writers.JsonlWriter(workdir / "metrics.jsonl")
    return train(run, workdir, batches=train_loader(run), writers=[lines, *watch])


class Killer(writers.Writer):
    """Ends this process the hard way when update `step` is dispatched."""

    def __init__(self, step: int) -> None:
        self._step = step

    def tick(self, step: int, stage: str) -> None:
        if step == self._step:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--kill-at", type=int, default=-1)
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)
    train_gated(args.workdir, [Killer(args.kill_at)])
