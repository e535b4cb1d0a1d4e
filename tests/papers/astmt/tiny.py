"""The smallest ASTMT network, its variables without compiling initializers, and a batch for two tasks."""

from __future__ import annotations

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax.backbones import resnet
from dynpix_jax.core.settings import StageConfig, TrainingConfig
from dynpix_jax.core.system import System
from dynpix_jax.training.optim import StageOptimizer, stage_optimizer
from dynpix_jax.training.state import TrainState, new_state
from dynpix_jax.training.step import StepFn, make_step

TASKS = ("boundaries", "depth")
OWN = dict(se=True, norm=True, adapters=True)


def small_blocks(patch: pytest.MonkeyPatch) -> None:
    """SE-ResNet-26 with a block a stage."""
    patch.setitem(resnet._BLOCKS, 26, (1, 1, 1, 1))


def section(**changes: Any) -> dict[str, Any]:
    """Section ``model``: everything each task's own, without a discriminator."""
    sections = dict(
        system="astmt",
        tasks=TASKS,
        backbone=dict(
            se=True,
            depth=26,
            width=4,
            output_stride=16,
            stride_in_1x1=False,
            frozen_norm=False,
            preprocessing="torch",
        ),
        encoder=OWN,
        decoder=dict(OWN, features=6, rates=(1,)),
    )
    return sections | changes


def random_variables(system: System, seed: int = 0) -> Any:
    """Random kernels, zero adapters; everything else as a network begins."""
    images = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    shapes = jax.eval_shape(lambda key: system.init(key, {"image": images}), jax.random.key(0))

    def leaf(path: tuple, shape: jax.ShapeDtypeStruct) -> jax.Array:
        names = [key.key for key in path]
        if names[-1] == "kernel" and "adapter" not in names:
            rng = np.random.default_rng([seed, zlib.crc32("/".join(names).encode())])
            scale = int(np.prod(shape.shape[:-1])) ** -0.5
            return jnp.asarray(rng.normal(0, scale, shape.shape), shape.dtype)
        return jnp.full(shape.shape, float(names[-1] in ("scale", "var")), shape.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def random_batch(size: int = 2, shape: tuple[int, int] = (16, 20)) -> dict[str, jax.Array]:
    """Images with boundaries and depth, a tenth of which are missing."""
    rng = np.random.default_rng(1)
    depth = rng.uniform(1, 5, (size, *shape)) * (rng.random((size, *shape)) > 0.1)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (size, *shape, 3), np.uint8)),
        "boundaries": jnp.asarray(rng.random((size, *shape)) < 0.1, jnp.float32),
        "depth": jnp.asarray(depth, jnp.float32),
        "valid": jnp.ones(size, bool),
    }


def training_step(system: System, variables: Any) -> tuple[StepFn, TrainState, StageOptimizer]:
    """A step of SGD with momentum and decay of everything, its first state, the optimizer."""
    stage = StageConfig("train", 10, 0.05, system.config)
    config = TrainingConfig(
        batch_size=2, stages=(stage,), optimizer="sgd", weight_decay=0.01, weight_decay_on=(".*",)
    )
    optimizer = stage_optimizer(variables["params"], config, stage, system)
    state = new_state(variables, optimizer.tx, optimizer.pick, 0)
    return make_step(system, optimizer, seed=0, stage_start=0, stage_steps=10), state, optimizer
