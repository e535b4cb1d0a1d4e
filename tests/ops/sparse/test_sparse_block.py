"""Chains of layers at active positions: every implementation against the definition, inputs of both signs."""

from __future__ import annotations

from functools import cache, partial

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.tree_util import Partial

from dynpix_jax.ops import winograd
from dynpix_jax.ops.sparse import (
    Affine,
    Convolution,
    Depthwise,
    ImplementationUnavailable,
    Interpolation,
    Relu,
    Shortcut,
    active_set,
    gather,
    interpreted,
    run_if_any,
    sparse_block,
    sparse_block_reference,
)

SHAPE, CHANNELS, FEATURES = (2, 5, 7), 4, 6
WEIGHTS = np.random.default_rng(0).standard_normal((*SHAPE, FEATURES))
IMPLEMENTATIONS = (None, "masked", "gather", "pallas_tpu", "pallas_gpu")
COMBINES = {
    "set": lambda affine: None,
    "residual": lambda affine: Shortcut(),
    "projected": lambda affine: Shortcut(affine),
    "linear": lambda affine: Shortcut(relu=False),
    "rectified": lambda affine: Shortcut(rectified=True),
}


def arrays(seed: int, *shapes: tuple[int, ...]) -> list[jax.Array]:
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def given_arrays(seed: int):
    """x, the layers of a bottleneck's inside, init, the affine map of a shortcut."""
    c, f = CHANNELS, FEATURES
    x, first, bias, *affine = arrays(seed, (*SHAPE, c), (3, 3, c, c), (c,), (c,), (c,))
    last, init, *shortcut = arrays(seed + 1, (1, 1, c, f), (*SHAPE, f), (f,), (f,))
    return x, (Convolution(first, bias), Affine(*affine), Relu(), Convolution(last)), init, Affine(*shortcut)


def with_gradients(run, combine: str):
    def loss(x, layers, init, affine, mask):
        init = jnp.abs(init) if combine == "rectified" else init
        y = run(x, mask, layers, combine=COMBINES[combine](affine), init=init)
        return (y * WEIGHTS).sum(), y

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))


@cache
def definition(combine: str):
    return with_gradients(sparse_block_reference, combine)


@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_values_and_gradients_are_those_of_the_definition(implementation, combine):
    run = with_gradients(partial(sparse_block, implementation=implementation), combine)

    @settings(max_examples=4)
    @given(st.integers(0, 99), st.sampled_from([0.0, 0.4, 1.0]), st.sampled_from([0.01, 1.0, 10.0]))
    def check(seed, density, scale):
        x, *others = given_arrays(seed)
        mask = jnp.asarray(np.random.default_rng(seed).random(SHAPE) < density)
        with interpreted():
            found = run(scale * x, *others, mask)
        expected = definition(combine)(scale * x, *others, mask)
        largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
        close = partial(np.testing.assert_allclose, rtol=1e-3, atol=2e-5 * largest)
        jax.tree.map(close, found, expected)

    check()


@pytest.mark.parametrize("combine", ["set", "residual", "projected"])
def test_a_single_convolution_keeps_its_shortcut_where_all_is_active(combine):
    """By default it then runs everywhere, without a mask."""
    run = with_gradients(sparse_block, combine)
    x, _, init, affine = given_arrays(5)
    (kernel,) = arrays(6, (3, 3, CHANNELS, FEATURES))
    for density in (0.4, 1.0):
        mask = jnp.asarray(np.random.default_rng(0).random(SHAPE) < density)
        arguments = (x, (Convolution(kernel),), init, affine, mask)
        close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
        jax.tree.map(close, run(*arguments), definition(combine)(*arguments))
    narrow = sparse_block(x.astype(jnp.bfloat16), mask, (Convolution(kernel),), init=init)
    assert narrow.dtype == jnp.float32


def test_chains_whose_convolution_runs_by_winograd(monkeypatch):
    """From the break-even on, the convolution runs everywhere and the rest at active positions."""
    monkeypatch.setattr(winograd, "pays", lambda x, kernel, dilation, **_: kernel.shape[:2] == (3, 3))
    monkeypatch.setattr(gather, "break_even", lambda channels, *, winograd: 0.3)
    run = with_gradients(sparse_block, "rectified")
    for density in (0.2, 0.5):
        x, *others = given_arrays(0)
        mask = jnp.asarray(np.random.default_rng(0).random(SHAPE) < density)
        expected = definition("rectified")(x, *others, mask)
        largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
        close = partial(np.testing.assert_allclose, rtol=1e-3, atol=2e-5 * largest)
        jax.tree.map(close, run(x, *others, mask), expected)


@pytest.mark.parametrize("implementation", [None, "masked", "gather"])
def test_depthwise_and_functions_of_positions(implementation):
    """What a ConvNeXt's block is made of; written out per position here."""
    c = CHANNELS
    x, kernel, widen, scale, init = arrays(3, (*SHAPE, c), (3, 3, 1, c), (1, 1, c, c), (c,), (*SHAPE, c))
    mask = jnp.asarray(np.random.default_rng(0).random(SHAPE) < 0.5)

    def normalise(scale, x):
        return scale * x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1)

    def written_out(x, kernel, widen, scale, init, combine):
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        taps = [(i, j) for i in range(3) for j in range(3)]
        y = sum(padded[:, i : i + SHAPE[1], j : j + SHAPE[2]] * kernel[i, j, 0] for i, j in taps)
        y = jax.nn.gelu(normalise(scale, y) @ widen[0, 0])
        if combine is None:
            return jnp.where(mask[..., None], y, init)
        total = jnp.where(mask[..., None], init + y, init)
        return jnp.maximum(total, 0) if combine.relu else total

    def sparse(x, kernel, widen, scale, init, combine):
        layers = (Depthwise(kernel), Partial(normalise, scale), Convolution(widen), Partial(jax.nn.gelu))
        active = active_set(mask)
        return sparse_block(x, active, layers, combine=combine, init=init, implementation=implementation)

    def squares(arrays, combine, run):  # whose gradients have both signs
        y = run(*arrays, combine)
        return (y**2).sum(), y

    for combine in (None, Shortcut(relu=False), Shortcut()):
        found, expected = (
            jax.jit(jax.value_and_grad(partial(squares, combine=combine, run=run), has_aux=True))(
                (x, kernel, widen, scale, init)
            )
            for run in (sparse, written_out)
        )
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-3), found, expected)


def test_what_cannot_run_is_named():
    x, layers, init, _ = given_arrays(0)
    mask = jnp.ones(SHAPE, bool)
    depthwise = (Depthwise(jnp.ones((3, 3, 1, CHANNELS))),)
    with interpreted(), pytest.raises(ImplementationUnavailable, match="this one is depthwise"):
        sparse_block(x, mask, depthwise, implementation="pallas_tpu")
    for wrong, message in (
        ((), "begins with a convolution, got none"),
        (layers[1:], "begins with a convolution, got Affine"),
        ((layers[0], layers[0]), "functions of single positions after the first"),
        ((layers[0], Interpolation(jnp.float32(1))), "functions of single positions after the first"),
    ):
        with pytest.raises(ValueError, match=message):
            sparse_block(x, mask, wrong)
    with pytest.raises(ValueError, match=r"init must be \(2, 5, 7, 6\), got \(2, 5, 7, 5\)"):
        sparse_block(x, mask, layers, init=init[..., 1:])
    with pytest.raises(ValueError, match="init must be the map that a shortcut comes from"):
        sparse_block(x, mask, layers, combine=Shortcut())


@pytest.mark.parametrize("implementation", ["masked", "gather"])
def test_bfloat16_maps_and_float32_weights(implementation):
    """As networks call it in bfloat16: the definition to rounding, for any density and scale."""
    run = jax.jit(partial(sparse_block, implementation=implementation))

    @settings(max_examples=6)
    @given(st.integers(0, 99), st.sampled_from([0.0, 0.4, 1.0]), st.sampled_from([0.01, 1.0, 100.0]))
    def check(seed, density, scale):
        x, layers, init, affine = given_arrays(seed)
        x, init = (scale * x).astype(jnp.bfloat16), init.astype(jnp.bfloat16)
        mask = jnp.asarray(np.random.default_rng(seed).random(SHAPE) < density)
        found = run(x, mask, layers, combine=Shortcut(affine), init=init)
        assert found.dtype == jnp.bfloat16
        expected = sparse_block_reference(x, mask, layers, combine=Shortcut(affine), init=init)
        wide, expected = (np.asarray(y, np.float32) for y in (found, expected))
        np.testing.assert_allclose(wide, expected, atol=2**-6 * np.abs(expected).max())

    check()


@pytest.mark.parametrize(("implementation", "skips"), [(None, True), ("gather", True), ("masked", False)])
def test_a_layer_that_no_image_keeps_does_not_run(implementation, skips):
    ran = []

    def update():
        jax.debug.callback(lambda: ran.append(True))
        return jnp.ones(3)

    def run(keep):
        ran.clear()
        y = run_if_any(keep, update, lambda: jnp.zeros(3), name="res2_1", implementation=implementation)
        jax.effects_barrier()
        return float(y[0]), bool(ran)

    assert run(jnp.array([0.0, 1.0])) == (1.0, True)
    value, ran_at_all = run(jnp.zeros(2))
    assert ran_at_all == (value == 1.0) == (not skips)


def test_what_cannot_skip_whole_images():
    def run(implementation):
        return run_if_any(jnp.ones(1), jnp.ones, jnp.ones, name="res2_1", implementation=implementation)

    with pytest.raises(ImplementationUnavailable, match="'pallas_gpu' cannot run: the gate of res2_1"):
        run("pallas_gpu")
    with pytest.raises(ValueError, match="unknown implementation 'gathr'; did you mean 'gather'"):
        run("gathr")
