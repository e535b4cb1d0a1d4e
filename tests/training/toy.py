"""A tiny system and its data: two convolutions that learn a threshold. All that the loop touches."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np

from dynpix_jax.core.capabilities import GatedLayer
from dynpix_jax.core.config import RunConfig
from dynpix_jax.core.errors import UserError
from dynpix_jax.run_config import read_run
from dynpix_jax.training import loop

SIZE = (8, 10)


class ToyAux(NamedTuple):
    terms: dict[str, jax.Array]
    updates: dict[str, Any]


class ToyNet(nn.Module):
    """conv -> batch norm -> dropout -> conv (-> second conv, when `deep`)."""

    deep: bool

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = images.astype(jnp.float32) / 255.0
        x = nn.Conv(4, (3, 3), name="stem")(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="bn")(x)
        x = nn.Dropout(0.2, deterministic=not train)(nn.relu(x))
        if self.deep:
            x = x + nn.Conv(4, (1, 1), name="extra")(x)
        return nn.Conv(1, (1, 1), name="head")(x)[..., 0]


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    system: str
    deep: bool = False
    scale: float = 1.0
    poison: float = -1.0

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ValueError(f"scale: {self.scale}; expected a positive number")

    def unread(self) -> dict[str, str]:
        return {"poison": "a shallow network is poisoned by hand"} if self.deep else {}


class ToySystem:
    """The part of `System` that the loop calls."""

    Config = ToyConfig
    tasks: Mapping[str, Any] = {}
    gated: Mapping[str, GatedLayer] = {"stem": GatedLayer(("stem",))}

    def executed_shares(self, outputs: Any) -> dict[str, jax.Array]:
        return {}

    def check(self, variables: Any) -> None:
        pass

    def __init__(self, config: ToyConfig) -> None:
        if config.scale > 100:
            raise UserError(f"config.model.scale: {config.scale}; expected less")
        self.deep, self.scale, self.poison = config.deep, config.scale, config.poison

    @property
    def net(self) -> ToyNet:
        return ToyNet(self.deep)

    def init(self, key: jax.Array, batch: Any) -> dict[str, Any]:
        return self.net.init({"params": key}, batch["image"], False)

    def adapt(self, previous: Any, fresh: Any) -> Any:
        return {
            collection: {
                **leaves,
                **{name: previous[collection][name] for name in leaves if name in previous[collection]},
            }
            for collection, leaves in fresh.items()
        }

    def controls(self, stage_step: jax.Array, stage_steps: int) -> dict[str, jax.Array]:
        return {"temperature": 1.0 - 0.9 * stage_step / stage_steps, "progress": stage_step}

    def loss(self, variables: Any, batch: Any, *, rngs: Any, controls: Any) -> tuple[jax.Array, ToyAux]:
        rngs = {name: rngs[name] for name in ("dropout",)}
        logits, updates = self.net.apply(variables, batch["image"], True, rngs=rngs, mutable=["batch_stats"])
        error = (logits - batch["boundaries"]) ** 2
        weight = batch["valid"][:, None, None].astype(jnp.float32)
        fit = self.scale * jnp.sum(error * weight) / jnp.maximum(jnp.sum(weight) * error[0].size, 1.0)
        # `poison` makes the loss NaN from that step of the stage on.
        fit = jnp.where(controls["progress"] >= self.poison, jnp.nan, fit) if self.poison >= 0 else fit
        return fit + 0.0 * controls["temperature"], ToyAux(
            {"fit": fit, "temperature": controls["temperature"]}, updates
        )


class ToyData:
    """Random-access source of 16 elements."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(int(i))
        image = rng.integers(0, 256, (*SIZE, 3), np.uint8)
        return {
            "image": image,
            "boundaries": (image[..., 0] > 127).astype(np.float32),
            "valid": np.bool_(True),
            "index": np.int64(i),
        }


@dataclasses.dataclass(frozen=True)
class Batches:
    """Batches by their number, as `training.feed` reads them."""

    data: grain.MapDataset

    def start(self, step: int = 0) -> Any:
        ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        return iter(self.data[step:].to_iter_dataset(ahead))


def batches(batch_size: int, seed: int = 0) -> Batches:
    data = grain.MapDataset.source(ToyData()).seed(seed).shuffle().repeat()
    return Batches(data.batch(batch_size))


def config(**training: Any) -> dict[str, Any]:
    """Two stages of 6 and 5 steps; the second has one layer more. Keywords replace fields of `training`."""
    stages = (
        {"name": "base", "steps": 6, "learning_rate": 0.1},
        {
            "name": "deep",
            "steps": 5,
            "learning_rate": 0.05,
            "model": {"deep": True},
            "frozen": ("stem/.*",),
            "multipliers": (("extra/.*", 10.0), (".*", 1.0)),
        },
    )
    defaults = {"batch_size": 4, "stages": stages, "optimizer": "sgd", "log_every": 3}
    defaults |= {"checkpoint_every": 2, "keep": 3}
    source = {"name": "scenes", "split": "train"}  # not read: `batches` are given to the loop
    return {
        "name": "toy",
        "model": {"system": "tests.training.toy:ToySystem"},
        "data": {"train": {"source": source}, "eval": {"source": source}},
        "training": {**defaults, **training},
    }


def run(model: dict[str, Any] | None = None, **training: Any) -> RunConfig:
    """The settings of `config`, with values of its model."""
    sections = config(**training)
    return read_run({**sections, "model": {**sections["model"], **(model or {})}})


def train_evaluated(workdir: Path) -> loop.Result:
    """A run with evaluations, as a program has it: with its lines in files and on the console."""
    return loop.train(
        run(eval_every=4),
        workdir,
        batches=batches(4),
        evaluate_fn=lambda system, variables: {"bias": float(variables["params"]["head"]["bias"][0])},
    )
