"""A batch of fixed points that several devices search: the same gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from dynpix_jax.papers.mdeq.fixed_point import SolverConfig, fixed_point
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
matrix, offset = np.random.default_rng(0).normal(0, 0.15, (6, 6)), np.ones((8, 6), np.float32)
def gradient(theta):
    def value(theta):
        f = lambda theta, z: jnp.tanh(z @ theta[0]) + theta[1]
        options = SolverConfig(METHOD, iterations=8, memory=4)
        return fixed_point(f, theta, jnp.zeros((8, 6)), options, options)[0].sum()
    return jax.grad(value)(theta)
theta = (matrix.astype(np.float32), offset)
split = jax.device_put(theta, tuple(NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",))))
for a, b in zip(jax.jit(gradient)(split), jax.jit(gradient)(theta)):
    assert np.abs(a - b).max() < 1e-5, np.abs(a - b).max()
print("same")
"""


@pytest.mark.multiprocess
@pytest.mark.parametrize("method", ["broyden", pytest.param("anderson", marks=pytest.mark.slow)])
def test_sharded_over_the_batch(method):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    program = SHARDED.replace("METHOD", repr(method))
    root = Path(__file__).resolve().parents[3]
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=root, env=environment, capture_output=True, text=True
    )
    assert run.stdout.strip() == "same", run.stderr
