"""Masks given to a system replace what its gates decide: a tiny PAG network, both modes."""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax.backbones.resnet import ResNetConfig
from dynpix_jax.core.routing import Routing
from dynpix_jax.core.trees import map_named
from dynpix_jax.flops import variable_shapes
from dynpix_jax.nn.gates import COMPUTE
from dynpix_jax.papers.pag.system import GateConfig, Pag, PagConfig, gated_blocks

SIZE = (17, 25)
DROP = 5  # three blocks are left: one with a projection, one without, one with a stride
BACKBONE = ResNetConfig(depth=26, width=8)
GATES = {
    "residual": GateConfig("pixel", "residual"),
    "layer": GateConfig("layer"),
}
IMAGES = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), np.uint8)


def variables_of(system: Pag, gate_bias: float):
    """Random everything; every gate open (large bias) or shut (large negative one)."""
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        if path.endswith(("gate/logits/bias", "gate/conv2/bias")):
            return jnp.zeros(2).at[COMPUTE].set(gate_bias)
        if path.endswith(("var", "scale")):
            return jnp.asarray(rng.uniform(0.5, 1.0, leaf.shape), leaf.dtype)
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 100
        return jnp.asarray(rng.normal(0, fan_in**-0.5, leaf.shape), leaf.dtype)

    return map_named(draw, variable_shapes(system))


@cache
def programs(kind: str):
    """The system, its variables with all gates shut, and its two modes under given masks, compiled."""
    system = Pag(PagConfig("pag", "boundaries", BACKBONE, GATES[kind], head_features=4, drop_blocks=DROP))

    @partial(jax.jit, static_argnames="mode")
    def run(variables, masks, mode):
        return system.apply(variables, IMAGES, {}, Routing(mode=mode, masks=masks))

    return system, variables_of(system, -1e3), run


def shapes(system: Pag):
    outputs = jax.eval_shape(system.apply, variable_shapes(system), jnp.asarray(IMAGES))
    return {name: mask.shape for name, mask in outputs.gates.items()}


@pytest.mark.parametrize("kind", GATES)
def test_masks_replace_the_gates_in_both_modes(kind):
    system, variables, run = programs(kind)
    rng = np.random.default_rng(2)
    masks = {name: rng.random(shape) < 0.5 for name, shape in shapes(system).items()}
    if kind == "layer":  # the first image keeps every other block, the second image the others
        keep = np.arange(len(masks)) % 2 == [[1], [0]]
        masks = {
            name: np.broadcast_to(keep[:, i, None, None], mask.shape)
            for i, (name, mask) in enumerate(masks.items())
        }
    assert tuple(sorted(masks)) == gated_blocks(system.config)
    dense, sparse = (run(variables, masks, mode) for mode in ("dense", "sparse"))
    for outputs in (dense, sparse):
        jax.tree.map(np.testing.assert_array_equal, outputs.gates, masks)
        # What the gates themselves say, shut as they are, is handed out beside it.
        assert set(outputs.probabilities) == set(masks)
        assert all(float(probability.max()) < 0.01 for probability in outputs.probabilities.values())
        assert outputs.updates == {}
    scale = float(jnp.abs(dense.predictions["boundaries"]).max())
    np.testing.assert_allclose(
        sparse.predictions["boundaries"], dense.predictions["boundaries"], atol=1e-4 * max(scale, 1.0)
    )
    # Positions in the masks do compute: without them every block is shut.
    shut = run(variables, {}, "dense")
    assert np.abs(shut.predictions["boundaries"] - dense.predictions["boundaries"]).max() > 1e-2 * scale


@pytest.mark.parametrize("kind", ["residual", "layer"])
def test_open_masks_give_the_plain_network(kind):
    """Shut gates under masks of ones compute what the same network computes without gates in force."""
    system, variables, run = programs(kind)
    masks = {name: np.ones(shape, bool) for name, shape in shapes(system).items()}
    got = run(variables, masks, "dense").predictions["boundaries"]
    plain = Pag(PagConfig("pag", "boundaries", BACKBONE, head_features=4, drop_blocks=DROP))
    backbone = {
        collection: {name: {k: v for k, v in block.items() if k != "gate"} for name, block in blocks.items()}
        for collection, blocks in ((c, tree["backbone"]) for c, tree in variables.items())
    }
    bare = {c: {**tree, "backbone": backbone[c]} for c, tree in variables.items()}
    expected = jax.jit(plain.apply)(bare, IMAGES).predictions["boundaries"]
    np.testing.assert_allclose(got, expected, atol=1e-4 * float(jnp.abs(expected).max()))


def test_gates_that_are_not_named_decide_for_themselves():
    system, variables, run = programs("residual")
    name, shape = next(iter(shapes(system).items()))
    outputs = run(variables, {name: np.ones(shape, bool)}, "sparse")
    assert {gate: float(mask.mean()) for gate, mask in outputs.gates.items()} == {
        gate: float(gate == name) for gate in outputs.gates
    }


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"res2_9": np.ones((2, 5, 7), bool)}, "masks: there is no gate 'res2_9'; did you mean 'res2_"),
        ({"res2_1": np.ones((2, 5, 6), bool)}, r"res2_1: a given mask must be bool \(2, 5, 7\)"),
        ({"res2_1": np.ones((2, 5, 7), np.float32)}, r"got float32 \(2, 5, 7\)"),
    ],
)
def test_wrong_masks(masks, message):
    system, variables, _ = programs("residual")
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda v: system.apply(v, IMAGES, {}, Routing(masks=masks)), variables)
