from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax import ops
from dynpix_jax.flops import count_macs
from dynpix_jax.ops import winograd
from tests.ops.brute import conv_loop

RNG = np.random.default_rng(0)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


@pytest.mark.parametrize(
    ("size", "dilation", "tiles"),
    [((9, 11), (1, 1), 2048), ((9, 11), (1, 1), 5), ((7, 21), (2, 3), 2048), ((3, 2), (4, 1), 2048)],
)
def test_values_are_those_of_the_definition(size, dilation, tiles, monkeypatch):
    """Whole and cut tiles, phases of dilated kernels, chunks with idle tiles."""
    monkeypatch.setattr(winograd, "_TILES", tiles)
    x, kernel = normal(2, *size, 5), normal(3, 3, 5, 3)
    expected = conv_loop(np.float64(x), np.float64(kernel), dilation=dilation)
    got = jax.jit(winograd.winograd_conv, static_argnums=2)(x, kernel, dilation)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("tiles", [2048, 5])
def test_gradients_are_those_of_a_bilinear_map(tiles, monkeypatch):
    """<u, D(dx, dk)> = <dx, gradient> + <dk, gradient>; by the definition, in float64."""
    monkeypatch.setattr(winograd, "_TILES", tiles)
    x, dx, kernel, dk = normal(2, 6, 9, 3), normal(2, 6, 9, 3), normal(3, 3, 3, 4), normal(3, 3, 3, 4)
    upstream, dilation = normal(2, 6, 9, 4), (1, 2)

    @jax.jit
    def pull(x, kernel, upstream):
        return jax.vjp(lambda x, kernel: winograd.winograd_conv(x, kernel, dilation), x, kernel)[1](upstream)

    to_x, to_kernel = pull(x, kernel, upstream)
    for gradient, direction, first, second in ((to_x, dx, dx, kernel), (to_kernel, dk, x, dk)):
        moved = conv_loop(np.float64(first), np.float64(second), dilation=dilation)
        expected = (moved * upstream).sum()
        scale = np.linalg.norm(moved) * np.linalg.norm(upstream)
        assert abs(float((np.float64(gradient) * direction).sum()) - expected) < 1e-5 * scale


def test_wide_layers_on_a_cpu_only():
    """Elsewhere, with few channels or tiles, other types or the highest precision, XLA's convolution runs."""

    def program(shape, features, platform="cpu", dtype=jnp.float32, strides=(1, 1)):
        x = jax.ShapeDtypeStruct(shape, dtype)
        kernel = jax.ShapeDtypeStruct((3, 3, shape[-1], features), dtype)
        traced = jax.jit(lambda x, kernel: ops.conv(x, kernel, strides=strides)).trace(x, kernel)
        return "stablehlo.convolution" in traced.lower(lowering_platforms=(platform,)).as_text()

    wide = (1, 60, 80, 192)
    assert not program(wide, 192)
    assert program(wide, 192, "tpu")
    assert program(wide, 192, "cuda")
    assert program(wide, 64)
    assert program((1, 20, 20, 192), 192)
    assert program(wide, 192, dtype=jnp.bfloat16)
    assert program(wide, 192, strides=(2, 2))
    with jax.default_matmul_precision("highest"):
        assert program(wide, 192)


def test_gradients_pay_with_fewer_tiles():
    """The convolution is XLA's there, its gradients are not; elsewhere they are, too."""
    x = jax.ShapeDtypeStruct((1, 40, 40, 96), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 96, 96), jnp.float32)
    gradients = jax.jit(jax.grad(lambda x, kernel: (ops.conv(x, kernel) ** 2).sum(), (0, 1)))

    def convolutions(platform):
        lowered = gradients.trace(x, kernel).lower(lowering_platforms=(platform,))
        return lowered.as_text().count("stablehlo.convolution")

    assert convolutions("cpu") == 1
    assert convolutions("tpu") == 3


def test_macs_are_those_of_the_convolution():
    x = jax.ShapeDtypeStruct((1, 60, 80, 192), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 192, 256), jnp.float32)
    gradients = jax.grad(lambda x, kernel: (ops.conv(x, kernel) ** 2).sum(), (0, 1))
    macs = 60 * 80 * 9 * 192 * 256
    assert count_macs(ops.conv, x, kernel).by_primitive == {"conv_general_dilated": macs}
    assert count_macs(gradients, x, kernel).total == 3 * macs
