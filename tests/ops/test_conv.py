from __future__ import annotations

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax import ops
from tests.ops.brute import conv_by_taps, conv_loop

RNG = np.random.default_rng(0)


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("platform")
@pytest.mark.parametrize("window", [(1, 1), (3, 3), (1, 3), (5, 5)])
@pytest.mark.parametrize(
    ("strides", "dilation"), [((1, 1), (1, 1)), ((2, 2), (1, 1)), ((1, 1), (2, 3)), ((2, 1), (2, 2))]
)
@pytest.mark.parametrize("features", [1, 4])
def test_conv_pads_like_torch(window, strides, dilation, features):
    x, kernel = RNG.standard_normal((2, 7, 6, 3)), RNG.standard_normal((*window, 3, features))
    bias = RNG.standard_normal(features)
    got = ops.conv(
        jnp.asarray(x, jnp.float32),
        jnp.asarray(kernel, jnp.float32),
        strides=strides,
        dilation=dilation,
        bias=jnp.asarray(bias, jnp.float32),
    )
    close(got, conv_loop(x, kernel, bias=bias, strides=strides, dilation=dilation))
    assert got.shape[1:3] == ops.conv_output_size((7, 6), window, strides, dilation)


def test_conv_with_explicit_padding():
    x, kernel = RNG.standard_normal((1, 5, 5, 2)), RNG.standard_normal((3, 3, 2, 2))
    got = ops.conv(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32), padding=((0, 0), (0, 0)))
    close(got, conv_loop(x, kernel)[:, 1:-1, 1:-1])


@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (1, 2)])
@pytest.mark.parametrize("rank", [2, 4])
def test_pointwise(strides, rank):
    x, kernel, bias = (
        RNG.standard_normal((2, 5, 6, 3)),
        RNG.standard_normal((1, 1, 3, 4)),
        RNG.standard_normal(4),
    )
    got = ops.pointwise(
        jnp.asarray(x, jnp.float32),
        jnp.asarray(kernel if rank == 4 else kernel[0, 0], jnp.float32),
        jnp.asarray(bias, jnp.float32),
        strides,
    )
    close(got, conv_loop(x, kernel, bias=bias, strides=strides))


@pytest.mark.usefixtures("platform")
@pytest.mark.parametrize("features", [1, 4])
@pytest.mark.parametrize("window", [(3, 3), (2, 5)])
@pytest.mark.parametrize(
    ("strides", "dilation", "padding"),
    [
        ((1, 1), (1, 1), None),
        ((2, 2), (1, 1), None),
        ((1, 2), (3, 2), None),
        ((2, 3), (2, 1), ((0, 1), (3, 2))),
    ],
)
def test_gradients(window, strides, dilation, padding, features):
    """A convolution is bilinear: derivatives in a direction are convolutions of it, mixed ones of two."""
    x, u = RNG.standard_normal((2, 2, 9, 11, 3))
    kernel, v = RNG.standard_normal((2, *window, 3, features))

    how = dict(strides=strides, dilation=dilation, padding=padding)
    loop = partial(conv_by_taps, **how)
    weights = RNG.standard_normal(loop(x, kernel).shape)

    def total(x, kernel):
        return (ops.conv(x, kernel, **how) * weights).sum()

    arrays = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)
    to_x, to_kernel = jax.grad(total, (0, 1))(*arrays)
    assert (to_x * u).sum() == pytest.approx((loop(u, kernel) * weights).sum(), rel=1e-3, abs=1e-3)
    assert (to_kernel * v).sum() == pytest.approx((loop(x, v) * weights).sum(), rel=1e-3, abs=1e-3)
    mixed = jax.grad(lambda kernel: (jax.grad(total)(arrays[0], kernel) * u).sum())(arrays[1])
    assert (mixed * v).sum() == pytest.approx((loop(u, v) * weights).sum(), rel=1e-3, abs=1e-3)


def test_gradients_keep_the_order_of_axes_on_a_cpu():
    """XLA's fast convolution is that of NHWC and HWIO; within branches and loops it transposes nothing."""
    x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))

    def second(x, kernel):
        first = jax.grad(lambda x, kernel: (ops.conv(x, kernel, strides=(2, 2)) ** 2).sum(), (0, 1))
        return sum((leaf**2).sum() for leaf in first(x, kernel))

    def orders(function, platform):
        program = jax.jit(function).trace(x, kernel).lower(lowering_platforms=(platform,))
        return re.findall(r"dim_numbers = (\[.*?\]x\[.*?\]->\[.*?\])", program.as_text())

    gradient = jax.grad(second, (0, 1))
    found = orders(gradient, "cpu")
    assert len(found) > 5
    assert set(found) == set(orders(ops.conv, "cpu"))
    # Elsewhere JAX's own gradients, which transpose nothing but names.
    assert set(orders(gradient, "tpu")) == set(orders(gradient, "cuda")) > set(found)


def test_wrong_shapes_are_named():
    x = jnp.zeros((1, 4, 4, 3))
    with pytest.raises(ValueError, match=r"kernel must be \(1, 1, 3, Cout\) or \(3, Cout\).*got \(4, 2\)"):
        ops.pointwise(x, jnp.zeros((4, 2)))
    with pytest.raises(ValueError, match=r"x must be \(B, H, W, Cin\), got shape \(4, 3\)"):
        ops.pointwise(jnp.zeros((4, 3)), jnp.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"kernel must be \(kh, kw, 3, Cout\).*got \(3, 3, 5, 2\)"):
        ops.conv(x, jnp.zeros((3, 3, 5, 2)))
    with pytest.raises(ValueError, match=r"x must be \(B, H, W, Cin\)"):
        ops.conv(x[0], jnp.zeros((3, 3, 3, 2)))
