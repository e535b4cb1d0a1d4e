"""Devices as a (`data`, `model`) mesh: where the state lives, and how local batches become global arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import DictKey

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.settings import MeshConfig
from dynpix_jax.core.trees import map_named, match_first
from dynpix_jax.training.optim import StageOptimizer
from dynpix_jax.training.state import TrainState


def make_mesh(
    config: MeshConfig,
    batch_size: int,
    microbatches: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """The mesh over ``devices``; None takes all of all processes.

    Raises:
        UserError: The axes do not multiply to the number of devices, or do not divide the (micro)batch.
    """
    chosen = jax.devices() if devices is None else devices
    count = len(chosen)
    data = count // config.model if config.data == -1 else config.data
    if data * config.model != count:
        raise UserError(
            f"config.training.mesh: data {config.data} x model {config.model} does not fit {count} devices"
        )
    if batch_size % data:
        raise UserError(
            f"config.training.batch_size: {batch_size} does not divide over the mesh's {data} data devices"
        )
    if batch_size % (microbatches * data):
        raise UserError(
            f"config.training.microbatches: {microbatches} does not divide the {batch_size // data} images of"
            f" each of {data} devices"
        )
    # Auto: the compiler propagates shardings. jax.make_mesh alone would make the axes Explicit.
    return jax.make_mesh(
        (data, config.model), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=chosen
    )


def state_shardings(
    abstract: TrainState, optimizer: StageOptimizer, mesh: Mesh, config: MeshConfig
) -> TrainState:
    """A tree like `abstract` with the sharding of every leaf.

    Parameters follow `config.rules`, their optimizer state follows them, everything else is replicated.

    Raises:
        UserError: A rule splits a dimension that the leaf does not have or that the model axis does not
            divide.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())

    def place(path: str, leaf: Any) -> NamedSharding:
        dim = match_first(config.rules, path, default=None)
        if dim is None or config.model == 1:
            return everywhere
        if not 0 <= dim < len(leaf.shape) or leaf.shape[dim] % config.model:
            raise UserError(
                f"config.training.mesh.rules: dimension {dim} of '{path}' {leaf.shape} cannot be split"
                f" over {config.model} devices"
            )
        return NamedSharding(mesh, PartitionSpec(*[None] * dim, "model"))

    params = map_named(place, abstract.params)
    of_leaves: dict[str, Any] = optimizer.pick(params)

    def follow(path: tuple[Any, ...], _: Any) -> NamedSharding:
        # What belongs to a parameter stands in a flat dict under its path.
        name = str(path[-1].key) if isinstance(path[-1], DictKey) else ""
        placed: NamedSharding = of_leaves.get(name, everywhere)
        return placed

    opt_state = jax.tree_util.tree_map_with_path(follow, abstract.opt_state)
    step: Any = everywhere  # a sharding stands where the array will
    return TrainState(step, params, jax.tree.map(lambda _: everywhere, abstract.collections), opt_state)


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays, split over `data`, of the batch part that this process has read.

    Args:
        batch: Numpy arrays with leading dimension batch_size / number of processes.
        mesh: The (data, model) mesh.
    """
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(value))
        for name, value in batch.items()
    }
