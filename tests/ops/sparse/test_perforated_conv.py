from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from dynpix_jax import ops
from dynpix_jax.bench import arg_specs
from dynpix_jax.core.errors import UserError
from dynpix_jax.ops.sparse import api
from tests.ops.brute import conv_loop, output_size

ROOT = Path(__file__).resolve().parents[3]
IMPLEMENTATIONS = ["masked", "gather", None]


@st.composite
def cases(draw):
    """(x, kernel, bias), an empty, a full and a random mask, geometry."""
    window = draw(st.sampled_from([(1, 1), (3, 3), (3, 1)]))
    geometry = {
        "strides": draw(st.sampled_from([(1, 1), (2, 2)])),
        "dilation": draw(st.sampled_from([(1, 1), (2, 2), (3, 2)])),
    }
    size = draw(st.tuples(st.integers(1, 8), st.integers(1, 8)))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    batch = draw(st.integers(1, 3))
    shape = (batch, *output_size(size, window, **geometry))
    masks = [
        np.zeros(shape, bool),
        np.ones(shape, bool),
        rng.random(shape) < draw(st.sampled_from([0.3, 0.7])),
    ]
    arrays = [rng.standard_normal(s).astype(np.float32) for s in [(batch, *size, 3), (*window, 3, 4), (4,)]]
    return arrays, masks, geometry


@settings(max_examples=8)
@given(cases(), st.booleans())
def test_values_equal_the_loop(case, with_bias):
    (x, kernel, bias), masks, geometry = case

    @jax.jit
    def run(x, kernel, bias, mask):
        arguments = {"bias": bias if with_bias else None, **geometry}
        sparse = [
            ops.perforated_conv(x, kernel, mask, **arguments, implementation=i) for i in IMPLEMENTATIONS
        ]
        return [*sparse, ops.perforated_conv_reference(x, kernel, mask, **arguments)]

    for mask in masks:
        expected = conv_loop(x, kernel, mask, bias if with_bias else 0.0, **geometry)
        for got in run(x, kernel, bias, mask):
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=5)
@given(cases())
def test_gradients_equal_the_reference(case):
    arrays, masks, geometry = case

    def gradient(function):
        def loss(x, kernel, bias, mask):
            return (jnp.sin(function(x, kernel, mask, bias=bias, **geometry)) ** 2).sum()

        return jax.grad(loss, (0, 1, 2))

    @jax.jit
    def run(*arguments):
        sparse = [functools.partial(ops.perforated_conv, implementation=i) for i in IMPLEMENTATIONS]
        return [gradient(f)(*arguments) for f in (ops.perforated_conv_reference, *sparse)]

    for mask in masks:
        expected, *rest = run(*arrays, mask)
        for got in rest:
            for value, want in zip(got, expected, strict=True):
                np.testing.assert_allclose(value, want, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("implementation", ["masked", "gather"])
@pytest.mark.parametrize("spec", arg_specs.ALL, ids=lambda spec: spec.name)
def test_layers_of_the_paper(implementation, spec):
    # Their strides, dilations and kernels at a size that tests can afford: a tenth or so.
    size = tuple(min(-(-n // 8), 16) for n in spec.size)
    small = dataclasses.replace(spec, size=size, channels=spec.channels // 8, features=spec.features // 8)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, *size, small.channels)).astype(np.float32)
    kernel = rng.standard_normal((*small.kernel_size, small.channels, small.features)).astype(np.float32)
    mask = rng.random((1, *small.output_size)) < 0.5
    arguments = [jnp.asarray(v) for v in (x, kernel, mask)]
    got = ops.perforated_conv(
        *arguments, strides=spec.strides, dilation=spec.dilation, implementation=implementation
    )
    expected = conv_loop(x, kernel, mask, strides=spec.strides, dilation=spec.dilation)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)


def test_shapes_of_the_paper():
    # 321x481 at output stride 8 is 41x61; the four 3x3 convolutions cost 3x3xCxC at each position.
    by_name = {spec.name: spec for spec in arg_specs.ALL}
    assert by_name["res2_321x481"].size == (81, 121)
    assert by_name["res5_321x481"].size == (41, 61)
    assert by_name["res4_480x640"].size == (60, 80)
    assert [by_name[f"res{i}_480x640"].channels for i in (2, 3, 4, 5)] == [64, 128, 256, 512]
    assert [by_name[f"res{i}_480x640"].dilation[0] for i in (2, 3, 4, 5)] == [1, 1, 2, 4]
    # HRNet on Cityscapes starts at a quarter of 1024x2048; each branch halves the size, doubles the channels.
    branches = [by_name[f"hrnet_w48_branch{i}_1024x2048"] for i in (1, 2, 3, 4)]
    assert [spec.size for spec in branches] == [(256, 512), (128, 256), (64, 128), (32, 64)]
    assert [spec.channels for spec in branches] == [48, 96, 192, 384]
    assert len({spec.macs for spec in branches}) == 1
    assert [by_name[f"hrnet_w18_branch{i}_1024x2048"].features for i in (1, 4)] == [18, 144]
    pose = by_name["hrnet_w32_branch1_256x256"]
    assert (pose.size, pose.channels, pose.macs) == ((64, 64), 32, 64 * 64 * 9 * 32 * 32)
    down = by_name["hrnet_w32_down_256x256"]
    assert (down.output_size, down.macs) == ((32, 32), 32 * 32 * 9 * 32 * 64)
    assert len(by_name) == len(arg_specs.ALL) == 23


def test_spec_by_name():
    assert arg_specs.find("res4_321x481").channels == 256
    with pytest.raises(
        UserError, match=r"spec res4_321x480: no such layer here; did you mean 'res4_321x481'\?"
    ):
        arg_specs.find("res4_321x480")
    with pytest.raises(UserError, match="no such layer here; valid: res2_321x481"):
        arg_specs.find("hrnet_w18_down_1024x2048", arg_specs.PAG_RESNET50_BSDS)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bfloat16(implementation):
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.standard_normal(s), jnp.bfloat16) for s in [(1, 6, 5, 16), (3, 3, 16, 4)])
    mask = jnp.asarray(rng.random((1, 6, 5)) < 0.5)
    got = ops.perforated_conv(x, kernel, mask, implementation=implementation)
    assert got.dtype == jnp.bfloat16
    exact = ops.perforated_conv_reference(x.astype(jnp.float32), kernel.astype(jnp.float32), mask)
    np.testing.assert_allclose(got.astype(jnp.float32), exact, rtol=2e-2, atol=0.1)


def test_a_given_active_set_is_used():
    x, kernel = jnp.ones((1, 3, 3, 2)), jnp.ones((1, 1, 2, 1))
    mask = jnp.asarray(np.eye(3, dtype=bool))[None]
    for implementation in IMPLEMENTATIONS:
        got = ops.perforated_conv(x, kernel, ops.active_set(mask), implementation=implementation)
        np.testing.assert_array_equal(got, 2 * mask[..., None])


def test_none_decides_by_density_at_run_time():
    rng = np.random.default_rng(0)
    x, kernel, bias = (
        jnp.asarray(rng.standard_normal(s), jnp.float32) for s in [(2, 9, 7, 64), (3, 3, 64, 5), (5,)]
    )

    def value_and_gradients(function):
        def loss(x, kernel, bias, mask):
            y = function(x, kernel, mask, bias=bias)
            return (jnp.sin(y) ** 2).sum(), y

        return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))

    run, reference = (value_and_gradients(f) for f in (ops.perforated_conv, ops.perforated_conv_reference))
    limit = api.break_even(64)
    densities = (0.0, 0.3, limit - 0.05, limit + 0.05, 0.99, 1.0)
    masks = [jnp.asarray(rng.permutation(126) < round(d * 126)).reshape(2, 9, 7) for d in densities]
    for mask in masks:
        got, expected = (jax.tree.leaves(f(x, kernel, bias, mask)) for f in (run, reference))
        for value, want in zip(got, expected, strict=True):
            np.testing.assert_allclose(value, want, rtol=2e-3, atol=1e-3)
    assert run._cache_size() == 1
    mapped = jax.vmap(lambda mask: ops.perforated_conv(x, kernel, mask))(jnp.stack(masks))
    for got, mask in zip(mapped, masks, strict=True):
        np.testing.assert_allclose(got, ops.perforated_conv_reference(x, kernel, mask), rtol=1e-3, atol=1e-3)


SHARDED = """
import functools, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, PartitionSpec
from dynpix_jax import ops

data, whole = PartitionSpec("data"), PartitionSpec()
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
rng = np.random.default_rng(0)
x, kernel = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in [(4, 6, 5, 64), (3, 3, 64, 3)])
# Every device has its own number of active positions, one of them none, one of them all.
mask = jnp.asarray(rng.random((4, 6, 5)) < np.array([0.0, 0.2, 0.6, 1.1])[:, None, None])

def value_and_gradients(conv):
    def loss(x, kernel):
        y = conv(x, kernel, mask)
        return (y**2).sum(), y
    return jax.tree.leaves(jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(x, kernel))

expected = value_and_gradients(ops.perforated_conv_reference)
for implementation in (None, "gather", "masked"):
    local = jax.shard_map(
        functools.partial(ops.perforated_conv, implementation=implementation),
        mesh=mesh, in_specs=(data, whole, data), out_specs=data, check_vma=False,
    )
    for got, want in zip(value_and_gradients(local), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-3)
"""


def test_shard_map_over_data():
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4",
    }
    command = [sys.executable, "-c", SHARDED]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


def test_none_picks_by_platform_and_channels():
    """On a CPU it loops over active positions; elsewhere it is the dense convolution."""
    limits = [api.break_even(channels) for channels in (48, 128, 256, 512)]
    assert limits == sorted(limits)
    assert 0 < limits[0] <= limits[-1] < 1

    def loops(platform):
        program = jax.jit(ops.perforated_conv).trace(X, KERNEL, MASK).lower(lowering_platforms=(platform,))
        return program.as_text().count("stablehlo.while")

    assert loops("cpu") > 0
    assert loops("cuda") == loops("tpu") == 0


@pytest.mark.usefixtures("off_cpu")
def test_off_a_cpu():
    test_none_decides_by_density_at_run_time()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("x", "features"), [((0, 4, 4, 3), 2), ((1, 0, 4, 3), 2), ((1, 4, 4, 0), 2), ((1, 4, 4, 3), 0)]
)
def test_nothing_in_nothing_out(implementation, x, features):
    size = ops.conv_output_size(x[1:3], (3, 3), (1, 1), (1, 1))
    got = ops.perforated_conv(
        jnp.ones(x),
        jnp.ones((3, 3, x[-1], features)),
        jnp.ones((x[0], *size), bool),
        implementation=implementation,
    )
    assert got.shape == (x[0], *size, features)
    assert not got.any()


X, KERNEL, MASK = jnp.zeros((2, 5, 6, 3)), jnp.zeros((3, 3, 3, 4)), jnp.ones((2, 5, 6), bool)


def test_unknown_implementation_gets_a_suggestion():
    with pytest.raises(
        ValueError, match=r"unknown implementation 'gathr'; did you mean 'gather'\? valid: gather, masked"
    ):
        ops.perforated_conv(X, KERNEL, MASK, implementation="gathr")


@pytest.mark.parametrize("name", ["pallas_tpu", "pallas_gpu"])
def test_a_named_implementation_runs_or_raises(name, monkeypatch):
    with pytest.raises(
        ops.ImplementationUnavailable, match=f"'{name}' cannot run: .*; these can: masked, gather"
    ):
        ops.perforated_conv(X, KERNEL, MASK, implementation=name)
    assert issubclass(ops.ImplementationUnavailable, ValueError)


def test_a_kernel_is_refused_by_the_default_device_and_not_by_the_machine(monkeypatch):
    monkeypatch.setattr(api, "implementations", lambda: {"k": api.Implementation(api.masked, ("tpu",))})
    conv = functools.partial(ops.perforated_conv, implementation="k")
    with pytest.raises(ops.ImplementationUnavailable, match="it needs tpu, the platform is "):
        conv(X, KERNEL, MASK)
    with jax.default_device("tpu"):
        assert jax.eval_shape(conv, X, KERNEL, MASK).shape == (*MASK.shape, KERNEL.shape[-1])


def test_platform_and_shape_refusals_give_their_reason(monkeypatch):
    entries = {
        "here": api.Implementation(api.masked),
        "elsewhere": api.Implementation(api.masked, platforms=("vax", "pdp11")),
        "picky": api.Implementation(api.masked, refuses=lambda call: f"{call.x.shape[-1]} channels are odd"),
    }
    monkeypatch.setattr(api, "implementations", lambda: entries)
    with pytest.raises(
        ops.ImplementationUnavailable, match=r"it needs vax or pdp11, the platform is .*; these can: here$"
    ):
        ops.perforated_conv(X, KERNEL, MASK, implementation="elsewhere")
    with pytest.raises(
        ops.ImplementationUnavailable, match=r"cannot run: 3 channels are odd; these can: here$"
    ):
        ops.perforated_conv(X, KERNEL, MASK, implementation="picky")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": X[0]}, r"x must be floating \(B, H, W, Cin\), got float32 \(5, 6, 3\)"),
        ({"x": X.astype(int)}, r"x must be floating .*got int32"),
        ({"kernel": jnp.zeros((3, 3, 2, 4))}, r"kernel must be \(kh, kw, 3, Cout\) .*got \(3, 3, 2, 4\)"),
        ({"kernel": KERNEL.astype(jnp.bfloat16)}, r"kernel must be float32 as x is, got bfloat16"),
        ({"active": MASK[:, :4]}, r"mask must be bool \(2, 5, 6\) .*got bool \(2, 4, 6\)"),
        ({"active": MASK.astype(jnp.float32)}, r"mask must be bool \(2, 5, 6\) .*got float32 \(2, 5, 6\)"),
        ({"strides": (2, 2)}, r"mask must be bool \(2, 3, 3\) .*got bool \(2, 5, 6\)"),
        ({"bias": jnp.zeros(3)}, r"bias must be \(4,\), got \(3,\)"),
        ({"strides": 2}, r"strides must be two positive integers, got 2"),
        ({"dilation": (0, 1)}, r"dilation must be two positive integers, got \(0, 1\)"),
        (
            {"active": ops.active_set(MASK[:1])},
            r"active must be the active set of a mask \(2, 5, 6\), got \(1, 5, 6\)",
        ),
    ],
)
def test_wrong_arguments_are_named(changes, message):
    arguments = {"x": X, "kernel": KERNEL, "active": MASK, **changes}
    with pytest.raises(ValueError, match=message) as error:
        ops.perforated_conv(**arguments)
    assert "\n" not in str(error.value)
