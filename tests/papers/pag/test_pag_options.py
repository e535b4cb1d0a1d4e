"""Options of PAG: Res6, several MultiPools at once, losses in place of eq. 5, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax import papers
from dynpix_jax.backbones.resnet import ResNetConfig
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.routing import Routing
from dynpix_jax.core.system import Outputs
from dynpix_jax.core.trees import map_named
from dynpix_jax.flops import dense_report, gated_macs, variable_shapes
from dynpix_jax.papers.pag.sparsity import mild_divergence
from dynpix_jax.papers.pag.system import GateConfig, MultiPoolConfig, Pag, PagConfig, gated_blocks

SIZE = (33, 49)
POOL = MultiPoolConfig(blocks=("res5_2", "res6"), dilations=(0, 1, 4))
CONFIG = PagConfig(
    "pag", "boundaries", ResNetConfig(depth=26, width=8), multipool=POOL, head_features=4, res6=True
)
IMAGES = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), np.uint8)


def fresh(config: PagConfig, seed: int):
    """Random variables, positive where they are scales or variances; quicker than a compiled `init`."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path.endswith(("var", "scale")):
            return jnp.asarray(rng.uniform(0.5, 1.0, leaf.shape), leaf.dtype)
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 100
        return jnp.asarray(rng.normal(0, fan_in**-0.5, leaf.shape), leaf.dtype)

    return map_named(draw, variable_shapes(Pag(config)))


@pytest.fixture(scope="module")
def variables():
    """Of the network with Res6 but without a MultiPool: what a base stage leaves."""
    return fresh(replace(CONFIG, multipool=MultiPoolConfig()), 0)


def test_several_multipools_at_once_start_from_the_base_network(variables):
    """res5_2 and Res6: branches are copies of their 3x3; sparse mode gives the same."""
    system = Pag(CONFIG)
    adapted = system.adapt(variables, fresh(CONFIG, 1))
    for dilation in (1, 4):
        branch = adapted["params"]["res6"]["multipool"][f"dilation_{dilation}"]
        conv2 = variables["params"]["res6"]["conv2"]["kernel"]
        np.testing.assert_array_equal(branch["conv"]["kernel"], conv2)
    np.testing.assert_array_equal(
        adapted["params"]["res6"]["conv1"]["kernel"], variables["params"]["res6"]["conv1"]["kernel"]
    )
    run = jax.jit(system.apply)
    dense, sparse = (run(adapted, IMAGES, {}, Routing(mode=mode)) for mode in ("dense", "sparse"))
    assert set(dense.selections) == set(POOL.blocks)
    np.testing.assert_allclose(
        sparse.predictions["boundaries"], dense.predictions["boundaries"], atol=1e-4, rtol=1e-4
    )
    shares = {name: float(share.mean()) for name, share in system.executed_shares(dense).items()}
    assert set(shares) == set(system.gated)


def test_bare_weights_leave_res6_fresh(variables):
    """An ImageNet ResNet knows no Res6; its MultiPool branches start by themselves."""
    given = {name: tree["backbone"] for name, tree in variables.items()}
    start = fresh(CONFIG, 2)
    adapted = Pag(CONFIG).adapt(given, start)
    jax.tree.map(np.testing.assert_array_equal, adapted["params"]["res6"], start["params"]["res6"])


def test_res6_is_counted():
    """3x3 from 256 to 64 and from 64 to 64 at 5x7 positions; its decoder reads 64 channels, not 256."""
    base = replace(CONFIG, multipool=MultiPoolConfig(), res6=False)
    plain = replace(base, res6=True)
    more = dense_report(Pag(plain), SIZE).total - dense_report(Pag(base), SIZE).total
    assert more == 35 * (9 * 256 * 64 + 9 * 64 * 64 - (256 - 64) * 4)
    macs = gated_macs(Pag(CONFIG), SIZE)
    assert {name: n for name, n in macs.items() if name.startswith("res6")} == {
        f"res6/dilation_{d}": 35 * 9 * 64 * 64 for d in (1, 4)
    }


def test_without_res6_nothing_changes():
    shapes = variable_shapes(Pag(replace(CONFIG, multipool=MultiPoolConfig(), res6=False)))
    assert set(shapes["params"]) == {"backbone", "head"}
    assert set(shapes["params"]["head"]) == {"res2", "res3", "res4", "res5", "fusion"}


def test_gates_of_some_stages():
    """Blocks of the other stages are those of a network without gates; sparse mode gives the same."""
    gate = GateConfig("pixel", scope="residual", stages=("res4",))
    config = replace(CONFIG, multipool=MultiPoolConfig(), res6=False, gate=gate, drop_blocks=2)
    system = Pag(config)
    assert gated_blocks(config) == ("res4_1", "res4_2")
    base = variable_shapes(Pag(replace(config, gate=GateConfig())))["params"]["backbone"]
    found = variable_shapes(system)["params"]["backbone"]
    assert {name for name in found if set(found[name]) != set(base[name])} == {"res4_1", "res4_2"}
    variables = fresh(config, 3)
    run = jax.jit(system.apply)
    dense, sparse = (run(variables, IMAGES, {}, Routing(mode=mode)) for mode in ("dense", "sparse"))
    assert {name.split("/")[0] for name in dense.gates} == {"res4_1", "res4_2"}
    np.testing.assert_allclose(
        sparse.predictions["boundaries"], dense.predictions["boundaries"], atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("stages", "changes", "message"),
    [
        (("res5",), {"drop_blocks": 2}, r"gate\.stages: 'res5' is no stage of the kept blocks"),
        (("res6",), {}, r"gate\.stages: 'res6' is no stage of the kept blocks"),
        (
            ("res5",),
            {"multipool": MultiPoolConfig(blocks=("res5_1", "res5_2"))},
            "no block of 'res5' can have",
        ),
        (
            ("res3",),
            {"multipool": MultiPoolConfig(blocks=("res5_2",), gated=True)},
            r"multipool\.gated: gate\.stages leaves out the stage of res5_2",
        ),
    ],
)
def test_stages_that_have_no_gates(stages, changes, message):
    base = replace(CONFIG, multipool=MultiPoolConfig(), res6=False)
    with pytest.raises(ValueError, match=message):
        replace(base, gate=GateConfig("pixel", scope="residual", stages=stages), **changes)


def test_a_stage_twice():
    with pytest.raises(ValueError, match=r"stages: .*expected each once"):
        GateConfig("pixel", stages=("res3", "res3"))


@pytest.mark.parametrize("on", ["hard", "soft"])
@pytest.mark.parametrize("kind", ["per_layer", "mild", "global", "combined"])
def test_sparsity_losses(kind, on):
    """From masks or probabilities alone; two gates in force, of 4 and 12 positions."""
    gate = GateConfig("pixel", sparsity=kind, sparsity_on=on, weight=2.0)
    system = Pag(replace(CONFIG, multipool=MultiPoolConfig(), gate=gate, drop_blocks=6))
    small, big = gated_blocks(system.config)
    density = {"hard": (0.25, 0.5), "soft": (0.4, 0.6)}
    maps = {
        name: {
            small: jnp.full((1, 2, 2), 0.4) if name == "soft" else jnp.array([[[1.0, 0], [0, 0]]]),
            big: jnp.full((1, 3, 4), 0.6) if name == "soft" else jnp.arange(12.0).reshape(1, 3, 4) % 2,
        }
        for name in density
    }
    outputs = Outputs({}, maps["hard"], {}, probabilities=maps["soft"])
    controls = {"rho": jnp.asarray(0.7), "inserted": jnp.asarray(2.0)}
    value = system._sparsity_loss(outputs, jnp.ones(1, bool), controls)
    a, b = density[on]

    def divergence(g: float) -> float:
        return 0.7 * np.log(0.7 / g) + 0.3 * np.log(0.3 / (1 - g))

    expected = {
        "per_layer": divergence(a) + divergence(b),
        "mild": float(mild_divergence(0.7, a) + mild_divergence(0.7, b)),
        "global": divergence((a + b) / 2),
        "combined": divergence((4 * a + 12 * b) / 16),
    }
    np.testing.assert_allclose(value, 2.0 * expected[kind], rtol=1e-5)


def test_guidance_reads_the_cells_of_rare_pixels():
    """A boundary at pixel (16, 24) is cell (2, 3) of Res3, whose cells lie at multiples of 8 pixels."""
    gate = GateConfig("pixel", stages=("res3",), guidance=3.0)
    system = Pag(replace(CONFIG, multipool=MultiPoolConfig(), gate=gate))
    names = gated_blocks(system.config)
    labels = jnp.zeros((1, *SIZE)).at[0, 16, 24].set(1.0)
    batch = {"boundaries": labels, "valid": jnp.ones(1, bool)}
    elsewhere = jnp.full((1, 5, 7), 0.3)
    asked = elsewhere.at[0, 2, 3].set(0.5)

    def loss(probability, inserted):
        outputs = Outputs({}, {}, {}, probabilities=dict.fromkeys(names, probability))
        return float(system._guidance_loss(outputs, batch, {"inserted": jnp.asarray(inserted)}))

    assert loss(asked, float(len(names))) == pytest.approx(3.0 * len(names) * np.log(2), rel=1e-5)
    assert loss(asked, 1.0) == pytest.approx(3.0 * np.log(2), rel=1e-5)
    assert loss(elsewhere.at[0, 2, 3].set(1.0), 1.0) == 0.0


def test_guidance_is_a_term_of_the_loss():
    """It is added to the task's loss and to that of the density."""
    gate = GateConfig("pixel", scope="residual", stages=("res3",), guidance=0.5)
    config = replace(CONFIG, multipool=MultiPoolConfig(), res6=False, gate=gate, drop_blocks=4)
    system = Pag(config)
    labels = np.zeros((2, *SIZE), np.float32)
    labels[:, 10] = 1
    batch = {"image": IMAGES, "boundaries": labels, "valid": np.ones(2, bool)}
    controls = system.controls(jnp.asarray(0), 10)
    total, aux = system.loss(fresh(config, 4), batch, rngs={"gumbel": jax.random.key(0)}, controls=controls)
    assert aux.terms["guidance"] > 0
    parts = (aux.terms[name] for name in ("boundaries", "sparsity", "guidance"))
    np.testing.assert_allclose(total, sum(map(float, parts)), rtol=1e-5)


def test_one_open_cell_on_a_ponder_map():
    """Cell (2, 3) of Res3, whose cells lie at multiples of 8 pixels: the 8x8 pixels about (16, 24)."""
    system = Pag(replace(CONFIG, gate=GateConfig("pixel")))
    mask = jnp.zeros((1, 5, 7)).at[0, 2, 3].set(1.0)
    maps = system.ponder_maps(Outputs({}, {"res3_1": mask, "res3_2": 0 * mask}, {}), SIZE)
    expected = np.zeros((1, *SIZE))
    expected[0, 12:20, 20:28] = 0.5
    np.testing.assert_array_equal(maps["res3"], expected)
    np.testing.assert_array_equal(maps["total"], expected)
    assert system.ponder_maps(Outputs({}, {}, {}), SIZE) == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(multipool=dict(blocks=("res6",))), r"multipool.blocks: 'res6' exists with model.res6"),
        (
            dict(multipool=dict(blocks=("res4_2",), dilations=(0, 1), original_bias=1.0)),
            "multipool.original_bias: the 3x3 of res4_2 has dilation 2",
        ),
        (
            dict(gate=dict(kind="pixel", insert=True)),
            "gate.insert: nothing reads True: .* model.gate.ramp",
        ),
        (
            dict(gate=dict(kind="pixel", rho=0.5, rho_start=0.9)),
            "gate.rho_start: nothing reads 0.9",
        ),
        (
            dict(gate=dict(kind="layer", scope="residual")),
            "gate.scope: nothing reads .*: kind 'layer'",
        ),
        (dict(gate=dict(kind="layer", options=dict(open_bias=2.0))), "options.open_bias: unknown key"),
        (dict(gate=dict(kind="confidence")), "kind: 'confidence' decides on predictions"),
        (
            dict(gate=dict(kind="layer", sparsity_on="soft")),
            "gate.sparsity_on: nothing reads .*: kind 'layer'",
        ),
        (dict(gate=dict(kind="layer", guidance=0.1)), "gate.guidance: nothing reads .*: kind 'layer'"),
        (
            dict(gate=dict(kind="top_k", guidance=0.1)),
            "gate.guidance: nothing reads .*: kind 'top_k' has a density of its own",
        ),
        (dict(gate=dict(kind="pixel", guidance=-1.0)), "guidance: -1.0; expected a number >= 0"),
        (
            dict(task="depth", gate=dict(kind="pixel", guidance=0.1)),
            "gate.guidance: depth has no rare pixels to compute at",
        ),
    ],
)
def test_what_would_be_ignored_is_refused(changes, message):
    section = dict(system="pag", task="boundaries", backbone=dict(depth=26))
    with pytest.raises(UserError, match=message):
        papers.build(section | changes)
