"""Programs compiled for chips that are not there, by the compilers that come with jax's plugins."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# What XLA asks a driver about an H100 (SXM): by NVIDIA's datasheet and the CUDA programming guide.
H100 = """gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 } device_description_str: "NVIDIA H100 80GB HBM3"
"""

Compile = Callable[..., Any]
"""(function, *trees of jax.ShapeDtypeStruct) -> what is compiled for one chip."""

# Names of the smallest slices that libtpu knows.
TPU_SLICES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}


def compiler(device: Any) -> Compile:
    """Compiles for one device of a topology, arguments whole on it."""
    mesh = Mesh(np.array([device]), ("x",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec())

    def compile_for_device(function: Callable[..., Any], *arguments: Any) -> Any:
        placed = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), arguments)
        with jax.set_mesh(mesh):
            return jax.jit(function).lower(*placed).compile()

    return compile_for_device


@pytest.fixture(scope="session", params=TPU_SLICES)
def compile_tpu(request: pytest.FixtureRequest) -> Compile:
    """Compiles for each chip in turn; skipped where libtpu is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: run `make test-aot`, which installs it beside the environment")
    # Else it asks a server, which only a TPU VM has, what chip it runs on, and refuses to be loaded by two
    # processes at a time, which would be wrong with a chip.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    topology = topologies.get_topology_desc(platform="tpu", topology_name=TPU_SLICES[request.param])
    return compiler(topology.devices[0])


@pytest.fixture(scope="session")
def compile_cuda() -> Compile:
    """Compiles for an H100; skipped where the CUDA plugin is not installed."""
    if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        pytest.skip(
            "jax has no CUDA plugin here: run `make test-aot`, which installs one beside the environment"
        )
    # Else the plugin looks for the CUDA libraries of a driver.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    topology = topologies.get_topology_desc(
        platform="cuda", topology_name="", target_config=H100, topology="1x1x1"
    )
    return compiler(topology.devices[0])
