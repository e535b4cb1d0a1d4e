"""Gates alone: what they decide."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax.core.routing import Routing
from dynpix_jax.nn.gates import (
    COMPUTE,
    GATES,
    LayerGate,
    PixelGate,
    PixelOptions,
    RandomOptions,
    TopKOptions,
)


def test_gates_tell_what_they_draw_from():
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 4))
    pixel, layer = PixelGate(4), LayerGate(4)
    for gate, shape in ((pixel, (2, 3, 5)), (layer, (2,))):
        variables = gate.init(jax.random.key(1), x, Routing())
        decision = gate.apply(variables, x, Routing())
        assert decision.probability.shape == shape
        np.testing.assert_array_equal(decision.mask, decision.probability > 0.5)
    variables = pixel.init(jax.random.key(1), x, Routing())
    logits = pixel.apply(variables, x, method=lambda gate, x: gate.logits(x))
    expected = jax.nn.softmax(logits)[..., COMPUTE]
    np.testing.assert_allclose(pixel.apply(variables, x, Routing()).probability, expected, rtol=1e-5)


def centred(is_centred: bool):
    """A pixel gate on features with a mean, and its variables."""
    x = 1.0 + jax.random.normal(jax.random.key(0), (2, 3, 5, 4))
    gate = PixelGate(4, options=PixelOptions(init_std=0.5, open_bias=0.7, centred=is_centred))
    return gate, x, gate.init(jax.random.key(1), x, Routing())


def test_a_centred_gate_sees_differences_alone():
    """What all positions of an image share changes nothing; the mean margin is that of the biases."""
    gate, x, variables = centred(True)
    shared = jnp.arange(8.0).reshape(2, 1, 1, 4)
    first, second = (gate.apply(variables, images, Routing()).probability for images in (x, x + shared))
    np.testing.assert_allclose(first, second, rtol=1e-5)
    margin = np.log(first / (1 - first))
    np.testing.assert_allclose(margin.mean((1, 2)), 0.7, rtol=1e-4)
    assert margin.std() > 0.1


@pytest.mark.parametrize("is_centred", [True, False])
def test_a_budget_moves_the_bias_of_a_centred_gate(is_centred):
    """Where no position is preferred yet, the gradient of the density reaches the kernel of others alone."""
    gate, x, variables = centred(is_centred)
    params = jax.tree.map(jnp.zeros_like, variables["params"])

    def density(params):
        return gate.apply({"params": params}, x, Routing()).probability.mean()

    gradient = jax.grad(density)(params)["logits"]
    assert abs(float(gradient["bias"][COMPUTE])) == pytest.approx(0.25)  # p (1 - p)
    size = float(jnp.abs(gradient["kernel"]).max())
    assert size < 1e-6 if is_centred else size > 0.1


PROBABILITIES = np.array([[0.998, 0.001, 0.001], [0.5, 0.25, 0.25], [1 / 3] * 3])
LOGITS = jnp.asarray(np.log(PROBABILITIES)[None, None] + 7.0, jnp.float32)


def by(kind: str, **options):
    """(logits, mask before) -> where a gate of predictions computes on: bool."""
    gate = GATES.resolve(kind, "kind")(**options).build("logits", 3)
    return lambda logits, before=None: gate.apply({}, logits, Routing(), before=before).mask > 0.5


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("confidence", dict(measure="max_probability", threshold=0.9), [False, True, True]),
        ("confidence", dict(measure="max_probability", threshold=1.0), [True, True, True]),
        ("confidence", dict(measure="max_probability", threshold=0.0), [False, False, False]),
        ("confidence", dict(measure="entropy", threshold=0.5), [False, True, True]),
        ("confidence", dict(measure="entropy", threshold=1.05), [False, False, True]),
        ("confidence", dict(measure="max_value", threshold=6.5), [True, False, False]),
        ("top_k", dict(density=2 / 3), [False, True, True]),
        ("top_k", dict(density=1 / 3), [False, False, True]),
        ("top_k", dict(density=0.0), [False, False, False]),
        ("random", dict(density=1.0), [True, True, True]),
    ],
)
def test_where_to_compute_on(kind, options, expected):
    assert by(kind, **options)(LOGITS)[0, 0].tolist() == expected


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("confidence", dict(measure="max_probability", threshold=0.6)),
        ("confidence", dict(measure="entropy", threshold=0.7)),
        ("confidence", dict(measure="max_value", threshold=0.5)),
        ("top_k", dict(density=0.6)),
        ("random", dict(density=0.6)),
    ],
)
def test_masks_only_shrink(kind, options):
    rng = np.random.default_rng(0)
    step = jax.jit(by(kind, **options))
    mask = None
    for _ in range(3):
        logits = jnp.asarray(rng.normal(size=(2, 8, 10, 3)), jnp.float32)
        after = step(logits, before=mask)
        if mask is not None:
            assert not np.any(after & ~mask)
        if kind == "random":  # the same positions each time
            assert np.all(np.sum(after, (1, 2)) == 48)
        elif kind == "top_k":
            assert np.all(np.sum(after, (1, 2)) <= 48)
            assert mask is not None or np.all(np.sum(after, (1, 2)) == 48)
        mask = after


def test_random_positions_are_drawn_anew_in_training():
    gate = RandomOptions(0.5).build("features", 3, strides=2)
    x = jnp.zeros((1, 9, 10, 3))
    train = Routing(train=True)
    first, second = (gate.apply({}, x, train, rngs={"gumbel": jax.random.key(n)}).mask for n in (0, 1))
    assert first.shape == (1, 5, 5)
    assert np.any(first != second)
    np.testing.assert_array_equal(gate.apply({}, x, Routing()).mask, gate.apply({}, x, Routing()).mask)
    before = jnp.arange(25).reshape(1, 5, 5) < 15
    later = gate.apply({}, x, train, before=before, rngs={"gumbel": jax.random.key(2)}).mask > 0.5
    assert np.sum(later) == 12  # half of all positions, rounded to even, among those that are left
    assert not np.any(later & ~before)


def test_random_positions_of_two_gates_differ():
    class Pair(nn.Module):
        def setup(self):
            self.gates = [RandomOptions(0.5).build("features", 3) for _ in range(2)]

        def __call__(self, x):
            return [gate(x, Routing()).mask for gate in self.gates]

    first, second = Pair().apply({}, jnp.zeros((1, 8, 8, 3)))
    assert np.sum(first) == np.sum(second) == 32
    assert np.any(first != second)


def test_top_k_of_features_learns_its_score():
    """A fixed share of each image; the score's kernel has a gradient through the mask."""
    gate = TopKOptions(0.25).build("features", 3)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 5, 3)), jnp.float32)
    variables = gate.init(jax.random.key(0), x, Routing())

    def loss(params):
        mask = gate.apply({"params": params}, x, Routing(train=True)).mask
        return (mask * x[..., 0]).sum(), mask

    gradient, mask = jax.grad(loss, has_aux=True)(variables["params"])
    assert set(np.unique(mask)) == {0.0, 1.0}
    np.testing.assert_array_equal(mask.sum((1, 2)), [5, 5])
    score = x @ variables["params"]["score"]["kernel"][0, 0, :, 0]
    for values, taken in zip(score, mask > 0.5, strict=True):
        assert values[taken].min() > values[~taken].max()
    assert np.abs(gradient["score"]["kernel"]).max() > 0


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("confidence", dict(threshold=-1.0), "threshold: -1.0"),
        ("confidence", dict(threshold=1.5), "threshold: 1.5; expected a probability"),
        ("top_k", dict(density=1.5), "density: 1.5"),
        ("random", dict(density=-0.1), "density: -0.1"),
    ],
)
def test_wrong_options(kind, options, message):
    with pytest.raises(ValueError, match=message):
        GATES.resolve(kind, "kind")(**options)
