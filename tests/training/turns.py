"""The toy with a turn for each of two targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np

from dynpix_jax.run_config import read_run
from dynpix_jax.training.loop import train
from dynpix_jax.training.writers import Writer
from tests.training import toy

TURNS = ("bright", "dark")


class TurnsNet(nn.Module):
    """A shared convolution and norm; a norm and a head for each turn."""

    @nn.compact
    def __call__(self, images: jax.Array, turns: tuple[str, ...], train: bool) -> dict[str, jax.Array]:
        x = nn.Conv(4, (3, 3), name="stem")(images.astype(jnp.float32) / 255.0)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="bn")(x))
        return {
            turn: nn.Conv(1, (1, 1), name=f"head_{turn}")(
                nn.BatchNorm(use_running_average=not train, momentum=0.9, name=f"bn_{turn}")(x)
            )[..., 0]
            for turn in turns
        }


@dataclasses.dataclass(frozen=True)
class TurnsConfig:
    system: str


@dataclasses.dataclass(frozen=True)
class TurnsSystem:
    """The part of `System` that the loop calls."""

    Config = TurnsConfig
    config: TurnsConfig
    tasks: ClassVar[Mapping[str, Any]] = {}
    turns = TURNS

    def init(self, key: jax.Array, batch: Any) -> Any:
        return TurnsNet().init({"params": key}, batch["image"], TURNS, False)

    def adapt(self, previous: Any, fresh: Any) -> Any:
        return previous

    def controls(self, step: Any, steps: int) -> dict[str, jax.Array]:
        return {}

    def uses(self, turn: str, path: str) -> bool:
        module = path.split("/")[0]
        return "_" not in module or module.endswith(turn)

    def labelled(self, batch: Any, turn: str) -> jax.Array:
        return (batch[turn] >= 0).any()

    def turn_loss(self, variables: Any, batch: Any, turn: str, *, rngs: Any, controls: Any) -> Any:
        out, updates = TurnsNet().apply(variables, batch["image"], (turn,), True, mutable=["batch_stats"])
        loss = ((out[turn] - batch[turn]) ** 2).mean()
        return loss, toy.ToyAux({turn: loss}, updates)


def batches(batch_size: int) -> toy.Batches:
    """The toy's images with two targets; every third batch has no label for the second."""

    def label(index: int, batch: Any) -> Any:
        bright = batch.pop("boundaries")
        return batch | {"bright": bright, "dark": np.full_like(bright, -1) if index % 3 == 1 else 1 - bright}

    data = grain.MapDataset.source(toy.ToyData()).seed(0).shuffle().repeat().batch(batch_size)
    return toy.Batches(data.map_with_index(label))


class Record(Writer):
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def write(self, step: int, kind: str, values: Any) -> None:
        self.lines.append(dict(values))


def run(workdir: str, optimizer: str, **training: Any) -> list[dict[str, Any]]:
    """A line for each of six steps."""
    stage = {"name": "turns", "steps": 6, "learning_rate": 0.05}
    common = {"batch_size": 8, "log_every": 1, "checkpoint_every": 3, "grad_clip": 1.0}
    config = toy.config(**common, stages=(stage,), optimizer=optimizer, **training)
    config["model"] = {"system": "tests.training.turns:TurnsSystem"}
    record = Record()
    train(read_run(config), workdir, batches=batches(8), writers=[record])
    return record.lines
