"""The TPU kernel in interpret mode: its values and gradients. tests/aot compiles it for real chips."""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from dynpix_jax import ops
from dynpix_jax.bench import arg_specs
from dynpix_jax.bench.arg_specs import ConvSpec
from dynpix_jax.ops.sparse import Affine, Convolution, Relu, Shortcut, pallas_tpu, pallas_tpu_plan, vjp
from dynpix_jax.ops.sparse.call import Call, bind
from dynpix_jax.ops.sparse.gather import gather
from dynpix_jax.ops.sparse.vjp import derivative_of
from tests.ops.brute import conv_loop, output_size

ROOT = Path(__file__).resolve().parents[3]

interpreted = functools.partial(pallas_tpu.forward, interpret=True)
differentiable = derivative_of(gather)(interpreted)


def bound(x, kernel, active, bias=None, strides=(1, 1), dilation=(1, 1)) -> Call:
    return Call(x, active, (Convolution(kernel, bias, strides, dilation),))


# Compiling the interpreted kernel is nearly all of the time.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def compiled(strides, dilation, run=interpreted):
    """One compilation for each shape, however many specs and masks have it."""
    return quick(lambda x, kernel, mask, bias: run(bound(x, kernel, mask, bias, strides, dilation)))


active_tiles = quick(lambda mask: pallas_tpu._active_tiles(mask, (8, 16)))


def arrays(spec: ConvSpec, batch: int = 2, seed: int = 0):
    """x, kernel, bias, and the shape of the mask."""
    rng = np.random.default_rng(seed)
    shapes = [
        (batch, *spec.size, spec.channels),
        (*spec.kernel_size, spec.channels, spec.features),
        (spec.features,),
    ]
    shape = (batch, *output_size(spec.size, spec.kernel_size, spec.strides, spec.dilation))
    return [rng.standard_normal(s).astype(np.float32) for s in shapes], shape


def masks_of(shape):
    """Empty, full, independent positions, one blob, one position in the last corner."""
    rng = np.random.default_rng(1)
    blob, corner = np.zeros(shape, bool), np.zeros(shape, bool)
    blob[-1, shape[1] // 4 : shape[1] // 2 + 1, : shape[2] // 2] = True
    corner[-1, -1, -1] = True
    return [np.zeros(shape, bool), np.ones(shape, bool), rng.random(shape) < 0.3, blob, corner]


def check(spec: ConvSpec, batch: int = 2, run=interpreted):
    (x, kernel, bias), shape = arrays(spec, batch)
    everywhere = conv_loop(x, kernel, None, bias, spec.strides, spec.dilation)
    for mask in masks_of(shape):
        got = compiled(spec.strides, spec.dilation, run)(x, kernel, mask, bias)
        expected = np.where(mask[..., None], everywhere, 0)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * np.abs(everywhere).max())
        assert not np.asarray(got)[~mask].any()


def reduced(spec: ConvSpec) -> ConvSpec:
    """24x40 (odd stays odd) and few channels: many specs become one."""
    height, width = (limit - n % 2 for n, limit in zip(spec.size, (24, 40), strict=True))
    return dataclasses.replace(spec, size=(height, width), channels=5, features=7)


@pytest.mark.parametrize("spec", arg_specs.ALL, ids=lambda spec: spec.name)
def test_layers_of_the_papers(spec):
    check(reduced(spec), batch=1)


@pytest.mark.parametrize(
    "spec",
    [
        ConvSpec("1x1, stride 2", (9, 35), 5, 7, (2, 2), kernel_size=(1, 1)),
        ConvSpec("3x3, stride 2, odd", (17, 35), 5, 7, (2, 2)),
        ConvSpec("stride 2, dilation 2: one phase", (18, 34), 5, 7, (2, 2), (2, 2)),
        ConvSpec("dilation 16, beyond the image: slabs", (12, 17), 5, 7, (1, 1), (16, 16)),
        ConvSpec("slabs and strides", (40, 37), 3, 2, (2, 2), (18, 17)),
        ConvSpec("7x3, stride 2", (20, 37), 3, 7, (2, 2), (1, 1), (7, 3)),
        ConvSpec("even window, unequal geometry", (7, 19), 3, 4, (1, 2), (2, 1), (2, 3)),
        ConvSpec("one position", (1, 1), 3, 4, kernel_size=(1, 1)),
    ],
    ids=lambda spec: spec.name,
)
def test_geometries(spec):
    check(spec)


@pytest.mark.parametrize(
    "spec",
    [
        ConvSpec("512 to 512, dilation 4", (9, 17), 512, 512, dilation=(4, 4)),
        ConvSpec("512 to 2048, 1x1", (5, 7), 512, 2048, kernel_size=(1, 1)),
    ],
    ids=lambda spec: spec.name,
)
def test_many_channels(spec):
    check(spec, batch=1)


def test_blocks_of_channels(monkeypatch):
    # Too little memory for all channels at once: sums over two blocks of input channels, three of output
    # channels, the last of each partly filled.
    spec = ConvSpec("blocks", (9, 20), 200, 300)
    monkeypatch.setattr(pallas_tpu_plan, "VMEM_SHARE", 3 / 16)
    plan = pallas_tpu_plan.make_plan(200, 300, (3, 3), (1, 1), (1, 1), jnp.dtype("float32"))
    assert plan.blocks == (2, 3)
    check(spec, batch=1, run=functools.partial(interpreted))


def test_steps_and_copies_as_a_tpu_has_them(capfd):
    # A slower interpreter, with buffers, copies and steps as on a TPU; what was not written is nan.
    spec = ConvSpec("strict", (9, 36), 3, 4, (1, 1), (2, 2))
    (x, kernel, bias), shape = arrays(spec)
    mask = np.zeros(shape, bool)
    mask[0, 3, 1] = mask[1, 8, 30:34] = True
    visited = []

    def record(token, point, core):
        visited.append(tuple(map(int, point)))
        return token

    strict = pltpu.InterpretParams(detect_races=True, grid_point_recorder=record)
    run = functools.partial(pallas_tpu.forward, interpret=strict)
    got = compiled(spec.strides, spec.dilation, run)(x, kernel, mask, bias)
    np.testing.assert_allclose(got, conv_loop(x, kernel, mask, bias, dilation=(2, 2)), rtol=1e-5, atol=1e-5)
    # Of 2x2x3 tiles, those of three: the steps are the active ones, the rest costs nothing.
    assert sorted(visited) == [(0, step, 0) for step in range(3)]
    assert "RACE" not in capfd.readouterr().out


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("whole", [True, False], ids=["bottleneck", "branch"])
def test_chains_as_a_tpu_runs_them(whole, dtype, capfd):
    """The layers that follow within the step; a strict interpreter, inputs of both signs."""
    shape, c, f = (2, 9, 20), 6, 10
    rng = np.random.default_rng(0)
    sizes = [(*shape, c), (*shape, f if whole else c), (3, 3, c, c), (1, 1, c, f), (c,), (c,), (f,), (f,)]
    x, init, kernel, last, *vectors = (jnp.asarray(rng.standard_normal(size), "float32") for size in sizes)
    layers = (Convolution(kernel, vectors[0]), Affine(*vectors[:2]), Relu(), Convolution(last))
    layers, combine = (layers, Shortcut(Affine(*vectors[2:]))) if whole else (layers[:3], None)
    x, init = x.astype(dtype), init.astype(dtype)
    mask = jnp.zeros(shape, bool).at[0, 3:, :7].set(True).at[1, 8, 19].set(True)
    call = bind(x, mask, layers, combine, init)
    assert pallas_tpu.fuses(call)
    strict = pltpu.InterpretParams(detect_races=True, out_of_bounds_reads="raise")
    got = quick(functools.partial(pallas_tpu.forward, interpret=strict))(call)
    expected = ops.sparse.sparse_block_reference(x, mask, layers, combine=combine, init=init)
    got, expected = (np.asarray(value, np.float32) for value in (got, expected))
    limit = {"float32": 1e-5, "bfloat16": 2**-7}[dtype] * np.abs(expected).max()
    np.testing.assert_allclose(got, expected, rtol=0, atol=limit)
    if not whole:
        np.testing.assert_array_equal(got[~mask], init[~mask])
    assert "RACE" not in capfd.readouterr().out


def test_a_chain_that_does_not_fit_keeps_its_kernel(monkeypatch):
    """Too little vector memory for the second layer's weights: the first alone runs in the kernel."""
    x, kernel, last = (jnp.ones(size) for size in [(1, 4, 5, 8), (1, 1, 8, 8), (1, 1, 8, 512)])
    layers, mask = (Convolution(kernel), Relu(), Convolution(last)), jnp.ones((1, 4, 5), bool)
    monkeypatch.setattr(pallas_tpu_plan, "VMEM_LIMIT_OF_CHAINS", 2**18)
    assert not pallas_tpu.fuses(bind(x, mask, layers))
    with ops.sparse.interpreted():
        got = quick(functools.partial(ops.sparse.sparse_block, implementation="pallas_tpu"))(x, mask, layers)
    np.testing.assert_array_equal(got, np.full((1, 4, 5, 512), 64.0))


def test_bfloat16():
    spec = ConvSpec("bfloat16", (9, 37), 40, 24, dilation=(2, 2))
    values, shape = arrays(spec)
    rounded = [jnp.asarray(value, jnp.bfloat16) for value in values]
    mask = masks_of(shape)[2]
    got = compiled(spec.strides, spec.dilation)(*rounded[:2], mask, rounded[2])
    assert got.dtype == jnp.bfloat16
    x, kernel, bias = (np.asarray(value, np.float64) for value in rounded)
    expected = conv_loop(x, kernel, mask, bias, spec.strides, spec.dilation)
    # Sums in float32, rounded once: half a unit in the last of 8 bits.
    np.testing.assert_allclose(got.astype(jnp.float32), expected, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("density", [0.0, 0.002, 1.0])
def test_steps_are_the_active_tiles(density):
    mask = np.random.default_rng(0).random((3, 20, 33)) < density
    tiles, ids, steps = active_tiles(mask)
    expected = []
    for number, (image, row, column) in enumerate(np.ndindex(3, 3, 3)):
        cut = mask[image, row * 8 : row * 8 + 8, column * 16 : column * 16 + 16]
        np.testing.assert_array_equal(tiles[number, : cut.shape[0], : cut.shape[1]], cut)
        assert tiles[number].sum() == cut.sum()
        if cut.any():
            expected.append(number)
    assert len(expected) in {0.0: [0], 0.002: range(1, 12), 1.0: [27]}[density]
    assert int(steps) == max(len(expected), 1)
    np.testing.assert_array_equal(ids[: len(expected)], expected)
    assert int(ids.min()) >= 0
    assert int(ids.max()) < len(tiles)


def test_what_no_active_window_reads_does_not_matter():
    spec = ConvSpec("nan", (9, 20), 3, 4)
    (x, kernel, bias), shape = arrays(spec)
    mask = np.zeros(shape, bool)
    mask[0, 2, 3] = mask[1, :3, 15:] = True
    expected = conv_loop(x, kernel, mask, bias)
    read = np.zeros(shape, bool)
    for image, row, column in np.argwhere(mask):
        read[image, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = True
    got = compiled((1, 1), (1, 1))(np.where(read[..., None], x, np.nan), kernel, mask, bias)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("strides", "dilation", "with_bias"), [((1, 1), (2, 2), True), ((2, 2), (1, 1), False)]
)
def test_gradients_equal_those_of_the_masked_convolution(strides, dilation, with_bias):
    spec = ConvSpec("gradients", (9, 19), 3, 4, strides, dilation)
    (x, kernel, bias), shape = arrays(spec)
    mask = masks_of(shape)[2]
    bias = bias if with_bias else None

    def gradients(convolve):
        def loss(x, kernel, bias):
            return (jnp.sin(convolve(x, kernel, bias)) ** 2).sum()

        return quick(jax.grad(loss, (0, 1, 2)))(x, kernel, bias)

    got = gradients(lambda x, k, b: differentiable(bound(x, k, mask, b, strides, dilation)))
    expected = gradients(
        lambda x, k, b: ops.perforated_conv_reference(x, k, mask, bias=b, strides=strides, dilation=dilation)
    )
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for value, want in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(value, want, rtol=1e-4, atol=1e-4)


def test_the_backward_pass_visits_active_positions_only():
    (x, kernel, bias), shape = arrays(ConvSpec("backward", (5, 6), 3, 4, kernel_size=(1, 3)), batch=1)
    mask = jnp.asarray(masks_of(shape)[2])
    arguments = (x, kernel, bias, ops.active_set(mask))
    # Cotangents of inactive positions are not even read.
    cotangent = jnp.where(mask[..., None], jnp.ones((*shape, 4)), jnp.nan)

    def values(x, kernel, bias, active):
        return gather(bound(x, kernel, active, bias))

    def both(x, kernel, bias, active, cotangent):
        out, backward = jax.vjp(lambda *given: values(*given, active), x, kernel, bias)
        return out, backward(cotangent)

    def backward(x, kernel, bias, active, cotangent):
        return vjp.pull_back(gather, bound(x, kernel, active, bias), cotangent)

    def loops(program):
        return program.as_text().count(" while(")

    alone = quick(backward).lower(*arguments, cotangent).compile()
    assert all(jnp.isfinite(grad).all() for grad in alone(*arguments, cotangent))
    # The loops of `gather`, which also finds its values on the way to the derivative, are dropped.
    forward = loops(quick(values).lower(*arguments).compile())
    assert forward > 0
    assert loops(alone) == loops(quick(both).lower(*arguments, cotangent).compile()) - forward > 0


def test_vmap():
    (x, kernel, bias), shape = arrays(ConvSpec("vmap", (6, 17), 3, 4, kernel_size=(1, 3)), batch=3)
    masks = masks_of((3, 1, *shape[1:]))[2]
    images = x[:, None]

    def single(image, mask):
        return interpreted(bound(image, kernel, mask, bias))

    def loss(image, mask):
        return (differentiable(bound(image, kernel, mask, bias)) ** 2).sum()

    def dense_loss(x):
        return (ops.perforated_conv_reference(x, kernel, masks[:, 0], bias=bias) ** 2).sum()

    for given, axes in [(masks, (0, 0)), (masks[1], (0, None))]:
        got = quick(jax.vmap(single, axes))(images, given)
        expected = conv_loop(x, kernel, np.broadcast_to(given, masks.shape)[:, 0], bias)
        np.testing.assert_allclose(got[:, 0], expected, rtol=1e-5, atol=1e-5)
    gradients = quick(jax.vmap(jax.grad(loss)))(images, masks)
    np.testing.assert_allclose(gradients[:, 0], quick(jax.grad(dense_loss))(x), rtol=1e-4, atol=1e-4)


SHARDED = """
import functools, jax, numpy as np
from jax.sharding import AxisType, PartitionSpec
from dynpix_jax import ops

run = functools.partial(ops.perforated_conv, implementation="pallas_tpu")
rng = np.random.default_rng(0)
x, kernel = (rng.standard_normal(s).astype(np.float32) for s in [(4, 6, 17, 3), (3, 3, 3, 4)])
mask = rng.random(x.shape[:3]) < 0.3
mask[1:3] = False
data, everywhere = PartitionSpec("data"), PartitionSpec()
local = jax.shard_map(
    run,
    mesh=jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,)),
    in_specs=(data, everywhere, data), out_specs=data, check_vma=False,
)
loss = lambda f: lambda x, kernel: (f(x, kernel, mask) ** 2).sum()
with ops.sparse.interpreted():
    got = jax.jit(jax.value_and_grad(loss(local), (0, 1)))(x, kernel)
expected = jax.value_and_grad(loss(ops.perforated_conv_reference), (0, 1))(x, kernel)
assert jax.device_count() == 2
for value, want in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
    np.testing.assert_allclose(value, want, rtol=1e-4, atol=1e-4)
"""


def test_shard_map_over_data():
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2",
    }
    process = subprocess.run(
        [sys.executable, "-c", SHARDED],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize(
    ("x", "kernel", "message"),
    [
        (((1, 4, 4, 3), "float16"), (3, 3, 3, 4), "it needs float32 or bfloat16, x is float16"),
        (
            ((1, 99, 99, 3), "float32"),
            (99, 99, 3, 4),
            r"windows of 99x99 with strides \(1, 1\) and dilation \(1, 1\) do not fit into 16 MiB",
        ),
        (((64, 2048, 2048, 3), "float32"), (3, 3, 3, 4), "tiles are more than the 131072"),
        (((1, 4, 4, 3), "bfloat16"), (3, 3, 3, 4), ""),
    ],
)
def test_refusals(x, kernel, message):
    mask = jax.ShapeDtypeStruct(x[0][:3], "bool")
    call = bound(jax.ShapeDtypeStruct(*x), jax.ShapeDtypeStruct(kernel, x[1]), mask)
    found = pallas_tpu.refuses(call)
    assert bool(found) == bool(message)
    if message:
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(interpreted, call)
