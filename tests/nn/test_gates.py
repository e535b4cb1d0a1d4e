"""Gates alone: what they hand out, and that the layer gate keeps to its budget with one image a step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dynpix_jax.core.routing import Routing
from dynpix_jax.nn.gates import COMPUTE, LayerGate, PixelGate, layer_rate_loss

COLLECTIONS = ["batch_stats", "intermediates"]


@pytest.mark.parametrize("rho", [0.3, 0.7])
def test_a_lone_layer_gate_keeps_to_rho_with_one_image_a_step(rho):
    """No task, nothing but the budget: the share of images that the arg-max runs ends at rho."""
    gate = LayerGate(4, hidden=4, momentum=0.95)
    images = jax.random.normal(jax.random.key(0), (500, 1, 1, 1, 4))
    variables = gate.init(jax.random.key(1), images[0], Routing())
    kernel = jax.random.normal(jax.random.key(2), (1, 1, 4, 2))  # images that differ to the gate
    params = {**variables["params"], "conv2": {**variables["params"]["conv2"], "kernel": kernel}}
    optimizer = optax.sgd(0.05)

    def step(state, scheduled):
        params, stats, opt_state = state
        image, temperature, key = scheduled

        def loss(params):
            _, updates = gate.apply(
                {"params": params, "batch_stats": stats},
                image,
                Routing(train=True, temperature=temperature),
                rngs={"gumbel": key},
                mutable=COLLECTIONS,
            )
            stored, relaxed = updates["batch_stats"], updates["intermediates"]["probability"]
            yes = jnp.ones(1, bool)
            return layer_rate_loss([stored["rate"]], [relaxed], rho, valid=yes, in_force=yes), stored

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
        return decided, stats["rate"]

    decided, rate = train(params)
    assert abs(float(rate) - rho) < 0.1
    assert abs(float(decided.mean()) - rho) < 0.1


def test_gates_hand_out_what_they_draw_from():
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 4))
    pixel, layer = PixelGate(4), LayerGate(4)
    for gate, shape in ((pixel, (2, 3, 5)), (layer, (2,))):
        variables = gate.init(jax.random.key(1), x, Routing())
        assert "intermediates" not in variables
        decided, handed_out = gate.apply(variables, x, Routing(), mutable=["intermediates"])
        probability = np.asarray(handed_out["intermediates"]["probability"])
        assert probability.shape == shape
        np.testing.assert_array_equal(decided, probability > 0.5)
    variables = pixel.init(jax.random.key(1), x, Routing())
    logits = pixel.apply(variables, x, method=lambda gate, x: gate.logits(x))
    _, handed_out = pixel.apply(variables, x, Routing(), mutable=["intermediates"])
    expected = jax.nn.softmax(logits)[..., COMPUTE]
    np.testing.assert_allclose(handed_out["intermediates"]["probability"], expected, rtol=1e-5)
