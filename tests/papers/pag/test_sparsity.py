from __future__ import annotations

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from scipy.special import rel_entr

from dynpix_jax.core.routing import Routing
from dynpix_jax.nn.gates import LayerGate, LayerOptions, TopKOptions
from dynpix_jax.ops import gumbel_softmax_st
from dynpix_jax.papers.pag import sparsity
from dynpix_jax.papers.pag.config import GateConfig, PagConfig
from dynpix_jax.papers.pag.layers import ImageGate

slope = jax.grad(sparsity.bernoulli_kl, argnums=1)


def exact(rho: float, g: float) -> float:
    return rel_entr(rho, g) + rel_entr(1 - rho, 1 - g)


def test_golden_value():
    assert float(sparsity.bernoulli_kl(0.7, jnp.float32(0.5))) == pytest.approx(0.08228, abs=5e-6)


@given(st.floats(0, 1), st.floats(2e-4, 1 - 2e-4))
def test_agrees_with_the_definition(rho, g):
    assert float(sparsity.bernoulli_kl(rho, jnp.float32(g))) == pytest.approx(
        exact(rho, g), rel=1e-3, abs=2e-6
    )


@pytest.mark.parametrize("rho", [0.1, 0.5, 0.7, 0.95])
def test_zero_at_the_target(rho):
    assert float(sparsity.bernoulli_kl(rho, jnp.float32(rho))) == pytest.approx(0, abs=1e-6)
    assert float(slope(rho, jnp.float32(rho))) == pytest.approx(0, abs=1e-5)


@given(st.sampled_from([0.0, 0.05, 0.5, 0.7, 1.0]), st.sampled_from([0.0, 1e-30, 1e-5, 1 - 1e-5, 1.0]))
def test_finite_at_the_ends_and_pointing_to_the_target(rho, g):
    value, gradient = sparsity.bernoulli_kl(rho, jnp.float32(g)), slope(rho, jnp.float32(g))
    assert np.isfinite(value)
    assert np.isfinite(gradient)
    assert abs(float(gradient)) <= 1.001e4
    if 0 < rho < 1:
        # A step against the gradient moves the density towards rho.
        assert float(gradient) * (g - rho) > 0
        assert float(value) > 0.01


def test_guidance_of_marked_positions():
    """By hand: ln 2 and ln 4 at the marked positions of the first image; the third has none."""
    probability = jnp.asarray([[[0.5, 0.25], [0.1, 1.0]], [[0.1, 0.1], [0.1, 0.1]], [[0.1, 0.1], [0.1, 0.1]]])
    marked = jnp.zeros((3, 2, 2), bool).at[0, 0].set(True).at[1].set(True)
    layers, at = [probability, 0 * probability + 0.5], [marked, marked]
    valid = jnp.asarray([True, False, True])
    first, second = 1.5 * np.log(2) / 2, np.log(2) / 2  # means over two images
    loss = sparsity.guidance_loss(layers, at, valid=valid)
    assert float(loss) == pytest.approx(first + second, rel=1e-5)
    loss = sparsity.guidance_loss(layers, at, valid=valid, in_force=jnp.asarray([True, False]))
    assert float(loss) == pytest.approx(first, rel=1e-5)
    assert float(sparsity.guidance_loss([], [])) == 0.0


def test_guidance_pulls_at_marked_positions_alone():
    marked = jnp.asarray([[[True, False], [False, True]]])
    gradient = jax.grad(lambda p: sparsity.guidance_loss([p], [marked]))(jnp.full((1, 2, 2), 0.5))
    np.testing.assert_array_equal(gradient < 0, marked)
    np.testing.assert_array_equal(gradient[~marked], 0)
    # Finite where a gate is closed for certain.
    gradient = jax.grad(lambda p: sparsity.guidance_loss([p], [marked]))(jnp.zeros((1, 2, 2)))
    assert np.isfinite(gradient).all()


def test_convex_and_increasing_away_from_the_target():
    g = jnp.concatenate(
        [jnp.linspace(0, 3e-4, 40), jnp.linspace(4e-4, 1 - 4e-4, 60), 1 - jnp.linspace(3e-4, 0, 40)]
    )
    slopes = jax.vmap(lambda v: slope(0.7, v))(g)
    assert (np.diff(slopes) >= -1e-2).all()
    values = np.asarray(sparsity.bernoulli_kl(0.7, g))
    below, above = g < 0.7, g > 0.7
    assert (np.diff(values[below]) < 0).all()
    assert (np.diff(values[above]) > 0).all()


def test_traced_rho():
    compiled = jax.jit(sparsity.bernoulli_kl)
    assert float(compiled(jnp.float32(0.7), jnp.float32(0.5))) == pytest.approx(0.08228, abs=5e-6)


def test_mask_density():
    mask = np.zeros((3, 4, 5), bool)
    mask[1, :2] = True
    mask[2] = True
    np.testing.assert_allclose(sparsity.mask_density(jnp.asarray(mask)), [0, 0.5, 1])
    np.testing.assert_allclose(sparsity.mask_density(jnp.asarray(mask, jnp.bfloat16)), [0, 0.5, 1])


def masks(densities: list[float], positions: int) -> jax.Array:
    rows = [np.arange(positions) < round(d * positions) for d in densities]
    return jnp.asarray(np.array(rows, np.float32).reshape(len(densities), -1, 10))


def test_per_layer_loss_is_per_image_and_per_layer():
    layers = {"res2": masks([0.5, 0.9], 400), "res3": masks([0.2, 0.7], 100)}
    expected = (exact(0.7, 0.5) + exact(0.7, 0.9)) / 2 + (exact(0.7, 0.2) + exact(0.7, 0.7)) / 2
    assert float(sparsity.per_layer_sparsity_loss(layers, 0.7)) == pytest.approx(expected, abs=1e-5)
    assert float(sparsity.per_layer_sparsity_loss(list(layers.values()), 0.7)) == pytest.approx(
        expected, abs=1e-5
    )


def test_padding_images_do_not_count():
    layers = [masks([0.5, 0.9, 0.1], 400)]
    valid = jnp.array([True, True, False])
    expected = (exact(0.7, 0.5) + exact(0.7, 0.9)) / 2
    assert float(sparsity.per_layer_sparsity_loss(layers, 0.7, valid=valid)) == pytest.approx(
        expected, abs=1e-5
    )
    none = jnp.zeros(3, bool)
    assert float(sparsity.per_layer_sparsity_loss(layers, 0.7, valid=none)) == 0
    assert float(sparsity.global_sparsity_loss(layers, 0.7, valid=none)) == 0


def test_global_loss_admits_trivial_solutions():
    layers = {"big": masks([1.0], 300), "small": masks([0.0], 100)}
    # Exactly the target, though one layer is fully on and the other fully off: half of the layers (the
    # paper), 300 of 400 positions (the released code).
    assert float(sparsity.global_sparsity_loss(layers, 0.5)) == pytest.approx(0, abs=1e-6)
    assert float(sparsity.global_sparsity_loss(layers, 0.75, by_position=True)) == pytest.approx(0, abs=1e-6)
    assert float(sparsity.global_sparsity_loss(layers, 0.75)) == pytest.approx(exact(0.75, 0.5), abs=1e-5)
    assert float(sparsity.per_layer_sparsity_loss(layers, 0.75)) > 1
    # A layer whose gate is not inserted yet has no say.
    in_force = jnp.array([True, False])
    loss = sparsity.global_sparsity_loss(layers, 0.75, by_position=True, in_force=in_force)
    assert float(loss) == pytest.approx(float(sparsity.bernoulli_kl(0.75, jnp.float32(1.0))))


def test_mild_divergence_is_that_of_the_released_code():
    layers = [masks([0.5, 0.9], 400)]
    loss = sparsity.per_layer_sparsity_loss(layers, 0.7, divergence=sparsity.mild_divergence)
    # log(1 + (g1 - (1 - rho))^2) + log(1 + (g2 - rho)^2), g1 = 1 - g2.
    both = [np.log1p((1 - g - 0.3) ** 2) + np.log1p((g - 0.7) ** 2) for g in (0.5, 0.9)]
    assert float(loss) == pytest.approx(np.mean(both), abs=1e-6)


def test_no_masks():
    assert float(sparsity.per_layer_sparsity_loss({}, 0.5)) == 0
    assert float(sparsity.global_sparsity_loss({}, 0.5)) == 0


def test_gradient_reaches_the_gate_and_closes_it_when_too_dense():
    logits = jax.random.normal(jax.random.key(0), (2, 6, 6, 2)) + jnp.array([0.0, 3.0])

    def loss(z):
        gate = gumbel_softmax_st(jax.random.key(1), z, 1.0)[..., 1]
        return sparsity.per_layer_sparsity_loss([gate], 0.3)

    gradient = jax.grad(loss)(logits)
    assert (gradient[..., 1] > 0).all()
    assert (gradient[..., 0] < 0).all()


def test_gates_with_a_density_of_their_own_have_no_budget():
    """What their options say is what a network is counted at; rho and the loss of eq. 6 are refused."""
    gate = GateConfig(kind="top_k", options=TopKOptions(0.4))
    assert {"rho", "rho_start", "weight", "sparsity"} <= set(gate.unread())
    assert PagConfig("pag", "boundaries", gate=gate).target_density == 0.4
    learned = GateConfig(kind="pixel", rho=0.6)
    assert "rho" not in learned.unread()
    assert PagConfig("pag", "boundaries", gate=learned).target_density == 0.6


class _NarrowGate(LayerOptions):
    """Kind ``layer`` with a hidden width of 4."""

    def build(self, reads, features, strides=1):
        return LayerGate(features, hidden=4)


@pytest.mark.parametrize("rho", [0.3, 0.7])
def test_a_lone_layer_gate_keeps_to_rho_with_one_image_a_step(rho):
    """No task, nothing but the budget: the share of images that the arg-max runs ends at rho."""
    gate = ImageGate(_NarrowGate(), 4, momentum=0.95)
    images = jax.random.normal(jax.random.key(0), (500, 1, 1, 1, 4))
    variables = gate.init(jax.random.key(1), images[0], Routing())
    kernel = jax.random.normal(jax.random.key(2), (1, 1, 4, 2))  # images that differ to the gate
    params = {**variables["params"], "conv2": {**variables["params"]["conv2"], "kernel": kernel}}
    optimizer = optax.sgd(0.05)

    def step(state, scheduled):
        params, stats, opt_state = state
        image, temperature, key = scheduled

        def loss(params):
            decision, updates = gate.apply(
                {"params": params, "batch_stats": stats},
                image,
                Routing(train=True, temperature=temperature),
                rngs={"gumbel": key},
                mutable=["batch_stats"],
            )
            stored, relaxed = updates["batch_stats"], decision.probability
            yes = jnp.ones(1, bool)
            return sparsity.layer_rate_loss([stored["rate"]], [relaxed], rho, valid=yes, in_force=yes), stored

        gradient, stats = jax.grad(loss, has_aux=True)(params)
        change, opt_state = optimizer.update(gradient, opt_state)
        return (optax.apply_updates(params, change), stats, opt_state), None

    @jax.jit
    def train(params):
        draws = jax.random.randint(jax.random.key(3), (3000,), 0, len(images))
        scheduled = images[draws], jnp.linspace(1.0, 0.1, 3000), jax.random.split(jax.random.key(4), 3000)
        state = (params, variables["batch_stats"], optimizer.init(params))
        (params, stats, _), _ = jax.lax.scan(step, state, scheduled)
        decided = gate.apply({"params": params, "batch_stats": stats}, images[:, 0], Routing())
        return decided.mask, stats["rate"]

    decided, rate = train(params)
    assert abs(float(rate) - rho) < 0.1
    assert abs(float(decided.mean()) - rho) < 0.1
