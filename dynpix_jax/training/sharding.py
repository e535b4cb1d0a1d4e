"""Devices as a (`data`, `model`) mesh: where the state lives, which images each process reads and places."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import DictKey

from dynpix_jax.core.config import RunConfig
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.settings import MeshConfig, ModelConfig, TrainingConfig
from dynpix_jax.core.system import NetworkConfig
from dynpix_jax.core.trees import map_named, match_first
from dynpix_jax.training.optim import StageOptimizer
from dynpix_jax.training.state import TrainState


def run_mesh(run: RunConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a run over ``devices``; None takes all of all processes.

    Raises:
        UserError: As `make_mesh`.
    """
    settings = run.training
    by_host = any(_normed_by_host(stage.model) for stage in run.stages)
    return make_mesh(
        settings.mesh, settings.batch_size, settings.microbatches, devices, keep_hosts_together=by_host
    )


def host_norms_as_numbers(model: ModelConfig, mesh: Mesh, settings: TrainingConfig) -> ModelConfig:
    """A model whose ``norm_group`` is the number of a host's images in a (micro)batch, where it is ``host``.

    The mesh says which hosts there are: it may be that of another machine (`dynpix plan`).
    """
    if not _normed_by_host(model):
        return model
    hosts = len({device.process_index for device in mesh.devices.flat})
    images = settings.batch_size // (settings.microbatches * hosts)
    changed: Any = model
    grouped: ModelConfig = dataclasses.replace(changed, norm_group=images)
    return grouped


def _normed_by_host(model: ModelConfig) -> bool:
    return isinstance(model, NetworkConfig) and model.norm_group == "host"


def make_mesh(
    config: MeshConfig,
    batch_size: int,
    microbatches: int = 1,
    devices: Sequence[jax.Device] | None = None,
    *,
    keep_hosts_together: bool = False,
) -> Mesh:
    """The mesh over ``devices``; None takes all of all processes.

    Args:
        config: Its axes.
        batch_size: Images a step.
        microbatches: Parts of a batch.
        devices: What it is made of.
        keep_hosts_together: Whether consecutive images of a batch are a host's. Else the devices are in an
            order that suits their connections; on TPUs rings lead through several hosts and back.

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
    if batch_size % count:
        raise UserError(
            f"config.training.batch_size: {batch_size} does not divide over the mesh's {count} devices"
        )
    if batch_size % (microbatches * count):
        raise UserError(
            f"config.training.microbatches: {microbatches} does not divide the {batch_size // count} images"
            f" of each of {count} devices"
        )
    # Auto: the compiler propagates shardings. jax.make_mesh alone would make the axes Explicit.
    names, types = ("data", "model"), (AxisType.Auto,) * 2
    if keep_hosts_together:
        ordered = sorted(chosen, key=lambda device: device.process_index)
        return Mesh(np.array(ordered).reshape(data, config.model), names, axis_types=types)
    return jax.make_mesh((data, config.model), names, axis_types=types, devices=chosen)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Where the images of a batch go: split over all devices, whatever the mesh splits parameters over."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def local_rows(mesh: Mesh, batch_size: int) -> tuple[int, ...]:
    """The places in a batch of the images that this process reads, ascending."""
    slices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return tuple(sorted(row for part in slices if part for row in range(*part[0].indices(batch_size))))


def state_shardings(
    abstract: TrainState, optimizer: StageOptimizer, mesh: Mesh, config: TrainingConfig
) -> TrainState:
    """A tree like `abstract` with the sharding of every leaf.

    Parameters are split as `config.sharding` says, their optimizer state follows them, everything else is
    replicated.

    Raises:
        UserError: A rule splits a dimension that the leaf does not have or that the model axis does not
            divide.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())

    def place(path: str, leaf: Any) -> NamedSharding:
        if config.sharding == "replicated":
            return everywhere
        axis = "data" if config.sharding == "fsdp" else "model"
        count = mesh.shape[axis]
        if config.sharding == "fsdp":
            dim = _largest(leaf.shape, count)
        else:
            dim = match_first(config.mesh.rules, path, default=None)
        if dim is None or count == 1:
            return everywhere
        if not 0 <= dim < len(leaf.shape) or leaf.shape[dim] % count:
            raise UserError(
                f"config.training.mesh.rules: dimension {dim} of '{path}' {leaf.shape} cannot be split"
                f" over {count} devices"
            )
        return NamedSharding(mesh, PartitionSpec(*[None] * dim, axis))

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


def _largest(shape: tuple[int, ...], count: int) -> int | None:
    """The longest dimension that ``count`` divides; None for vectors, which are not worth a message."""
    fitting = [dim for dim, side in enumerate(shape) if side % count == 0]
    return max(fitting, key=lambda dim: shape[dim], default=None) if len(shape) > 1 else None


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays, split over all devices, of the images that this process has read.

    Args:
        batch: Numpy arrays with a row for each of `local_rows`, in their order.
        mesh: The (data, model) mesh.
    """
    sharding = batch_sharding(mesh)
    here = len(sharding.addressable_devices)
    size = len(next(iter(batch.values()))) * mesh.size // here
    places = {row: place for place, row in enumerate(local_rows(mesh, size))}

    def place(value: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # this process has the device
            return value[[places[row] for row in range(*index[0].indices(size))]]

        return jax.make_array_from_callback((size, *value.shape[1:]), sharding, part)

    return {name: place(np.asarray(value)) for name, value in batch.items()}
