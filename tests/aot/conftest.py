"""Programs compiled for chips that are not there, by the compilers that come with jax's plugins."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dynpix_jax.bench.arg_specs import ConvSpec
from dynpix_jax.ops.sparse import Affine, Convolution, Relu, Shortcut
from dynpix_jax.ops.sparse.call import Call

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


def bottleneck(spec: ConvSpec, dtype: str, *, widen: int = 4) -> Call:
    """The shapes of a gated bottleneck around a 3x3 layer: norm, ReLU, 1x1, norm, sum, ReLU."""
    struct, c, f = jax.ShapeDtypeStruct, spec.channels, widen * spec.channels
    first = Convolution(struct((3, 3, c, c), dtype), dilation=spec.dilation)
    norms = [Affine(struct((n,), "float32"), struct((n,), "float32")) for n in (c, f, f)]
    layers = (first, norms[0], Relu(), Convolution(struct((1, 1, c, f), dtype)), norms[1])
    maps = [struct((1, *spec.size, n), dtype) for n in (c, f)]
    mask = struct((1, *spec.size), jnp.bool_)
    return Call(maps[0], mask, layers, Shortcut(norms[2]), maps[1])


def branch(spec: ConvSpec, dtype: str) -> Call:
    """The shapes of a branch of pooling: 3x3, norm, ReLU, written over a map."""
    whole = bottleneck(spec, dtype, widen=1)
    return Call(whole.x, whole.mask, whole.layers[:3], None, whole.init)
