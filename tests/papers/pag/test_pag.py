"""The PAG system: modes, insertion, baselines, schedules, losses, MACs, weights. Tiny networks."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax import papers
from dynpix_jax.backbones.resnet import ResNetConfig
from dynpix_jax.core.capabilities import Chooses
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.routing import Routing
from dynpix_jax.core.system import Outputs
from dynpix_jax.core.trees import map_named
from dynpix_jax.flops import dense_report, executed_macs, gated_macs
from dynpix_jax.nn.gates import COMPUTE
from dynpix_jax.papers.pag.system import (
    GateConfig,
    MultiPoolConfig,
    Pag,
    PagConfig,
    gated_blocks,
)
from dynpix_jax.tasks import boundaries
from tests.papers.pag import formulas

SIZE = (33, 49)
BACKBONE = ResNetConfig(depth=26, width=8)
POOL = MultiPoolConfig(blocks=("res4_2",), dilations=(0, 1, 3))
CONFIGS = {
    "residual": PagConfig(
        "pag", "boundaries", BACKBONE, GateConfig("pixel", "residual"), POOL, head_features=4
    ),
    # Torchvision's strides: the first block of Res3 cannot be gated.
    "torchvision": PagConfig(
        "pag", "boundaries", replace(BACKBONE, stride_in_1x1=False), GateConfig("pixel"), head_features=4
    ),
    "layer": PagConfig(
        "pag", "boundaries", BACKBONE, GateConfig("layer", rho=0.7, weight=1.0), head_features=4
    ),
}


def batch(count: int = 2):
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (count, *SIZE, 3), np.uint8),
        "boundaries": (rng.uniform(size=(count, *SIZE)) < 0.1).astype(np.float32),
        "valid": np.ones(count, bool),
    }


def variables_of(system: Pag, seed: int = 0):
    """Random everything, moments included; gates half open."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path.endswith(("var", "scale")):
            values = rng.uniform(0.5, 1.0, leaf.shape)
        else:
            fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 100
            values = rng.normal(0, fan_in**-0.5, leaf.shape) * (
                0.01 if re.search("/gate/(logits|conv2)/", path) else 1.0
            )
        return jnp.asarray(values, leaf.dtype)

    shapes = jax.eval_shape(lambda key: system.init(key, batch(1)), jax.random.key(0))
    return map_named(draw, shapes)


@cache
def ran(name: str):
    """(system, variables, dense outputs, sparse outputs) in evaluation."""
    system = Pag(CONFIGS[name])
    variables = variables_of(system)
    images = jnp.asarray(batch()["image"])
    dense, sparse = (
        jax.jit(system.apply)(variables, images, {}, Routing(mode=mode)) for mode in ("dense", "sparse")
    )
    return system, variables, dense, sparse


@pytest.mark.parametrize("name", CONFIGS)
def test_sparse_equals_dense(name):
    system, _, dense, sparse = ran(name)
    assert dense.predictions["boundaries"].shape == (2, *SIZE, 1)
    assert len(dense.exits) == 4
    assert tuple(sorted(dense.gates)) == gated_blocks(system.config)
    density = np.mean([mask.mean() for mask in dense.gates.values()])
    assert 0.05 < density < 0.95
    for masks in ("gates", "selections"):
        jax.tree.map(np.testing.assert_array_equal, getattr(sparse, masks), getattr(dense, masks))
    size = float(jnp.abs(dense.predictions["boundaries"]).max())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * max(size, 1.0)),
        (sparse.predictions, sparse.exits),
        (dense.predictions, dense.exits),
    )


def test_multipools_choices_are_maps():
    """Figure 3: which pooling size each pixel takes."""
    system = Pag(CONFIGS["residual"])
    assert isinstance(system, Chooses)
    assert system.choices == ("copy", "dilation 1", "dilation 3")
    cells = np.random.default_rng(0).integers(0, 3, (2, 5, 7))
    outputs = Outputs({}, selections={"res4_2": np.eye(3, dtype=np.float32)[cells]})
    maps = system.choice_maps(outputs, SIZE)
    assert set(maps) == {"res4_2"}
    assert maps["res4_2"].shape == (2, *SIZE)
    # Cell (2, 3) lies at pixel (16, 24).
    np.testing.assert_array_equal(maps["res4_2"][:, 16, 24], cells[:, 2, 3])
    assert system.true_choices({}) is None
    # Where a gate skips the block, no size is taken.
    gated = system.choice_maps(replace(outputs, gates={"res4_2": jnp.zeros((2, 5, 7))}), SIZE)
    assert (gated["res4_2"] == 255).all()
    assert Pag(CONFIGS["torchvision"]).choices == ()


def test_every_bottleneck_but_multipools_is_gated():
    config = PagConfig(
        "pag", "boundaries", ResNetConfig(50), GateConfig("pixel"), replace(POOL, blocks=("res5_2",))
    )
    assert len(gated_blocks(config)) == 15  # 3 + 4 + 6 + 3 - 1, as released
    assert "res5_2" not in gated_blocks(config)
    assert "res3_1" not in gated_blocks(CONFIGS["torchvision"])
    assert {"res4_1", "res5_1"} < set(gated_blocks(CONFIGS["torchvision"]))


def test_inserted_gates_count_from_the_top():
    system, variables, everything, _ = ran("torchvision")
    order = gated_blocks(system.config)
    run = jax.jit(lambda v, x, n: system.run(v, x, Routing(), inserted=n))
    images = jnp.asarray(batch()["image"])
    for inserted in (0, 2, len(order)):
        outputs = run(variables, images, inserted)
        for name in order[: len(order) - inserted]:
            assert outputs.gates[name].min() == 1.0
        closing = [name for name in order if outputs.gates[name].min() == 0.0]
        assert bool(closing) == bool(inserted)
    np.testing.assert_allclose(
        outputs.predictions["boundaries"], everything.predictions["boundaries"], atol=1e-4
    )


@pytest.mark.parametrize("scope", ["conv3x3", "residual", "layer"])
def test_executed_macs_by_hand(scope):
    """33x49: Res2 has 9x13 positions, the rest 5x7. Widths 8 16 32 64 in the 3x3, four times that outside."""
    gate = GateConfig("layer") if scope == "layer" else GateConfig("pixel", scope)
    system = Pag(PagConfig("pag", "boundaries", BACKBONE, gate, POOL))
    gated = gated_macs(system, SIZE)
    assert gated == formulas.gated_macs(system.config, SIZE)
    sizes = {"res2": 9 * 13, "res3": 35, "res4": 35, "res5": 35}
    inputs = dict(res2_1=8, res2_2=32, res3_1=32, res3_2=64, res4_1=64, res5_1=128, res5_2=256)
    for (name, in_features), width in zip(inputs.items(), (8, 8, 16, 16, 32, 64, 64), strict=True):
        positions = sizes[name[:4]]
        expected = positions * 9 * width * width
        expected += positions * width * 4 * width * (scope != "conv3x3")
        expected += positions * in_features * width * (scope == "layer")
        assert gated.pop(name) == expected, name
    assert gated == {f"res4_2/dilation_{d}": 35 * 9 * 32 * 32 for d in (1, 3)}


def test_executed_macs_between_all_open_and_all_shut():
    base = Pag(replace(CONFIGS["residual"], gate=GateConfig()))
    system, _, outputs, _ = ran("residual")
    dense, gated = dense_report(system, SIZE).total, gated_macs(system, SIZE)
    # Gates are 1x1 convolutions to two logits, and the only difference to the ungated network.
    gates = 2 * (117 * (8 + 32) + 35 * (32 + 64 + 64 + 128 + 256))
    assert dense - dense_report(base, SIZE).total == gates
    assert executed_macs(dense, gated, dict.fromkeys(gated, 1.0)) == dense
    assert executed_macs(dense, gated, dict.fromkeys(gated, 0.0)) == dense - sum(gated.values())
    shares = {name: np.asarray(share) for name, share in system.executed_shares(outputs).items()}
    assert set(shares) == set(gated)
    np.testing.assert_allclose(shares["res5_1"], np.asarray(outputs.gates["res5_1"]).mean((1, 2)))
    np.testing.assert_allclose(
        shares["res4_2/dilation_3"], np.asarray(outputs.selections["res4_2"])[..., 2].mean((1, 2))
    )


@pytest.mark.parametrize("name", ["residual", "layer"])
def test_loss_is_equation_6(name):
    """The branches' class-balanced losses and lambda times the sum of KLs, by hand from the masks."""
    system = Pag(replace(CONFIGS[name], multipool=MultiPoolConfig(), drop_blocks=4))
    variables = variables_of(system)
    data = batch(3) | {"valid": np.array([True, True, False])}
    drawn = {"temperature": 0.5, "noise": 0.25}
    controls = {**drawn, "rho": 0.7, "inserted": len(gated_blocks(system.config)) - 1.0}
    key = jax.random.key(3)

    @jax.jit
    def run(given, data, key):
        routing = Routing(train=True, **drawn)
        outputs = system.run(
            given, data["image"], routing, inserted=controls["inserted"], rngs={"gumbel": key}
        )

        def loss(p):
            return system.loss({**given, "params": p}, data, rngs={"gumbel": key}, controls=controls)

        return outputs, jax.value_and_grad(loss, has_aux=True)(given["params"])

    outputs, ((total, aux), gradients) = run(variables, data, key)
    branches = [*outputs.exits, outputs.predictions]
    task = sum(float(boundaries.loss(x["boundaries"], data["boundaries"], data["valid"])) for x in branches)
    in_force = gated_blocks(system.config)[1:]
    density = np.array([np.asarray(outputs.gates[block])[:2].mean((1, 2)) for block in in_force])
    if name == "layer":
        # The share that runs is a moving average.
        relaxed = np.array([outputs.probabilities[block] for block in in_force])
        stored = [variables["batch_stats"]["backbone"][block]["gate"]["rate"] for block in in_force]
        share = 0.99 * np.array(stored) + 0.01 * relaxed.mean(1)
        sparsity = ((0.7 - share) ** 2).mean()
    else:
        divergence = 0.7 * np.log(0.7 / density) + 0.3 * np.log(0.3 / (1 - density))
        sparsity = 1e-4 * divergence.mean(1).sum()
    np.testing.assert_allclose(aux.terms["boundaries"], task, rtol=1e-4)
    np.testing.assert_allclose(aux.terms["sparsity"], sparsity, rtol=1e-4)
    np.testing.assert_allclose(total, task + sparsity, rtol=1e-4)
    assert len(branches) == 3
    assert set(aux.updates) == {"batch_stats"}
    first, last = (
        gradients["backbone"][block]["gate"] for block in (gated_blocks(system.config)[0], in_force[-1])
    )
    assert not any(leaf.any() for leaf in jax.tree.leaves(first))  # not inserted yet
    assert any(leaf.any() for leaf in jax.tree.leaves(last))


def test_controls():
    gate = GateConfig("pixel", rho=0.5, rho_start=0.9, ramp=0.5, insert=True, noise=(1.0, 0.0))
    system = Pag(PagConfig("pag", "boundaries", BACKBONE, gate))
    controls = {step: system.controls(jnp.asarray(step), 100) for step in (0, 25, 50, 99)}
    for step, temperature, rho, inserted in (
        (0, 1.0, 0.9, 0),
        (25, 1.0 - 0.9 * 25 / 99, 0.7, 4),
        (50, 1.0 - 0.9 * 50 / 99, 0.5, 8),
        (99, 0.1, 0.5, 8),  # the last step has the last temperature
    ):
        expected = {"temperature": temperature, "rho": rho, "inserted": inserted, "noise": 1 - step / 99}
        for name, value in expected.items():
            np.testing.assert_allclose(
                controls[step][name], value, rtol=1e-5, atol=1e-6, err_msg=f"{name} at {step}"
            )
    # Without a ramp both are in force from the first step.
    plain = Pag(replace(system.config, gate=replace(gate, ramp=0.0, rho_start=1.0, insert=False))).controls(
        jnp.asarray(0), 100
    )
    assert (float(plain["rho"]), float(plain["inserted"])) == (0.5, 8.0)


def test_truncated_has_the_heads_of_what_is_left():
    system = Pag(PagConfig("pag", "boundaries", BACKBONE, drop_blocks=3))
    images = jax.ShapeDtypeStruct((1, *SIZE, 3), jnp.uint8)
    variables = jax.eval_shape(lambda key: system.init(key, {"image": images}), jax.random.key(0))
    assert set(variables["params"]["head"]) == {"res2", "res3", "res4", "fusion"}
    assert {name for name in variables["params"]["backbone"] if name.startswith("res4")} == {"res4_1"}
    outputs = jax.eval_shape(system.apply, variables, images)
    assert len(outputs.exits) == 3


def test_ponder_maps():
    system, _, outputs, _ = ran("residual")
    maps = system.ponder_maps(outputs, SIZE)
    assert set(maps) == {"res2", "res3", "res4", "res5", "total"}
    assert maps["total"].shape == (2, *SIZE)
    # res4_2 holds the MultiPool and is not part of it: seven masks.
    assert len(outputs.gates) == 7
    counts = {"res2": 2, "res3": 2, "res4": 1, "res5": 2}
    np.testing.assert_allclose(
        maps["total"], sum(n * maps[stage] for stage, n in counts.items()) / 7, atol=1e-6
    )


def test_adapt_from_an_imagenet_resnet():
    """Bare weights fill the backbone; MultiPool branches start as the 3x3 they replace, with its norm."""
    config = replace(CONFIGS["residual"], gate=GateConfig())
    bare = variables_of(Pag(replace(config, multipool=MultiPoolConfig())), seed=1)
    given = {name: tree["backbone"] for name, tree in bare.items()}
    given["params"]["fc"] = {"kernel": jnp.ones((256, 10))}
    system = Pag(config)
    fresh = variables_of(system, seed=2)
    adapted = system.adapt(given, fresh)
    for tree, conv, norm in (("params", ("conv", "kernel"), "scale"), ("batch_stats", None, "var")):
        block, origin = adapted[tree]["backbone"]["res4_2"]["multipool"], given[tree]["res4_2"]
        for dilation in (1, 3):
            branch = block[f"dilation_{dilation}"]
            np.testing.assert_array_equal(branch["bn"][norm], origin["bn2"][norm])
            if conv:
                np.testing.assert_array_equal(branch["conv"]["kernel"], origin["conv2"]["kernel"])
    np.testing.assert_array_equal(
        adapted["params"]["backbone"]["res5_1"]["conv1"]["kernel"],
        given["params"]["res5_1"]["conv1"]["kernel"],
    )
    jax.tree.map(np.testing.assert_array_equal, adapted["params"]["head"], fresh["params"]["head"])
    # The next stage takes everything over and leaves only the gates fresh.
    gated = Pag(CONFIGS["residual"])
    start = variables_of(gated, seed=3)
    after = gated.adapt(adapted, start)
    jax.tree.map(np.testing.assert_array_equal, after["params"]["head"], adapted["params"]["head"])
    branch = after["params"]["backbone"]["res4_2"]["multipool"]["dilation_3"]["conv"]["kernel"]
    np.testing.assert_array_equal(branch, given["params"]["res4_2"]["conv2"]["kernel"])
    gate = after["params"]["backbone"]["res5_1"]["gate"]["logits"]["kernel"]
    np.testing.assert_array_equal(gate, start["params"]["backbone"]["res5_1"]["gate"]["logits"]["kernel"])


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (18, r"expects"),  # other shapes under the same names
        (50, r"they hold res2_3, this resnet has no such block"),
        (None, "no name matches"),
    ],
)
def test_weights_of_another_architecture(depth, message):
    system = Pag(PagConfig("pag", "boundaries", BACKBONE))
    fresh = variables_of(system)
    given = {"params": {"vgg": {"kernel": jnp.ones((3, 3))}}, "batch_stats": {}}
    if depth:
        other = variables_of(Pag(PagConfig("pag", "boundaries", replace(BACKBONE, depth=depth))))
        given = {name: tree["backbone"] for name, tree in other.items()}
    with pytest.raises(UserError, match=message):
        system.adapt(given, fresh)
    deeper = Pag(PagConfig("pag", "boundaries", replace(BACKBONE, depth=50)))
    with pytest.raises(UserError, match=r"weights: no res2_3/"):
        deeper.adapt({name: tree["backbone"] for name, tree in fresh.items()}, variables_of(deeper))


SECTION = dict(system="pag", task="boundaries", backbone=dict(depth=26))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(system="pga"), "config.model.system: there is no system 'pga'; did you mean 'pag'"),
        (dict(gate=dict(rho=1.5)), r"config\.model\.gate\.rho: 1\.5; expected a density in \(0, 1\]"),
        (dict(gate=dict(kind="pixle")), "config.model.gate.kind"),
        (dict(gate=dict(ramp=2.0)), "gate.ramp"),
        (dict(gate=dict(temperature=(1.0, 0.0))), "gate.temperature"),
        (dict(gate=dict(noise=(1.0, -0.5))), "gate.noise"),
        (dict(gate=dict(weight=-1.0)), "gate.weight"),
        (dict(gate=dict(kind="pixel", insert=True)), "gate.insert: nothing reads True: it is of the ramp"),
        (dict(gate=dict(kind="pixel", rho=0.5, rho_start=0.7)), "gate.rho_start"),
        (
            dict(gate=dict(kind="layer", scope="residual")),
            "gate.scope: nothing reads 'residual': kind 'layer' skips whole blocks",
        ),
        (dict(multipool=dict(blocks=("res6",))), "with model.res6 = True only"),
        (dict(multipool=dict(blocks=("res4_2",), dilations=(0, 1), original_bias=1.0)), "has dilation 2"),
        (dict(multipool=dict(blocks=("res4_9",))), "'res4_9' is no block of the backbone"),
        (dict(multipool=dict(dilations=(1, 1))), "distinct integers"),
        (
            dict(backbone=dict(depth=26, stride_in_1x1=False), multipool=dict(blocks=("res3_1",))),
            "choose another",
        ),
        (dict(backbone=dict(depth=18), gate=dict(kind="pixel")), "resnet has no block to gate"),
        (dict(drop_blocks=8), "drop_blocks: 8; expected less than the 8 blocks"),
    ],
)
def test_wrong_sections(changes, message):
    assert papers.build(SECTION).name == "pag"
    with pytest.raises(UserError, match=message):
        papers.build(SECTION | changes)


def test_compute_is_the_second_logit():
    """As in the released code: channel 1 skips, channel 2 computes."""
    assert COMPUTE == 1
