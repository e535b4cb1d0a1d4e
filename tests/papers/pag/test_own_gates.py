"""Gates that PAG does not know by name: what they declare decides how they are trained and shifted."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax.backbones.resnet import ResNetConfig
from dynpix_jax.core.capabilities import HasGateBiases
from dynpix_jax.core.routing import Routing
from dynpix_jax.core.trees import map_named
from dynpix_jax.flops import variable_shapes
from dynpix_jax.papers.pag.system import GateConfig, Pag, PagConfig, gated_blocks

RNG = np.random.default_rng(0)
SIZE = (33, 41)
BATCH = {
    # Bright and dark photos, for gates that see the mean.
    "image": (RNG.integers(0, 128, (3, *SIZE, 3)) + np.array([0, 60, 127])[:, None, None, None]).astype("u1"),
    "boundaries": (RNG.uniform(size=(3, *SIZE)) < 0.1).astype(np.float32),
    "valid": np.array([True, True, False]),
}


def system_of(gate: GateConfig) -> Pag:
    return Pag(
        PagConfig("pag", "boundaries", ResNetConfig(depth=26, width=4), gate, head_features=4, drop_blocks=5)
    )


def variables_of(system: Pag):
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        if path.endswith(("var", "scale", "rate")):
            return jnp.asarray(rng.uniform(0.5, 1.0, leaf.shape), leaf.dtype)
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 100
        return jnp.asarray(rng.normal(0, fan_in**-0.5, leaf.shape), leaf.dtype)

    return map_named(draw, variable_shapes(system))


@pytest.fixture(scope="module")
def whole_images():
    system = system_of(GateConfig("tests.own_gates:Brightness", rho=0.3, weight=2.0))
    return system, variables_of(system)


def test_gates_of_whole_images_are_held_by_their_share_of_images(whole_images):
    """(rho - share)**2 with the moving average as share and the gradient of this batch, by hand."""
    system, variables = whole_images
    names, controls = gated_blocks(system.config), system.controls(jnp.int32(0), 10)
    rngs = {"gumbel": jax.random.key(0)}

    def terms(variables):
        return system.loss(variables, BATCH, rngs=rngs, controls=controls)[1]

    aux = jax.jit(terms)(variables)
    routing = Routing(train=True, temperature=controls["temperature"], noise=controls["noise"])
    outputs = jax.jit(lambda v: system.run(v, BATCH["image"], routing, rngs=rngs))(variables)
    expected = []
    for name in names:
        now = np.asarray(outputs.probabilities[name])
        assert now.shape == (3,)
        before = variables["batch_stats"]["backbone"][name]["gate"]["rate"]
        rate = 0.99 * before + 0.01 * now.mean()
        stored = aux.updates["batch_stats"]["backbone"][name]["gate"]["rate"]
        np.testing.assert_allclose(stored, rate, rtol=1e-5)
        expected.append((0.3 - rate) ** 2)
    np.testing.assert_allclose(aux.terms["sparsity"], 2.0 * np.mean(expected), rtol=1e-5)

    def sparsity(params):
        return terms({**variables, "params": params}).terms["sparsity"]

    # The last gate moves no other. Its probability is sigmoid(2 (lead - threshold)); image 3 is padding.
    gradient = jax.jit(jax.grad(sparsity))(variables["params"])["backbone"][names[-1]]["gate"]["threshold"]
    last = np.asarray(outputs.probabilities[names[-1]])[:2]
    slope = -2 * (0.3 - rate) * (-2 * last * (1 - last)).mean() / len(names)
    assert abs(slope) > 1e-3
    np.testing.assert_allclose(gradient, 2.0 * slope, rtol=1e-4)


def test_gates_of_whole_images_skip_whole_blocks(whole_images):
    system, variables = whole_images
    dense, sparse = (
        jax.jit(lambda v, routing=Routing(mode=mode): system.apply(v, BATCH["image"], {}, routing))(variables)
        for mode in ("dense", "sparse")
    )
    for name, mask in dense.gates.items():
        np.testing.assert_array_equal(mask, np.broadcast_to(np.asarray(mask)[:, :1, :1], mask.shape))
        np.testing.assert_array_equal(mask, sparse.gates[name])
    np.testing.assert_allclose(
        sparse.predictions["boundaries"], dense.predictions["boundaries"], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("key", ["scope", "sparsity", "sparsity_on"])
def test_what_gates_of_whole_images_do_not_read(key):
    assert key in GateConfig("tests.own_gates:Brightness", rho=0.3).unread()
    assert key not in GateConfig("tests.own_gates:Leaning", rho=0.3).unread()


def test_the_bias_that_a_gate_declares_is_calibrated():
    system = system_of(GateConfig("tests.own_gates:Leaning", "residual", rho=0.6, calibrate="each"))
    assert isinstance(system, HasGateBiases)
    variables = variables_of(system)
    masks = jax.jit(lambda v: system.apply(v, BATCH["image"]).gates)
    found, _ = system.calibrate(variables, lambda index: BATCH["image"][index][None], 3)
    before, after = masks(variables), masks(found)
    assert any(abs(float(mask.mean()) - 0.6) > 0.1 for mask in before.values())
    for name, mask in after.items():
        assert float(mask.mean()) == pytest.approx(0.6, abs=0.02)
        given, shifted = (v["params"]["backbone"][name]["gate"]["lean"] for v in (variables, found))
        assert shifted[0] == given[0]


def test_gates_that_declare_no_bias_have_none_to_shift():
    for kind in ("none", "layer", "top_k", "tests.own_gates:Brightness"):
        assert system_of(replace(GateConfig(kind), weight=0.0)).gate_biases == {}, kind
