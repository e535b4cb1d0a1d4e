"""MACs by hand, against XLA's own count, and the paper's networks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dynpix_jax.backbones.resnet import ResNet, ResNetConfig
from dynpix_jax.flops import UnknownPrimitiveError, count_macs, jaxpr_macs
from dynpix_jax.ops import active_set, conv, depthwise, map_active

NHWC = ("NHWC", "HWIO", "NHWC")


def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def general(**options: Any) -> Callable[..., jax.Array]:
    settings = dict(window_strides=(1, 1), padding="SAME", dimension_numbers=NHWC) | options
    return lambda x, k: lax.conv_general_dilated(x, k, **settings)


@pytest.mark.parametrize(
    ("fn", "shapes", "macs"),
    [
        pytest.param(lambda a, b: a @ b, ((5, 7), (7, 3)), 5 * 7 * 3, id="dot"),
        pytest.param(
            lambda a, b: jnp.einsum("bij,bjk->bik", a, b), ((2, 5, 7), (2, 7, 3)), 2 * 5 * 7 * 3, id="batched"
        ),
        pytest.param(conv, ((2, 9, 11, 4), (3, 3, 4, 6)), 2 * 9 * 11 * 9 * 4 * 6, id="3x3"),
        pytest.param(
            lambda x, k: conv(x, k, strides=(2, 2)),
            ((1, 9, 11, 4), (3, 3, 4, 6)),
            5 * 6 * 9 * 4 * 6,
            id="strided",
        ),
        pytest.param(
            lambda x, k: conv(x, k, dilation=(4, 4)),
            ((1, 9, 11, 4), (3, 3, 4, 6)),
            99 * 9 * 4 * 6,
            id="dilated",
        ),
        pytest.param(
            general(feature_group_count=4), ((1, 9, 11, 8), (3, 3, 2, 12)), 99 * 9 * 2 * 12, id="grouped"
        ),
        # Two halves of the batch, each with its own three output features.
        pytest.param(
            general(batch_group_count=2), ((2, 9, 11, 4), (3, 3, 4, 6)), 99 * 9 * 4 * 6, id="batch groups"
        ),
        pytest.param(
            lambda x, k: lax.conv_transpose(x, k, (2, 2), "SAME", dimension_numbers=NHWC),
            ((1, 5, 6, 4), (4, 4, 4, 3)),
            5 * 6 * 16 * 4 * 3,
            id="transposed",
        ),
        # Of 8 channels in 4 groups, every input value meets the 3 output features of its group 4x4 times.
        pytest.param(
            general(lhs_dilation=(2, 2), feature_group_count=4, padding=((2, 2), (2, 2))),
            ((1, 5, 6, 8), (4, 4, 2, 12)),
            5 * 6 * 8 * 16 * 3,
            id="transposed and grouped",
        ),
        pytest.param(
            lambda x, k: jax.jit(jax.checkpoint(conv))(x, k), ((1, 3, 3, 2), (1, 1, 2, 5)), 90, id="calls"
        ),
    ],
)
def test_by_hand(fn: Callable[..., Any], shapes: tuple[tuple[int, ...], ...], macs: int) -> None:
    report = count_macs(fn, *(array(*shape) for shape in shapes))
    assert report.total == macs
    assert report.flops == 2 * macs
    assert report.gibi == macs / 2**30
    assert sum(report.by_primitive.values()) == sum(report.by_scope.values()) == macs


@pytest.mark.parametrize("run", [depthwise.depthwise_conv, depthwise._grouped, depthwise._shifted])
@pytest.mark.parametrize(("strides", "dilation", "size"), [(1, 1, 9 * 11), (2, 1, 5 * 6), (1, 2, 9 * 11)])
def test_a_depthwise_convolution_counts_alike_on_all_platforms(
    run: Callable[..., Any], strides: int, dilation: int, size: int
) -> None:
    """As a CPU and as an accelerator run it (a grouped convolution), and as networks call it."""
    if run is depthwise.depthwise_conv:
        run = partial(run, strides=(strides,) * 2, dilation=(dilation,) * 2)
    else:
        chosen = run
        run = lambda x, kernel: chosen(x, kernel, (strides,) * 2, (dilation,) * 2)  # noqa: E731
    assert count_macs(run, array(2, 9, 11, 8), array(3, 3, 1, 8)).total == 2 * size * 9 * 8


def test_gradients_of_a_convolution_cost_two_forwards() -> None:
    x, kernel = array(1, 8, 8, 4), array(3, 3, 4, 6)
    options = dict(strides=(2, 2))
    forward = count_macs(lambda x, k: conv(x, k, **options), x, kernel).total
    both = count_macs(jax.grad(lambda x, k: conv(x, k, **options).sum(), argnums=(0, 1)), x, kernel)
    assert both.total == 3 * forward


def test_scan_multiplies() -> None:
    def scanned(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.scan(lambda c, _: (c @ w, None), x, length=7)[0]

    assert count_macs(scanned, array(2, 3), array(3, 3)).total == 7 * 2 * 3 * 3
    looped = count_macs(lambda x, w: lax.fori_loop(0, 5, lambda i, c: c @ w, x), array(2, 3), array(3, 3))
    assert looped.total == 5 * 2 * 3 * 3


def test_cond() -> None:
    def choose(flag: jax.Array, x: jax.Array, w: jax.Array, same: bool) -> jax.Array:
        return lax.cond(flag, lambda: x @ w, lambda: x @ (2 * w) if same else x)

    args = array(dtype=jnp.bool_), array(2, 3), array(3, 3)
    assert count_macs(lambda *a: choose(*a, same=True), *args).total == 2 * 3 * 3
    with pytest.raises(UnknownPrimitiveError, match=r"cond: its branches cost \[0\.0, 18\.0\] MACs"):
        count_macs(lambda *a: choose(*a, same=False), *args)
    assert count_macs(lambda *a: choose(*a, same=False), *args, at_most=True).total == 2 * 3 * 3
    both = jax.make_jaxpr(lambda *a: choose(*a, same=False) + choose(*a, same=True))(*args).jaxpr
    assert jaxpr_macs(both, at_most=True) == 2 * 2 * 3 * 3


def test_stacking_multiplies_nothing() -> None:
    assert count_macs(lambda x: jnp.stack([x, *jnp.unstack(x[None])]), array(3, 3)).total == 0


def test_data_dependent_loops_raise() -> None:
    def sparse(x: jax.Array, mask: jax.Array, w: jax.Array) -> jax.Array:
        return map_active(lambda v: v.reshape(len(v), -1) @ w, x, active_set(mask), init=jnp.zeros_like(x))

    args = array(1, 5, 6, 2), array(1, 5, 6, dtype=jnp.bool_), array(18, 2)
    with pytest.raises(UnknownPrimitiveError, match=r"while: .*count the dense program"):
        count_macs(sparse, *args)
    # A loop that multiplies nothing is free, however often it runs.
    assert (
        count_macs(
            lambda n: lax.while_loop(lambda i: i < n, lambda i: i + 1, 0), array(dtype=jnp.int32)
        ).total
        == 0
    )


def test_unknown_primitives_raise() -> None:
    with pytest.raises(UnknownPrimitiveError, match="fft: its MACs are not known"):
        count_macs(jnp.fft.fft, array(8, dtype=jnp.complex64))
    # It holds a program, but one that runs once a device, not once.
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec()
    local = jax.shard_map(lambda a: a @ a, mesh=mesh, in_specs=spec, out_specs=spec)
    with pytest.raises(UnknownPrimitiveError, match="shard_map"):
        count_macs(local, array(3, 3))


def backbone(**config: Any) -> tuple[ResNet, Any]:
    network = ResNet(ResNetConfig(**config))
    variables = jax.eval_shape(network.init, jax.random.key(0), array(1, 32, 32, 3))
    return network, variables


@pytest.mark.parametrize(
    ("size", "stride_in_1x1", "macs"),
    [((424, 560), True, 9.03e10), ((424, 560), False, 9.03e10), ((400, 544), True, 8.27e10)],
)
def test_dilated_resnet50(size: tuple[int, int], stride_in_1x1: bool, macs: float) -> None:
    """PAG's backbone at its NYU size, from an independent count of each of its parts.

    That count has the stride of Res3 on the 3x3; on the 1x1 the whole is 0.4 % less.
    """
    network, variables = backbone(stride_in_1x1=stride_in_1x1)
    report = count_macs(network.apply, variables, array(1, *size, 3))
    np.testing.assert_allclose(report.total, macs, rtol=0.01)
    parts = {
        name: sum(value for scope, value in report.by_scope.items() if f"/{name}" in scope + "/")
        for name in ("stem_conv", "conv1", "conv2", "conv3", "projection")
    }
    assert sum(parts.values()) == report.total
    if not stride_in_1x1:
        expected = dict(stem_conv=0.056e10, conv1=1.68e10, conv2=4.32e10, conv3=1.92e10, projection=1.05e10)
        for name, value in expected.items():
            np.testing.assert_allclose(parts[name], value, rtol=0.01, err_msg=name)
        np.testing.assert_allclose(parts["conv2"] / report.total, 0.479, atol=5e-4)
        np.testing.assert_allclose((parts["conv2"] + parts["conv3"]) / report.total, 0.691, atol=5e-4)


def test_agrees_with_xla() -> None:
    """XLA counts 2 a product, adds element-wise work and leaves out padding taps (few at this size)."""
    network, variables = backbone(depth=26, width=32, output_stride=32)
    images = array(1, 513, 705, 3)
    ours = count_macs(network.apply, variables, images).flops
    theirs = jax.jit(network.apply).lower(variables, images).cost_analysis()["flops"]
    np.testing.assert_allclose(ours, theirs, rtol=0.05)
