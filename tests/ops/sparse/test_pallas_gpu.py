"""The GPU kernel: what it reads and where, with its loop stated in NumPy; and on a device, its values.

tests/aot compiles the kernel itself for an H100.
"""

from __future__ import annotations

import functools
import types

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.sharding import AxisType, PartitionSpec

from dynpix_jax import ops
from dynpix_jax.bench import arg_specs
from dynpix_jax.ops.conv import conv_output_size
from dynpix_jax.ops.platform import compiled_for
from dynpix_jax.ops.sparse import Convolution, interpreted, pallas_gpu
from dynpix_jax.ops.sparse.call import Call
from dynpix_jax.ops.sparse.pallas_gpu_plan import DEPTH, PIECE, Finish, Lists, make_plan
from tests.ops.brute import conv_by_taps, conv_loop, output_size, window_at

# Of an H100: what a block may have, and what its two multiplying warpgroups hold (PTX ISA, CUDA guide).
SHARED_MEMORY = 227 * 1024
LOWER = {"lowering_platforms": ("cuda",)}

# Compiling for the CPU is most of the time here.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture
def stated_kernel():
    """Everything but the kernel itself, on any backend."""
    with interpreted():
        yield


def bound(x, kernel, active, bias=None, strides=(1, 1), dilation=(1, 1)) -> Call:
    return Call(x, active, (Convolution(kernel, bias, strides, dilation),))


@st.composite
def cases(draw):
    window = draw(st.sampled_from([(1, 1), (3, 3), (3, 1), (5, 5), (2, 3)]))
    geometry = {
        "strides": draw(st.sampled_from([(1, 1), (2, 2), (1, 3)])),
        "dilation": draw(st.sampled_from([(1, 1), (2, 2), (3, 1)])),
    }
    size = draw(st.tuples(st.integers(3, 9), st.integers(3, 9)))
    if min(output_size(size, window, **geometry)) < 1:
        size = (9, 9)
    channels, features = draw(st.sampled_from([(3, 5), (8, 8), (24, 66), (64, 19), (128, 7)]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    batch = draw(st.integers(1, 3))
    shapes = [(batch, *size, channels), (*window, channels, features), (features,)]
    mask = rng.random((batch, *output_size(size, window, **geometry))) < draw(
        st.sampled_from([0.0, 0.3, 1.0])
    )
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes], mask, geometry


@settings(max_examples=4)
@given(cases())
def test_every_step_reads_what_the_sum_needs(case):
    (x, kernel, bias), mask, geometry = case
    expected = conv_loop(x, kernel, mask, bias, **geometry)
    strides, dilation = geometry["strides"], geometry["dilation"]
    plan = make_plan(x.shape[:3], kernel.shape, strides, dilation, exact=True, cores=2)

    @quick
    def whole(x, kernel, bias, mask):
        active = ops.active_set(mask)
        lists = Lists(active.indices, active.indices, active.count)
        out = jax.ShapeDtypeStruct((plan.positions, plan.features), jnp.float32)
        arrays = pallas_gpu.prepare(plan, x, kernel, [bias])
        return pallas_gpu.state(plan, Finish(("add",)), arrays, lists, out)

    got = np.asarray(whole(x, kernel, bias, mask)).reshape(expected.shape)
    # float32 by three products of halves: 1e-5 of the largest result.
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * max(np.abs(expected).max(), 1))
    assert not got[~mask].any()


@pytest.mark.parametrize(
    "geometry", [((1, 1), (1, 1)), ((2, 2), (1, 1)), ((1, 2), (3, 2))], ids=lambda g: str(g)
)
def test_corners_and_taps_of_each_position(geometry):
    strides, dilation = geometry
    size, window = (6, 7), (3, 5)
    output = conv_output_size(size, window, strides, dilation)
    plan = make_plan((2, *size), (*window, 16, 4), strides, dilation, exact=False, cores=1)
    # A picture whose values are their own places, from 1.
    x = 1.0 + np.arange(2 * size[0] * size[1]).reshape(2, *size, 1)
    corners, inside = (np.asarray(v) for v in jax.jit(plan.corners)(np.arange(plan.positions + 3)))
    for place, (b, i, j) in enumerate(np.ndindex(2, *output)):
        window_values = window_at(x, b, i, j, window, strides, dilation)[..., 0]
        for tap, value in enumerate(window_values.reshape(-1)):
            assert bool(inside[place] >> tap & 1) == (value > 0)
            if value:
                row, col = tap // window[1] * dilation[0], tap % window[1] * dilation[1]
                assert corners[place] // 2 + row * size[1] + col == value - 1
    assert not inside[plan.positions :].any()


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("spec", arg_specs.ALL, ids=lambda spec: spec.name)
def test_plans_of_the_papers_layers(spec, exact):
    kernel = (*spec.kernel_size, spec.channels, spec.features)
    for batch in (1, 16):
        plan = make_plan((batch, *spec.size), kernel, spec.strides, spec.dilation, exact=exact, cores=132)
        assert plan.shared_bytes + 1024 <= SHARED_MEMORY
        assert plan.columns % 64 == 0
        assert plan.columns <= (128 if exact else 256)
        assert 0 <= plan.columns * plan.column_blocks - spec.features < plan.columns
        # Every term once: 64 rows of weights a step, each row read for as many products as parts make.
        _, taps, first = plan.tables()
        products = 3 if exact else 1
        assert len(first) == plan.steps == products * plan.weight_rows // DEPTH
        assert (taps < 9).sum() * PIECE == products * 9 * plan.channels
        parts = first // plan.weight_rows
        for part, times in enumerate((2, 1) if exact else (1,)):
            rows, counts = np.unique(first[parts == part] % plan.weight_rows, return_counts=True)
            assert rows.tolist() == list(range(0, plan.weight_rows, DEPTH))
            assert set(counts) == {times}


def test_wide_blocks_where_they_keep_all_cores_busy():
    plan = functools.partial(make_plan, strides=(1, 1), dilation=(1, 1), exact=False, cores=132)
    # 4800 positions at density 0.5 are 19 blocks of rows: 38 blocks of 256 features, or 76 of 128.
    assert plan((1, 60, 80), (3, 3, 512, 512)).columns == 128
    # 300 of rows: whole rounds of 132 blocks either way, and the wide ones gather once.
    assert plan((16, 60, 80), (3, 3, 256, 256)).columns == 256


X, KERNEL, MASK = jnp.zeros((2, 5, 6, 3)), jnp.zeros((3, 3, 3, 4)), jnp.ones((2, 5, 6), bool)
REFUSED = [
    (jax.ShapeDtypeStruct(X.shape, "float64"), KERNEL, "bfloat16, float16 or float32, x is float64"),
    (X, jnp.zeros((7, 5, 3, 4)), "at most 31 taps, this one is 7x5"),
    (jax.ShapeDtypeStruct((64, 4096, 4096, 64), "float32"), jnp.zeros((1, 1, 64, 4)), "32-bit offsets"),
]


@pytest.mark.parametrize(("x", "kernel", "message"), REFUSED)
def test_arguments_that_it_refuses(x, kernel, message):
    call = bound(x, kernel, jnp.zeros((1, 1, 1), bool))
    assert message in pallas_gpu.refuses(call)
    with pytest.raises(ValueError, match=f"pallas_gpu: .*{message}"):
        pallas_gpu.forward(call)


@pytest.mark.parametrize("capability", ["8.0", "10.0", None])
def test_other_gpus_are_refused(monkeypatch, capability):
    device = types.SimpleNamespace(compute_capability=capability, device_kind="Thing", platform="gpu")
    monkeypatch.setattr(pallas_gpu.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(pallas_gpu.jax, "local_devices", lambda *, backend=None: [device])
    reason = pallas_gpu.refuses(bound(X, KERNEL, MASK))
    assert f"compute capability 9.0 (Hopper: H100, H200), this is Thing with {capability}" in reason
    with compiled_for("gpu"):  # for a device that is not here
        assert pallas_gpu.refuses(bound(X, KERNEL, MASK)) == ""
    device.compute_capability = "9.0"
    assert pallas_gpu.refuses(bound(X, KERNEL, MASK)) == ""


def test_a_missing_package_is_named(monkeypatch):
    def missing(name):
        raise ImportError("No module named 'absl'")

    monkeypatch.setattr(pallas_gpu.importlib, "import_module", missing)
    assert "No module named 'absl'" in pallas_gpu.refuses(bound(X, KERNEL, MASK))


def random_arrays(seed=0, dtype=np.float32, batch=2, size=(5, 6), channels=8, features=6):
    """x, kernel, bias, mask; results are about 1."""
    rng = np.random.default_rng(seed)
    shapes = [(batch, *size, channels), (3, 3, channels, features), (features,)]
    x, kernel, bias = (rng.standard_normal(s).astype(dtype) for s in shapes)
    return x, kernel / dtype(9), bias, rng.random((batch, *size)) < 0.5


def run(x, kernel, bias, mask):
    return pallas_gpu.pallas_gpu(bound(x, kernel, mask, bias))


def definition(x, kernel, bias, mask):
    return ops.perforated_conv_reference(x, kernel, mask, bias=bias)


reference = quick(definition)


@pytest.mark.usefixtures("stated_kernel")
def test_bias_active_set_and_empty_arrays():
    x, kernel, bias, mask = (jnp.asarray(v) for v in random_arrays())
    np.testing.assert_allclose(run(x, kernel, bias, mask), reference(x, kernel, bias, mask), atol=1e-4)
    without = reference(x, kernel, 0 * bias, mask)
    np.testing.assert_allclose(run(x, kernel, None, mask), without, atol=1e-4)
    nowhere = ops.active_set(jnp.zeros_like(mask))
    assert not pallas_gpu.pallas_gpu(bound(x, kernel, nowhere, bias)).any()
    assert run(x[:0], kernel, bias, mask[:0]).shape == (0, *x.shape[1:3], len(bias))
    assert run(x, kernel[..., :0], bias[:0], mask).shape == (*x.shape[:3], 0)
    np.testing.assert_array_equal(run(x[..., :0], kernel[:, :, :0], bias, mask)[mask][0], bias)


@pytest.mark.usefixtures("stated_kernel")
@pytest.mark.parametrize("axes", [(0, None, None, 0), (None, None, None, 0), (0, 0, None, None)])
def test_vmap_over_arrays_masks_and_weights(axes):
    several = [np.stack(v) for v in zip(*(random_arrays(seed) for seed in range(3)), strict=True)]
    arguments = [v if axis == 0 else v[0] for v, axis in zip(several, axes, strict=True)]
    # Twice, as a mapped function may be mapped again.
    got = quick(jax.vmap(jax.vmap(run, axes), (None,) * 3 + (0,)))(
        *arguments[:3], np.stack([arguments[3], ~arguments[3]])
    )
    for inverse, i in np.ndindex(2, 3):
        x, kernel, bias, mask = (v[i] if axis == 0 else v for v, axis in zip(arguments, axes, strict=True))
        expected = reference(x, kernel, bias, mask ^ bool(inverse))
        np.testing.assert_allclose(got[inverse, i], expected, atol=1e-4)


@pytest.mark.usefixtures("stated_kernel")
def test_gradients():
    def gradients(function):
        return quick(jax.grad(lambda *a: (jnp.sin(function(*a)) ** 2).sum(), (0, 1, 2)))(*random_arrays())

    for got, expected in zip(gradients(run), gradients(definition), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=2e-4)


def test_the_kernel_itself_lowers_alone_mapped_differentiated_and_sharded():
    # Mosaic builds the kernel at lowering, without a device or its compiler.
    arguments = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in random_arrays(dtype=jnp.bfloat16.dtype.type)]
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    data, whole = PartitionSpec("data"), PartitionSpec()
    programs = [
        run,
        jax.grad(lambda *a: (run(*a).astype(jnp.float32) ** 2).sum(), (0, 1, 2)),
        jax.shard_map(run, mesh=mesh, in_specs=(data, whole, whole, data), out_specs=data),
    ]
    for program in programs:
        text = jax.jit(program).trace(*arguments).lower(**LOWER).as_text()
        assert text.count("@mosaic_gpu_v2") == 1
    stacked = [jax.ShapeDtypeStruct((3, *v.shape), v.dtype) for v in arguments]
    mapped = jax.jit(jax.vmap(run, (0, None, None, 0)))
    text = mapped.trace(stacked[0], *arguments[1:3], stacked[3]).lower(**LOWER).as_text()
    assert text.count("@mosaic_gpu_v2") == 1


needs_hopper = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        jax.default_backend() != "gpu" or bool(pallas_gpu.refuses(bound(X, KERNEL, MASK))),
        reason="needs a CUDA GPU of compute capability 9.0, and JAX_PLATFORMS=cuda",
    ),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    ("size", "channels", "features", "window", "strides", "dilation"),
    [
        ((19, 23), 64, 64, (3, 3), (1, 1), (1, 1)),
        ((19, 23), 128, 256, (3, 3), (2, 2), (1, 1)),
        ((15, 18), 48, 96, (3, 3), (1, 1), (2, 2)),
        ((15, 18), 18, 5, (5, 5), (1, 2), (1, 3)),
        ((40, 41), 512, 384, (1, 1), (1, 1), (1, 1)),
        ((60, 80), 256, 512, (3, 3), (1, 1), (4, 4)),
    ],
)
class TestOnADevice:
    pytestmark = needs_hopper

    def test_values_equal_the_sum_in_float64(
        self, dtype, size, channels, features, window, strides, dilation
    ):
        rng = np.random.default_rng(0)
        shape = (2, *output_size(size, window, strides, dilation))
        shapes = [(2, *size, channels), (*window, channels, features), (features,)]
        x, kernel, bias = (jnp.asarray(rng.standard_normal(s), dtype) for s in shapes)
        everywhere = conv_by_taps(*(np.asarray(v, np.float64) for v in (x, kernel, bias)), strides, dilation)
        one = np.zeros(shape, bool)
        one[-1, -1, -1] = True
        for mask in (np.zeros(shape, bool), np.ones(shape, bool), rng.random(shape) < 0.4, one):
            for _ in range(3):  # Races are not the same every time.
                got = pallas_gpu.pallas_gpu(bound(x, kernel, jnp.asarray(mask), bias, strides, dilation))
                expected = np.where(mask[..., None], everywhere, 0)
                limit = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3}[dtype] * np.abs(everywhere).max()
                np.testing.assert_allclose(np.asarray(got, np.float64), expected, rtol=0, atol=limit)


def test_sum_by_taps_is_the_sum_by_positions():
    x, kernel, bias, _ = (np.asarray(v, np.float64) for v in random_arrays())
    for strides, dilation in [((1, 1), (1, 1)), ((2, 1), (1, 2))]:
        by_taps = conv_by_taps(x, kernel, bias, strides, dilation)
        np.testing.assert_allclose(by_taps, conv_loop(x, kernel, None, bias, strides, dilation), atol=1e-9)
