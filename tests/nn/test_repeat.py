"""Modules as a loop: values, gradients and running averages of the modules written out."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax.backbones.base import BuildOptions
from dynpix_jax.backbones.hrnet import HRNetConfig
from dynpix_jax.nn.conv import Conv
from dynpix_jax.nn.norm import BatchNorm
from dynpix_jax.nn.remat import remat_unit, rematerialized
from dynpix_jax.nn.repeat import repeated, repeats_as_loops


class Block(nn.Module):
    """A convolution with a norm."""

    def setup(self) -> None:
        self.conv, self.bn = Conv(4, 4), BatchNorm(4)

    @remat_unit("blocks")
    def __call__(self, x: jax.Array, shift: jax.Array, *, train: bool) -> jax.Array:
        return x + jax.nn.relu(self.bn(self.conv(x), train=train) + shift)


class Pair(nn.Module):
    """Two blocks on each of two maps, which then change places."""

    def setup(self) -> None:
        self.blocks = [[Block(name=f"block{place}_{index}") for index in range(2)] for place in range(2)]

    def __call__(self, xs: tuple[jax.Array, ...], shift: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
        first, second = (
            repeated(blocks, x, shift, train=train) for blocks, x in zip(self.blocks, xs, strict=True)
        )
        return second, first


class Network(nn.Module):
    """Three pairs."""

    def setup(self) -> None:
        self.pairs = [Pair() for _ in range(3)]

    def __call__(self, x: jax.Array, shift: jax.Array, *, train: bool) -> jax.Array:
        first, second = repeated(self.pairs, (x, 2 * x), shift, train=train)
        return first - second


def step(network: nn.Module, variables: Any, *arguments: jax.Array) -> Any:
    """Gradients, loss and running averages."""

    def loss(params: Any) -> tuple[jax.Array, Any]:
        given = {**variables, "params": params}
        y, moved = network.apply(given, *arguments, train=True, mutable=["batch_stats"])
        return sum(jnp.mean(jnp.sin(leaf) ** 2) for leaf in jax.tree.leaves(y)), moved

    (value, moved), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    return gradient, value, moved


def close(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for leaf, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-4, atol=1e-5 * np.abs(other).max() + 1e-6)


def drawn(key: jax.Array, tree: Any) -> Any:
    leaves, form = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    shapes = (leaf.shape for leaf in leaves)
    return form.unflatten([abs(jax.random.normal(*one)) / 4 for one in zip(keys, shapes, strict=True)])


@pytest.mark.parametrize("remat", ["none", "blocks"])
def test_a_loop_computes_what_the_modules_do(remat: str) -> None:
    x, shift = jax.random.normal(jax.random.key(0), (2, 6, 5, 4)), jnp.asarray(0.1)
    network = Network()
    with repeats_as_loops():  # nothing of them while parameters are made
        shapes = jax.eval_shape(partial(network.init, train=False), jax.random.key(1), x, shift)
    variables = drawn(jax.random.key(2), shapes)
    plain = step(network, variables, x, shift)
    with repeats_as_loops(), rematerialized(remat) as met:
        text = str(jax.make_jaxpr(partial(step, network))(variables, x, shift))
        close(step(network, variables, x, shift), plain)
    assert "scan" in text
    assert ("remat" in text) == bool(met) == (remat == "blocks")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["segmentation", "pose"])
def test_a_whole_hrnet(form: str) -> None:
    config = HRNetConfig(arch="w18s2", width=4, form=form)
    network = config.build(BuildOptions())
    x = jax.random.normal(jax.random.key(0), (2, 64, 64, 3))
    variables = drawn(jax.random.key(2), jax.eval_shape(network.init, jax.random.key(1), x))
    plain = step(network, variables, x)
    with repeats_as_loops():
        close(step(network, variables, x), plain)
