"""The GPU kernel itself in Mosaic GPU's interpreter: memories, barriers, products, values, gradients, races.

What the interpreter does not know, the work of single threads, is replaced by `pallas_gpu_simulated`.
"""

from __future__ import annotations

import functools
import itertools
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
    interpreted,
    pallas_gpu,
    pallas_gpu_kernel,
    pallas_gpu_simulated,
    sparse_block,
    sparse_block_reference,
)
from dynpix_jax.ops.sparse.call import bind

STRICT = InterpretGPUParams(detect_races=True)
BOUNDS = {"float32": 2e-5, "bfloat16": 2**-7}
FORWARD = jax.jit(functools.partial(pallas_gpu.forward, interpret=STRICT))
"""One function: what masks of one shape compile is the same."""


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


def simulate(call):
    found = FORWARD(call).block_until_ready()
    assert not interpreter.get_races().races_found
    return found


def masks_of(shape, density=0.4):
    rng = np.random.default_rng(1)
    return [jnp.zeros(shape, bool), jnp.asarray(rng.random(shape) < density)]


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
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


def test_gradients():
    def run(call):
        maps = {"combine": call.combine, "init": call.init}
        with interpreted(InterpretGPUParams()):
            return sparse_block(call.x, call.mask, call.layers, **maps, implementation="pallas_gpu")

    shape, c = (1, 3, 4), 4
    x, kernel, init = drawn(0, (*shape, c), (3, 3, c, c), (*shape, c))
    mask = masks_of(shape)[1]

    def loss(run, x, kernel, init):
        y = run(bind(x, mask, (Convolution(kernel), Relu()), Shortcut(), init))
        return (jnp.sin(y) ** 2).sum()

    def reference(call):
        return sparse_block_reference(
            x=call.x, mask=call.mask, layers=call.layers, combine=call.combine, init=call.init
        )

    found, expected = (
        jax.jit(jax.grad(functools.partial(loss, f), (0, 1, 2)))(x, kernel, init) for f in (run, reference)
    )
    for value, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, want, rtol=1e-3, atol=1e-4)


# (channels, features, window, strides, dilation): those of arg_specs with fewer channels, then odd ones.
GEOMETRIES = [
    (8, 8, (3, 3), (2, 2), (1, 1)),
    (64, 72, (3, 3), (1, 1), (4, 4)),
    (24, 19, (3, 3), (1, 1), (2, 2)),
    (3, 130, (1, 1), (1, 1), (1, 1)),
    (5, 7, (5, 5), (1, 2), (1, 3)),
]


def cases():
    for geometry, dtype in itertools.product(GEOMETRIES, BOUNDS):
        quick = geometry == GEOMETRIES[-1] and dtype == "float32"
        yield pytest.param(*geometry, dtype, marks=[] if quick else [pytest.mark.slow])


@pytest.mark.parametrize(("channels", "features", "window", "strides", "dilation", "dtype"), list(cases()))
def test_convolutions(channels, features, window, strides, dilation, dtype):
    size = (1, 14, 15)
    x, kernel, bias = drawn(0, (*size, channels), (*window, channels, features), (features,))
    layer = Convolution(kernel, bias, strides, dilation)
    shape = jax.eval_shape(layer.everywhere, x).shape
    x = x.astype(dtype)
    for mask in masks_of(shape[:3]):
        found = simulate(bind(x, mask, (layer,)))
        expected = sparse_block_reference(x, mask, (layer,))
        found, expected = (np.asarray(y, np.float32) for y in (found, expected))
        np.testing.assert_allclose(
            found, expected, rtol=0, atol=BOUNDS[dtype] * max(np.abs(expected).max(), 1)
        )


def test_products_that_do_not_wait_are_found(monkeypatch):
    """That the search for races sees the stages: here they are read before they are written."""

    def hasty(self, step, warpgroup, accumulator):
        at = pallas_gpu_kernel._stage(step)
        pallas_gpu_simulated.read_by_products(
            self.refs.row_stages.at[at, warpgroup], self.refs.weight_stages.at[at]
        )
        wait(self, step, warpgroup, accumulator)

    wait = pallas_gpu_kernel._Block._begin
    monkeypatch.setattr(pallas_gpu_kernel._Block, "_begin", hasty)
    x, kernel = drawn(0, (1, 2, 2, 4), (1, 1, 4, 4), dtype="bfloat16")
    call = bind(x, jnp.ones((1, 2, 2), bool), (Convolution(kernel),))
    jax.jit(functools.partial(pallas_gpu.forward, interpret=STRICT))(call).block_until_ready()
    assert interpreter.get_races().races_found
