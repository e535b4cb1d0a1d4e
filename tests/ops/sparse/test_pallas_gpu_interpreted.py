"""The GPU kernel itself in Mosaic GPU's interpreter: memories, barriers, products, values, gradients, races.

What the interpreter does not know, the work of single threads, is replaced by `pallas_gpu_simulated`.
"""

from __future__ import annotations

import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import thread_map
from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call as interpreter
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

from dynpix_jax.ops.sparse import (
    Affine,
    Convolution,
    Relu,
    Shortcut,
    pallas_gpu,
    sparse_block_reference,
)
from dynpix_jax.ops.sparse.call import bind

STRICT = InterpretGPUParams(detect_races=True)
BOUNDS = {"float32": 2e-5, "bfloat16": 2**-7}


@pytest.fixture(autouse=True)
def few_compilations(monkeypatch):
    """Two blocks; and one compilation of a kernel, not one for each thread of each block of each run."""
    monkeypatch.setattr(pallas_gpu, "_CORES", 2)
    programs, lock = {}, threading.Lock()

    def run(jaxpr, consts, *args):
        with lock:
            if jaxpr not in programs:
                program = jax.jit(functools.partial(jax.core.eval_jaxpr, jaxpr))
                quickly = {"xla_backend_optimization_level": 0}
                programs[jaxpr] = program.lower(consts, *args).compile(compiler_options=quickly)
        programs[jaxpr](consts, *args)

    monkeypatch.setattr(thread_map, "_run_jaxpr", run)
    yield
    interpreter.reset_gpu_interpret_mode_state()


def drawn(seed, *shapes, dtype="float32"):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


@functools.partial(jax.jit, static_argnums=(0, 1))
def definition(combine, geometry, x, mask, layers, init):
    return sparse_block_reference(x, mask, layers, combine=combine, init=init)


def simulate(call):
    found = jax.jit(functools.partial(pallas_gpu.forward, interpret=STRICT))(call)
    found.block_until_ready()
    assert not interpreter.get_races().races_found
    return found


def masks_of(shape, density=0.4):
    rng = np.random.default_rng(1)
    return [jnp.zeros(shape, bool), jnp.asarray(rng.random(shape) < density)]


@pytest.mark.parametrize("dtype", BOUNDS)
def test_a_bottleneck(dtype):
    """3x3, norm, ReLU, 1x1, norm, sum, ReLU: two kernels, tiles of both blocks, both signs."""
    shape, c, f = (1, 12, 13), 8, 20
    x, first, *norm = drawn(0, (*shape, c), (3, 3, c, c), (c,), (c,))
    last, init, *others = drawn(1, (1, 1, c, f), (*shape, f), (f,), (f,), (f,), (f,))
    layers = (Convolution(first), Affine(*norm), Relu(), Convolution(last), Affine(*others[:2]))
    x, init = x.astype(dtype), init.astype(dtype)
    for mask in [*masks_of(shape, 0.9), jnp.zeros(shape, bool).at[-1, -1, -1].set(True)]:
        call = bind(x, mask, layers, Shortcut(Affine(*others[2:])), init)
        found = simulate(call)
        expected = sparse_block_reference(x, mask, layers, combine=call.combine, init=init)
        found, expected = (np.asarray(y, np.float32) for y in (found, expected))
        np.testing.assert_allclose(found, expected, rtol=0, atol=BOUNDS[dtype] * np.abs(expected).max())
