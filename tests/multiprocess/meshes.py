"""Trains tiny networks on several meshes: `python -m tests.multiprocess.meshes OUT SYSTEM`.

Process 0 writes losses and final parameters of each run to OUT, as npz.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

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
FIELDS = {"pag": ("boundaries",), "anytime": ("segmentation",), "astmt": ("boundaries", "depth")}
"""System -> labels. Its norms are frozen, are of batches, and are of turns."""
PAG = dict(
    system="pag",
    task="boundaries",
    backbone=dict(depth=26, width=8, output_stride=16),
    head_features=4,
    drop_blocks=4,
    gate=dict(kind="pixel", scope="residual", rho=0.5),
)


class Record(Writer):
    """Keeps the losses."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def write(self, step: int, kind: str, values: Any) -> None:
        self.losses.append(values["loss"])


def run_of(system: str, sharding: str, data: int, model: int) -> RunConfig:
    """Two steps of eight scenes."""
    models = {"pag": PAG, "anytime": {**ANYTIME, "task_options": dict(classes=8)}, "astmt": astmt.section()}
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
                "checkpoint_every": 0,
                "mesh": mesh,
                "sharding": sharding,
                "stages": ({"name": "one", "steps": 2, "learning_rate": 1e-4},),
            },
        }
    )


def layouts(devices: int) -> list[tuple[str, int, int]]:
    """Sharding, data and model axis."""
    if devices == 1:
        return [("replicated", 1, 1)]
    half = devices // 2
    return [("fsdp", devices, 1), ("fsdp", half, 2), ("rules", half, 2), ("rules", 1, devices)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("system", choices=FIELDS)
    add_distributed(parser)
    args = parser.parse_args()
    processes.start(args.distributed)
    found: dict[str, np.ndarray] = {}
    for layout in layouts(jax.device_count()):
        run, record = run_of(args.system, *layout), Record()
        name = "/".join(map(str, layout))
        workdir = args.out.parent / f"{args.out.stem}-{name.replace('/', '-')}"
        state = train(run, workdir, batches=train_loader(run), writers=[record]).state
        found[f"{name}/loss"] = np.array(record.losses)
        whole = processes.on_device(state.variables, jax.local_devices()[0])
        found |= {f"{name}:{path}": np.asarray(leaf) for path, leaf in named_leaves(whole)}
    if processes.is_first():
        with tempfile.NamedTemporaryFile(dir=args.out.parent, delete=False) as file:
            np.savez(file, **found)
        Path(file.name).rename(args.out)


if __name__ == "__main__":
    run_main(main)
