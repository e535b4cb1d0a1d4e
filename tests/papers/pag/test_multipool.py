"""MultiPool against plain NumPy, in both selections and both modes."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax.core.routing import Routing
from dynpix_jax.nn.gates import PixelOptions, choose
from dynpix_jax.nn.residual import Bottleneck, ResidualSpec
from dynpix_jax.papers.pag.layers import MultiPool, MultiPoolBlock

DILATIONS = (0, 1, 3)


def branch(x, params, stats, dilation):
    """Norm and ReLU of a dilated 3x3, by shifted copies."""
    h, w = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (dilation,) * 2, (dilation,) * 2, (0, 0)))
    y = sum(
        padded[:, u * dilation : u * dilation + h, v * dilation : v * dilation + w]
        @ params["conv"]["kernel"][u, v]
        for u in range(3)
        for v in range(3)
    )
    norm, moments = params["bn"], stats["bn"]
    return np.maximum(
        (y - moments["mean"]) / np.sqrt(moments["var"] + 1e-5) * norm["scale"] + norm["bias"], 0
    )


def image():
    return np.random.default_rng(1).normal(size=(2, 6, 7, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def variables():
    module = MultiPool(4, dilations=DILATIONS)
    shapes = jax.eval_shape(
        lambda key: module.init(key, jnp.zeros((1, 6, 7, 4)), Routing()), jax.random.key(0)
    )
    rng = np.random.default_rng(0)

    def draw(leaf):
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 0
        values = rng.normal(0, 1.5 / fan_in**0.5, leaf.shape) if fan_in else rng.uniform(0.2, 1.0, leaf.shape)
        return jnp.asarray(values, jnp.float32)

    variables = jax.tree.map(draw, shapes)
    # Logits centred over the image, so that every branch is some pixel's choice.
    average = MultiPool(4, dilations=DILATIONS, selection="average")
    _, weights = jax.jit(lambda v, x: average.apply(v, x, Routing()))(variables, image())
    variables["params"]["gate"]["conv3"]["bias"] -= jnp.log(weights).mean((0, 1, 2))
    return variables


@pytest.mark.parametrize("dilations", [DILATIONS, (1, 3)])
@pytest.mark.parametrize("selection", ["pag", "average"])
def test_sum_of_selected_branches(variables, selection, dilations):
    x = image()
    params = jax.tree.map(lambda a: a, variables["params"])
    last = params["gate"]["conv3"]
    params["gate"]["conv3"] = {name: leaf[..., -len(dilations) :] for name, leaf in last.items()}
    module = MultiPool(4, dilations=dilations, selection=selection)
    given = {**variables, "params": params}
    out, weights = jax.jit(lambda v, x: module.apply(v, x, Routing()))(given, x)
    pooled = [
        branch(x, variables["params"][f"dilation_{d}"], variables["batch_stats"][f"dilation_{d}"], d)
        if d
        else x
        for d in dilations
    ]
    np.testing.assert_allclose(np.sum(weights, axis=-1), 1.0, rtol=1e-6)
    if selection == "pag":
        assert set(np.unique(weights)) == {0.0, 1.0}
        assert (np.asarray(weights).mean((0, 1, 2)) > 0).all()  # every branch is somebody's choice
    else:
        assert weights.min() > 0.0
    np.testing.assert_allclose(out, sum(weights[..., i, None] * m for i, m in enumerate(pooled)), atol=1e-5)
    sparse, same = jax.jit(lambda v, x: module.apply(v, x, Routing(mode="sparse")))(given, x)
    np.testing.assert_array_equal(same, weights)
    np.testing.assert_allclose(sparse, out, atol=1e-5)


def test_original_convolution_starts_ahead():
    spec = ResidualSpec("res4_2", "res4", 16, 4, 16, dilation=3, frozen_norm=True)
    block = MultiPoolBlock(Bottleneck(spec), dilations=DILATIONS, original_bias=2.0)
    shapes = jax.eval_shape(
        lambda key: block.init(key, jnp.zeros((1, 4, 4, 16)), Routing()), jax.random.key(0)
    )
    names = set(shapes["params"]["multipool"])
    assert names == {"gate", "dilation_1", "dilation_3"}
    assert "conv2" not in shapes["params"]
    bias = jax.jit(lambda key: block.init(key, jnp.zeros((1, 4, 4, 16)), Routing()))(jax.random.key(0))
    np.testing.assert_array_equal(bias["params"]["multipool"]["gate"]["conv3"]["bias"], [0, 0, 2])


def test_training_trains_the_gate_and_its_norms(variables):
    module = MultiPool(4, dilations=DILATIONS)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 6, 7, 4)), jnp.float32)

    def run(params, key):
        (out, weights), updates = module.apply(
            {**variables, "params": params},
            x,
            Routing(train=True, temperature=0.5),
            rngs={"gumbel": key},
            mutable=["batch_stats"],
        )
        return (out**2).sum(), (weights, updates["batch_stats"])

    gradients, (weights, moments) = jax.jit(jax.grad(run, has_aux=True))(
        variables["params"], jax.random.key(0)
    )
    assert set(np.unique(weights)) == {0.0, 1.0}
    assert np.abs(gradients["gate"]["conv1"]["kernel"]).max() > 0
    assert (moments["gate"]["bn1"]["mean"] != variables["batch_stats"]["gate"]["bn1"]["mean"]).any()
    np.testing.assert_array_equal(  # the branches' moments are frozen
        moments["dilation_1"]["bn"]["mean"], variables["batch_stats"]["dilation_1"]["bn"]["mean"]
    )


def test_gated_block():
    """Where the gate is off there is the input; elsewhere, what the block without a gate gives."""
    spec = ResidualSpec("res4_2", "res4", 16, 4, 16, frozen_norm=True, rectified=True)

    def block(options):
        plain = Bottleneck(spec, parent=None)
        return MultiPoolBlock(plain, (0, 1, 2), options=options)

    x = np.abs(np.random.default_rng(3).normal(size=(1, 5, 6, 16))).astype(np.float32)
    mask = np.random.default_rng(4).random((1, 5, 6)) < 0.5
    gated = block(PixelOptions())
    variables = jax.jit(lambda key: gated.init(key, jnp.asarray(x), Routing()))(jax.random.key(0))

    @partial(jax.jit, static_argnames="mode")
    def run(x, mode):
        out, told = gated.apply(variables, x, Routing(mode=mode), given=jnp.asarray(mask))
        return out, told.mask

    out, told = run(x, "dense")
    np.testing.assert_array_equal(told, mask)
    sparse, _ = run(x, "sparse")
    np.testing.assert_allclose(sparse, out, atol=1e-5)

    everywhere, _ = jax.jit(lambda x: block(None).apply(variables, x, Routing()))(x)
    np.testing.assert_allclose(out, np.where(mask[..., None], everywhere, x), atol=1e-5)


class Noisy(nn.Module):
    """`choose`, and the noise that it draws."""

    def __call__(self, logits, routing):
        return choose(self, logits, routing)

    def noise(self, shape):
        return jax.random.gumbel(self.make_rng("gumbel"), shape)


def softmax(logits):
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


@pytest.mark.parametrize(("temperature", "scale"), [(1.0, 1.0), (0.5, 0.25)])
def test_soft_choice_is_the_relaxed_sample(temperature, scale):
    logits = np.random.default_rng(5).normal(size=(2, 3, 4)).astype(np.float32)
    rngs = {"gumbel": jax.random.key(6)}
    routing = Routing(train=True, soft=True, temperature=temperature, noise=scale)
    found = Noisy().apply({}, logits, routing, rngs=rngs)
    noise = np.asarray(Noisy().apply({}, logits.shape, rngs=rngs, method="noise"))
    np.testing.assert_allclose(found, softmax((logits + scale * noise) / temperature), rtol=1e-5)


def test_soft_choices_weigh_the_branches(variables):
    module, x = MultiPool(4, dilations=DILATIONS), image()

    @jax.jit
    def run(x, key):
        routing = Routing(train=True, soft=True, temperature=0.5)
        return module.apply(variables, x, routing, rngs={"gumbel": key}, mutable=["batch_stats"])[0]

    out, weights = run(x, jax.random.key(0))
    assert 0 < weights.min() < weights.max() < 1
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-6)
    params, moments = variables["params"], variables["batch_stats"]
    names = {d: f"dilation_{d}" for d in DILATIONS[1:]}
    pooled = [x, *(branch(x, params[name], moments[name], d) for d, name in names.items())]
    expected = sum(np.asarray(weights)[..., i, None] * one for i, one in enumerate(pooled))
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_soft_choice_needs_the_dense_mode():
    with pytest.raises(ValueError, match="needs hard gates"):
        Routing(train=True, mode="sparse", soft=True)
    with pytest.raises(ValueError, match="mode: 'fast'"):
        Routing(mode="fast")
    logits = jnp.asarray([[0.0, 1.0], [3.0, 1.0]])
    np.testing.assert_array_equal(choose(None, logits, Routing()), [[0, 1], [1, 0]])
