"""Depthwise convolutions, in the forms that they take on a CPU and on other platforms."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax.flops import count_macs
from dynpix_jax.ops.depthwise import depthwise_conv
from tests.ops.brute import conv_by_taps

SHAPE, FEATURES = (2, 7, 6), 3
GEOMETRIES = [((1, 1), (1, 1)), ((2, 2), (1, 1)), ((1, 1), (2, 2)), ((2, 1), (2, 3))]


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def each_channel(x, kernel, strides, dilation):
    """The definition: a convolution of one channel for each channel."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    single = [conv_by_taps(x[..., [c]], kernel[..., [c]], 0.0, strides, dilation) for c in range(x.shape[-1])]
    return np.concatenate(single, -1)


@pytest.mark.usefixtures("platform")
@pytest.mark.parametrize(("strides", "dilation"), GEOMETRIES)
def test_values_and_gradients(strides, dilation):
    """It is bilinear: its derivative in a direction is the convolution of that direction."""
    x, u, kernel, v = arrays(*[(*SHAPE, FEATURES)] * 2, *[(3, 5, 1, FEATURES)] * 2)
    run = jax.jit(partial(depthwise_conv, strides=strides, dilation=dilation))
    expected = each_channel(x, kernel, strides, dilation)
    np.testing.assert_allclose(run(x, kernel), expected, atol=1e-5)
    (weights,) = arrays(expected.shape)
    to_x, to_kernel = jax.grad(lambda x, kernel: (run(x, kernel) * weights).sum(), (0, 1))(x, kernel)
    for gradient, direction, moved in ((to_x, u, (u, kernel)), (to_kernel, v, (x, v))):
        slope = (each_channel(*moved, strides, dilation) * weights).sum()
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(("strides", "dilation"), GEOMETRIES)
def test_macs_by_hand(strides, dilation, platform):
    """A tap is a multiplication for each channel, whatever the program is made of."""
    arguments = jnp.zeros((*SHAPE, 8)), jnp.zeros((3, 3, 1, 8))
    run = partial(depthwise_conv, strides=strides, dilation=dilation)
    report = count_macs(run, *arguments)
    rows, columns = -(-SHAPE[1] // strides[0]), -(-SHAPE[2] // strides[1])
    assert report.total == SHAPE[0] * rows * columns * 9 * 8
    assert ("conv_general_dilated" in report.by_primitive) == (platform == "other")


def test_each_platform_gets_its_program():
    def program(platform):
        traced = jax.jit(depthwise_conv).trace(jnp.zeros((*SHAPE, 8)), jnp.zeros((3, 3, 1, 8)))
        return traced.lower(lowering_platforms=(platform,)).as_text()

    assert "feature_group_count" not in program("cpu")
    for platform in ("cuda", "rocm", "tpu"):
        assert "feature_group_count = 8" in program(platform)


@pytest.mark.parametrize(
    ("x", "kernel", "message"),
    [
        ((1, 4, 4, 3), (3, 3, 1, 4), r"kernel \(3, 3, 1, 4\) for x \(1, 4, 4, 3\)"),
        ((4, 4, 3), (3, 3, 1, 3), r"expected \(kh, kw, 1, C\), \(B, H, W, C\)"),
        ((1, 4, 4, 3), (2, 3, 1, 3), r"kernel of even size \(2, 3\)"),
    ],
)
def test_wrong_shapes_are_named(x, kernel, message):
    with pytest.raises(ValueError, match=message):
        depthwise_conv(jnp.zeros(x), jnp.zeros(kernel))
