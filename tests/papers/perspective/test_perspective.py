"""The perspective system: size, loops, modes, losses, anytime predictions, weights. Tiny networks."""

from __future__ import annotations

import zlib
from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax import papers
from dynpix_jax.backbones import resnet
from dynpix_jax.core.capabilities import density
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.routing import Routing
from dynpix_jax.core.sections import from_config
from dynpix_jax.core.system import Outputs
from dynpix_jax.core.trees import map_named, named_leaves
from dynpix_jax.evaluation.runner import ImageResult, earlier_predictions
from dynpix_jax.evaluation.stepwise import StepPredictor
from dynpix_jax.flops import dense_report, gated_macs, system_macs, variable_shapes
from dynpix_jax.papers.perspective.config import PerspectiveConfig
from dynpix_jax.papers.perspective.system import to_pixels
from tests.papers.perspective import formulas
from tests.tiny_systems import PERSPECTIVE

SIZE = (33, 41)
SECTION = PERSPECTIVE | dict(loops=2)


@pytest.fixture(scope="module", autouse=True)
def four_blocks():
    """A ResNet of one block a stage stands in for ResNet-18: a third of the time to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet._BLOCKS, 18, (1, 1, 1, 1))
        yield


def build(**changes):
    """A small network; without a predicted depth nothing reads some of the settings."""
    return papers.build(from_config(PerspectiveConfig, SECTION | changes, "config.model"))


def fresh(system, seed: int = 0):
    """Random variables, positive where they are scales or variances; bins of every kind."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path.endswith(("var", "scale")):
            return jnp.asarray(rng.uniform(0.5, 1.0, leaf.shape), leaf.dtype)
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 100
        scale = 4.0 if "/depth/classes/kernel" in path else 1.0
        return jnp.asarray(rng.normal(0, scale * fan_in**-0.5, leaf.shape), leaf.dtype)

    return map_named(draw, variable_shapes(system))


def batch():
    rng = np.random.default_rng(0)
    depth = rng.uniform(0.5, 8.0, (2, *SIZE)).astype(np.float32)
    depth[0, :10] = 0.0
    return {
        "image": rng.integers(0, 256, (2, *SIZE, 3), np.uint8),
        "segmentation": rng.integers(0, 3, (2, *SIZE)).astype(np.int32),
        "depth": depth,
        "valid": np.ones(2, bool),
    }


@cache
def predicted():
    """The predicted-depth network with arg-max gates, its variables, and `apply` compiled."""
    system = build(depth={}, pooling=dict(gate="argmax"))
    run = jax.jit(system.apply)
    variables = fresh(system)
    steps = jax.jit(system.network.apply)(variables, batch()["image"])
    # Logits centred over the images, so that several bins are somebody's choice.
    for name, step in zip(("feedforward", "loop"), steps, strict=False):
        variables["params"][name]["depth"]["classes"]["bias"] -= step.bins.mean((0, 1, 2))
    return system, variables, run


def test_size_of_the_published_model():
    """221 MB of NYU with ResNet-50 (two loops) are a MAT-file, and MATLAB deflates what it saves.

    So fp32 fits within 5 %, whether MB are 10^6 or 2^20 bytes; as it stands in memory it is larger.
    """
    system = papers.build(dict(system="perspective", segmentation=dict(classes=40), depth={}))
    shapes = variable_shapes(system)
    count = sum(int(np.prod(leaf.shape)) for c in shapes.values() for _, leaf in named_leaves(c))
    noise = np.random.default_rng(0).normal(size=1 << 16).astype(np.float32).tobytes()
    deflated = len(zlib.compress(noise)) / len(noise)
    assert 0.9 < deflated < 0.95
    for megabyte in (10**6, 2**20):
        assert abs(4 * count * deflated / (221 * megabyte) - 1) < 0.05
    assert 4 * count / 2**20 == pytest.approx(235.9, abs=0.1)


def test_the_number_of_loops_changes_no_parameter():
    """Without any loop the module is not there."""
    none, one, two, three = (variable_shapes(build(depth={}, loops=n)) for n in range(4))
    assert jax.tree.all(
        jax.tree.map(lambda *leaves: len({leaf.shape for leaf in leaves}) == 1, one, two, three)
    )
    assert set(two["params"]) - set(none["params"]) == {"loop"}


def test_outputs_loop_by_loop():
    system, variables, run = predicted()
    outputs = run(variables, batch()["image"])
    assert {name: value.shape for name, value in outputs.predictions.items()} == {
        "segmentation": (2, *SIZE, 3),
        "depth": (2, *SIZE, 1),
    }
    assert len(outputs.exits) == 2
    assert {name: value.shape for name, value in outputs.selections.items()} == {
        f"loop_{loop}": (2, 5, 6, 5) for loop in range(3)
    }
    # Fewer loops are the same loops, run less often.
    once = jax.jit(system.alternatives["loop_1"].apply)(variables, batch()["image"])
    for name, value in once.predictions.items():
        np.testing.assert_allclose(value, outputs.exits[1][name], atol=1e-5)
    assert list(once.selections) == ["loop_0", "loop_1"]


def test_sparse_equals_dense_and_pays_for_one_branch():
    system, variables, run = predicted()
    dense, sparse = (run(variables, batch()["image"], {}, Routing(mode=mode)) for mode in ("dense", "sparse"))
    for name, value in dense.predictions.items():
        np.testing.assert_allclose(sparse.predictions[name], value, atol=1e-4, rtol=1e-4)
    chosen = np.asarray(dense.selections["loop_0"])
    np.testing.assert_array_equal(chosen.sum(-1), 1.0)
    assert (chosen.mean((0, 1, 2)) > 0).sum() >= 3  # different pooling sizes are chosen
    macs = system_macs(system, SIZE)
    assert macs.gated == {f"loop_{k}/dilation_{d}": 9 * 30 * 64 for k in range(3) for d in (1, 2, 4, 8, 16)}
    assert {layer.kind for layer in system.gated.values()} == {"branch"}
    assert density(system, macs.gated) is None
    shares = {name: float(share[0]) for name, share in system.executed_shares(dense).items()}
    executed = macs.executed(shares)
    soft = build(depth={})
    assert soft.gated == soft.executed_shares(dense) == {}
    steps = list(StepPredictor(system, variables).run(batch()["image"], routing=Routing(mode="sparse")))
    np.testing.assert_allclose(steps[-1].total_macs, executed, rtol=1e-6)
    # What evaluation says of each loop, by the shares of all branches, is what the steps executed.
    up_to = macs.up_to_predictions(
        {name: np.asarray(s, np.float64) for name, s in system.executed_shares(dense).items()}
    )
    assert all(macs.shape == (2,) for macs in up_to)
    np.testing.assert_allclose([macs[0] for macs in up_to], [step.total_macs for step in steps], rtol=1e-6)
    # The soft mixture of the same network is something else.
    mixed = jax.jit(system.alternatives["softmax"].apply)(variables, batch()["image"])
    apart = np.abs(mixed.predictions["segmentation"] - dense.predictions["segmentation"]).max()
    assert apart > 1e-3


def test_predict_iter_yields_one_prediction_more_than_loops():
    system, variables, run = predicted()
    images = batch()["image"]
    outputs = run(variables, images)
    predictor = StepPredictor(system, variables)
    steps = list(predictor.run(images))
    assert [step.index for step in steps] == [0, 1, 2]
    for step, expected in zip(steps, (*outputs.exits, outputs.predictions), strict=True):
        for name, value in expected.items():
            np.testing.assert_allclose(step.predictions[name], value, atol=1e-4)
        assert list(step.selections) == [f"loop_{step.index}"]
        assert step.milliseconds > 0
    assert steps[1].macs == steps[2].macs
    assert sum(step.macs for step in steps) == steps[-1].total_macs == dense_report(system, SIZE).total
    assert system_macs(system, SIZE).steps == tuple(step.macs for step in steps)
    assert tuple(step.macs for step in steps[:2]) == formulas.step_macs(system.config, 3, SIZE)
    assert gated_macs(system, SIZE) == formulas.gated_macs(system.config, SIZE) != {}
    assert steps[-1].total_milliseconds == pytest.approx(sum(step.milliseconds for step in steps))
    # It is there as soon as it is asked for: what follows is not computed.
    assert next(predictor.run(images)).total_macs == steps[0].macs
    # A budget of MACs that the second loop would exceed.
    once = predictor.predict(images, budget_macs=steps[1].total_macs + 1)
    assert once.index == 1
    np.testing.assert_array_equal(once.predictions["depth"], steps[1].predictions["depth"])
    assert StepPredictor(system.alternatives["loop_0"], variables).predict(images).index == 0


def test_the_report_gets_the_prediction_of_each_loop():
    """Nothing is run: outputs of three passes, in each of which another class is the largest."""
    system = build(pooling=dict(signal="attention"))
    steps = [{"segmentation": np.eye(3)[np.full((1, *SIZE), step)]} for step in range(3)]
    outputs = Outputs(steps[2], gates={}, selections={}, exits=tuple(steps[:2]))
    result = ImageResult(outputs, {}, 0.0, 0.0, 0.0, SIZE, exit_macs=(1.0, 2.0, 3.0))
    earlier = earlier_predictions(system, result, SIZE)
    assert [set(one["segmentation"].ravel()) for one in earlier] == [{0}, {1}]
    assert earlier[0]["segmentation"].shape == SIZE


def test_alternatives_run_the_same_variables():
    """Fewer loops, and the soft mixture of a network that was made for arg-max gates."""
    system, variables, run = predicted()
    assert list(system.alternatives) == ["softmax", "loop_0", "loop_1"]
    soft = system.alternatives["softmax"]
    assert soft.config.pooling.gate == "softmax"
    assert list(soft.alternatives) == ["argmax", "loop_0", "loop_1"]
    image = batch()["image"]
    none = jax.jit(system.alternatives["loop_0"].apply)(variables, image)
    expected = run(variables, image).exits[0]
    for name, value in none.predictions.items():
        np.testing.assert_allclose(value, expected[name], atol=1e-4)
    assert not build(loops=0, pooling=dict(signal="none")).alternatives
    mixed = build(pooling=dict(signal="attention", loop_signal="average"), loops=1)
    assert mixed.alternatives["loop_0"].config.signals == ("attention",)


def test_a_given_depth_gates():
    """Missing depth weighs all pooling sizes alike, near pixels pool widest."""
    system = build(pooling=dict(signal="gt_depth"), loops=0)
    assert system.inputs == ("depth",)
    variables = fresh(system)
    run = jax.jit(system.apply)
    image, depth = batch()["image"], np.full((2, *SIZE), 1.0, np.float32)
    depth[1] = 0.0
    outputs = run(variables, image, {"depth": depth})
    weights = outputs.selections["loop_0"]
    np.testing.assert_allclose(weights[0], np.broadcast_to(np.eye(5)[4], (5, 6, 5)))
    np.testing.assert_allclose(weights[1], 0.2, rtol=1e-6)
    equal = fresh(build(pooling=dict(signal="average"), loops=0))
    mean = jax.jit(build(pooling=dict(signal="average"), loops=0).apply)(equal, image)
    np.testing.assert_allclose(
        outputs.predictions["segmentation"][1], mean.predictions["segmentation"][1], atol=1e-5
    )
    with pytest.raises(ValueError, match="'gt_depth' gates by it"):
        system.apply(variables, image)
    with pytest.raises(ValueError, match="does not read it"):
        build().apply(variables, image, {"depth": depth})
    with pytest.raises(UserError, match="no 'depth' labels"):
        system.loss(variables, {"image": image, "valid": 1}, rngs={}, controls={})


@pytest.mark.parametrize("at", ["pixels", "cells"])
def test_loss_is_eq_1(at):
    """Every loop's classes, bins and log depth, with their weights; against NumPy."""
    weights = dict(segmentation=(1.0, 5.0), depth_class=0.3, depth=0.1, at=at)
    system = build(depth=dict(gamma=0.0), loss=weights, dropout=0.0, frozen_norm=True, loops=2)
    variables, given = fresh(system), batch()

    def loss(variables, given):
        total, aux = system.loss(variables, given, rngs={"dropout": jax.random.key(0)}, controls={})
        steps = system.network.apply(variables, given["image"])
        return total, aux.terms, steps

    total, terms, steps = jax.jit(loss)(variables, given)
    bins = np.asarray(system.config.bins.classes(jnp.asarray(given["depth"])))
    every = (slice(None),)
    if at == "cells":  # their middles; the last row and column of pixels lie in the cells at the border
        every += np.ix_([4, 12, 20, 28, 32], [4, 12, 20, 28, 36, 40])

    def entropy(logits, target, counted):
        logits = np.asarray(logits, np.float64)
        norm = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
        picked = np.take_along_axis(logits, np.where(counted, target, 0)[..., None], -1)[..., 0]
        return (norm - picked)[counted].mean()

    expected = {"segmentation": 0.0, "depth_class": 0.0, "depth": 0.0}
    for step, weight in zip(steps, (1.0, 5.0, 5.0), strict=True):
        maps = [step.classes, step.bins, step.log_depth]
        if at == "pixels":
            maps = [to_pixels(one, SIZE, 8) for one in maps]
        labels, known = given["segmentation"][every], given["depth"][every] > 0
        expected["segmentation"] += weight * entropy(maps[0], labels, labels >= 0)
        expected["depth_class"] += 0.3 * entropy(maps[1], bins[every], known)
        error = np.asarray(maps[2])[..., 0] - np.log(np.where(known, given["depth"][every], 1.0))
        expected["depth"] += 0.1 * (error**2)[known].mean()
    assert {name: float(value) for name, value in terms.items()} == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(total, sum(expected.values()), rtol=1e-4)


def test_up_sampling_puts_cells_into_the_middle_of_their_pixels():
    ramp = jnp.arange(5.0)[None, :, None, None] * jnp.ones((1, 5, 6, 1))
    pixels = to_pixels(ramp, SIZE, 8)[0, :, 0, 0]
    np.testing.assert_allclose(pixels[4:33], (np.arange(4, 33) - 3.5) / 8, atol=1e-5)


def test_weights_of_the_stage_before():
    """Baseline -> tied -> untied -> loops, and a bare backbone."""
    stages = [
        build(pooling=dict(signal="none"), loops=0),
        build(pooling=dict(signal="average", tied=True), loops=0),
        build(pooling=dict(signal="pred_depth"), depth={}, loops=2),
    ]
    given = fresh(stages[0], 1)
    kernel = given["params"]["feedforward"]["pool"]["shared"]["conv"]["kernel"]
    for seed, system in enumerate(stages[1:], 2):
        start = fresh(system, seed)
        given = system.adapt(given, start)
        for branch in given["params"]["feedforward"]["pool"].values():
            np.testing.assert_array_equal(branch["conv"]["kernel"], kernel)
    chex.assert_trees_all_equal(given["params"]["loop"], start["params"]["loop"])
    bare = {name: tree["backbone"] for name, tree in given.items()}
    adapted = stages[0].adapt(bare, fresh(stages[0], 5))
    jax.tree.map(np.testing.assert_array_equal, adapted["params"]["backbone"], bare["params"])
    with pytest.raises(UserError, match="no such block"):
        stages[0].adapt({"params": {"res4_23": {"conv1": {"kernel": kernel}}}}, given)
    with pytest.raises(UserError, match=r"no .*/mean among their batch_stats"):
        stages[0].adapt({"params": bare["params"]}, given)


def test_weights_of_a_gated_parser():
    """A segmentation network of PAG lends its backbone; what else it has is left."""
    backbone = dict(depth=26, width=4)
    pag = papers.build(
        dict(system="pag", task="segmentation", task_options=dict(classes=3), backbone=backbone)
    )
    given, system = fresh(pag, 1), build(backbone=backbone, loops=0, pooling=dict(signal="none"))
    start = fresh(system, 2)
    adapted = system.adapt(given, start)
    for collection in ("params", "batch_stats"):
        jax.tree.map(
            np.testing.assert_array_equal, adapted[collection]["backbone"], given[collection]["backbone"]
        )
    jax.tree.map(np.testing.assert_array_equal, adapted["params"]["res6"], start["params"]["res6"])


@pytest.mark.parametrize("tied", [False, True])
def test_multiscale(tied):
    """Two scales, each with its own backbone unless tied; its MACs are those counted."""
    pooling = dict(kind="multiscale", signal="attention", tied=tied, scales=(1.0, 0.6))
    system = build(pooling=pooling, loops=0)
    shapes = variable_shapes(system)
    own = {"backbone_1", "res6_1"}
    assert set(shapes["params"]) == {"backbone", "res6", "feedforward", *(() if tied else own)}
    outputs = jax.eval_shape(system.apply, shapes, batch()["image"])
    assert outputs.predictions["segmentation"].shape == (2, *SIZE, 3)
    assert outputs.selections["loop_0"].shape == (2, 5, 6, 2)
    assert formulas.step_macs(system.config, 3, SIZE) == (dense_report(system, SIZE).total, 0.0)
    if not tied:
        start = fresh(system, 3)
        adapted = system.adapt({c: {"backbone": tree["backbone"]} for c, tree in start.items()}, start)
        jax.tree.map(
            np.testing.assert_array_equal, adapted["params"]["backbone_1"], start["params"]["backbone"]
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(segmentation=None), "segmentation: None, and so is depth"),
        (dict(segmentation=dict(clases=3)), "config.model.segmentation.clases"),
        (dict(depth={}, pooling=dict(signal="attention")), "depth: with pooling.signal attention"),
        (dict(pooling=dict(dilations=(1, 2))), "bins.edges: 5 bins for 2 dilations"),
        (dict(pooling=dict(dilations=(1, 1))), "pooling.dilations: .* distinct"),
        (dict(pooling=dict(scales=(1.0,))), "pooling.scales: nothing reads .*'multiscale'"),
        (dict(pooling=dict(kind="multiscale", scales=(0.5,) * 5)), "pooling.scales: .* first of them 1"),
        (
            dict(loops=0, pooling=dict(kind="multiscale", scales=(1.0, 0.9, 0.8, 0.7, 0.6), dilations=(2,))),
            "pooling.dilations: nothing reads .*'multipool'",
        ),
        (
            dict(loops=0, pooling=dict(kind="multiscale", scales=(1.0, 0.9))),
            "bins.edges: 5 bins for 2 scales",
        ),
        (
            dict(loops=0, pooling=dict(kind="multiscale", scales=(1.0, 0.9, 0.8, 0.7, 0.6), gate="argmax")),
            "pooling.gate: nothing reads 'argmax': it chooses among dilations",
        ),
        (
            dict(pooling=dict(kind="multiscale", scales=(1.0, 0.9, 0.8, 0.7, 0.6))),
            "loops: 2 with pooling.kind",
        ),
        (
            dict(loops=0, pooling=dict(loop_signal="none")),
            "pooling.loop_signal: .* there is no loop",
        ),
        (dict(depth_kernel=5), "depth_kernel: 5"),
        (dict(dropout=1.0), "dropout: 1.0"),
        (dict(loss=dict(segmentation=())), "loss.segmentation"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(UserError, match=message):
        papers.build(SECTION | changes)


def test_refused_in_a_call():
    system, masks = build(loops=0), {"res2_1": jnp.zeros((1, 5, 6), bool)}
    with pytest.raises(ValueError, match="there is no gate"):
        system.apply(variable_shapes(system), jnp.zeros((1, *SIZE, 3)), {}, Routing(masks=masks))
