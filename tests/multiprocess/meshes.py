"""Trains a tiny network, a step on each of several meshes: `python -m tests.multiprocess.meshes OUT SYSTEM`.

Process 0 writes the losses and the final variables to OUT, as npz.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from dynpix_jax.cli.common import add_distributed, run_main
from dynpix_jax.core import processes
from dynpix_jax.core.config import RunConfig
from dynpix_jax.core.trees import named_leaves
from dynpix_jax.run_config import read_run
from dynpix_jax.training.inputs import train_loader
from dynpix_jax.training.loop import train
from dynpix_jax.training.writers import Writer
from tests.papers.astmt import tiny as astmt
from tests.tiny_systems import ANYTIME

BATCH = 8
STEPS = 4
FIELDS = {"pag": ("boundaries",), "anytime": ("segmentation",), "astmt": ("boundaries", "depth")}
"""System -> labels. Its norms are frozen, are of batches, and are of turns."""
PAG = dict(
    system="pag",
    task="boundaries",
    backbone=dict(depth=26, width=8, output_stride=16),
    head_features=4,
    drop_blocks=2,
    gate=dict(kind="pixel", scope="residual", rho=0.5),
)

ASTMT = dict(
    system="astmt",
    tasks=FIELDS["astmt"],
    backbone=dict(depth=26, width=4, output_stride=16, stride_in_1x1=False, frozen_norm=False),
    encoder=dict(norm=True),
    decoder=dict(kind="uber"),
)


class Enough(Exception):
    """A mesh has done its step."""


class Record(Writer):
    """Keeps the losses, and ends training before a step."""

    def __init__(self, end: int) -> None:
        self.losses: dict[int, float] = {}
        self._end = end

    def write(self, step: int, kind: str, values: Any) -> None:
        self.losses[step] = values["loss"]

    def tick(self, step: int, stage: str) -> None:
        if step == self._end:
            raise Enough


def run_of(system: str, sharding: str, data: int, model: int) -> RunConfig:
    """Steps of eight scenes."""
    models = {"pag": PAG, "anytime": {**ANYTIME, "task_options": dict(classes=8)}, "astmt": ASTMT}
    source = {"name": "scenes", "size": (32, 32), "length": 16, "fields": FIELDS[system], "split": "train"}
    mesh: dict[str, Any] = {"data": data, "model": model}
    if sharding == "rules":
        mesh["rules"] = ((r"backbone/.*conv[12](/conv/conv)?/kernel", 3),)
    return read_run(
        {
            "name": "tiny",
            "model": models[system],
            "data": {"train": {"source": source}, "eval": {"source": source}},
            "training": {
                "batch_size": BATCH,
                "optimizer": "sgd",
                "log_every": 1,
                "checkpoint_every": 1,
                "mesh": mesh,
                "sharding": sharding,
                "stages": ({"name": "one", "steps": STEPS, "learning_rate": 1e-4},),
            },
        }
    )


def layouts(system: str, devices: int) -> list[tuple[str, int, int]]:
    """Sharding, data and model axis, of each step; the last one is for the steps that are left."""
    if devices == 8:
        return [("fsdp", 4, 2), ("rules", 1, 8)]
    more = [("rules", 2, 2)] if system == "pag" else []
    return [("fsdp", 4, 1), ("fsdp", 2, 2), *more, ("rules", 1, 4)]


def trained(system: str, meshes: Sequence[tuple[str, int, int]], workdir: Path) -> dict[str, np.ndarray]:
    """Losses and final variables of a run whose steps go on on one mesh after the other."""
    losses: dict[int, float] = {}
    with pytest.MonkeyPatch.context() as patch:
        astmt.small_blocks(patch)
        for number, mesh in enumerate(meshes, 1):
            last = number == len(meshes)
            run, record = run_of(system, *mesh), Record(STEPS + 1 if last else number + 1)
            with contextlib.nullcontext() if last else contextlib.suppress(Enough):
                state = train(run, workdir, batches=train_loader(run), writers=[record]).state
            losses |= record.losses
    whole = processes.on_device(state.variables, jax.local_devices()[0])
    found = {path: np.asarray(leaf) for path, leaf in named_leaves(whole)}
    return {"loss": np.array([losses[step] for step in sorted(losses)]), **found}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("system", choices=FIELDS)
    add_distributed(parser)
    args = parser.parse_args()
    processes.start(args.distributed)
    found = trained(args.system, layouts(args.system, jax.device_count()), args.out.with_suffix(""))
    if processes.is_first():
        np.savez(args.out, **found)


if __name__ == "__main__":
    run_main(main)
