"""The anytime system: both modes, carry-over, masks, MACs of the paper's tables, budgets."""

from __future__ import annotations

import dataclasses
import itertools
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from dynpix_jax.backbones.hrnet import HRNetConfig
from dynpix_jax.cli.flops import parts_of
from dynpix_jax.core.capabilities import density
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.routing import Routing
from dynpix_jax.core.system import Outputs
from dynpix_jax.core.trees import map_named, named_leaves
from dynpix_jax.evaluation.stepwise import StepPredictor
from dynpix_jax.flops import dense_report, system_macs, variable_shapes
from dynpix_jax.nn.gates import ConfidenceOptions, TopKOptions
from dynpix_jax.papers import build
from dynpix_jax.papers.anytime import weight_names
from dynpix_jax.papers.anytime.system import AdaptivityConfig, Anytime, AnytimeConfig, HeadConfig
from tests.numpy_layers import normalized
from tests.papers.anytime import layers_counted
from tests.papers.anytime.reference import AnytimeReference

SIZE = (64, 96)
CELLS = (16, 24)
IMAGES = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), np.uint8)
ODD = IMAGES[:, :60, :92]
"""Of 15x23 cells, 8x12, 4x6 and 2x3 at the lower resolutions."""
CA = AdaptivityConfig(options=ConfidenceOptions(threshold=0.5))
TINY = AnytimeConfig(
    "anytime",
    "segmentation",
    dict(classes=5),
    HRNetConfig("w18s1", width=4, blocks=1),
    heads=HeadConfig(features=8),
    adaptivity=CA,
)


@cache
def tiny(arch: str = "w18s1", *, plain: bool = False) -> Anytime:
    heads = HeadConfig(kind="plain") if plain else TINY.heads
    return Anytime(dataclasses.replace(TINY, backbone=HRNetConfig(arch, width=4, blocks=1), heads=heads))


@cache
def shapes_of(**network):
    return jax.eval_shape(lambda key: tiny(**network).init(key, {"image": IMAGES}), jax.random.key(0))


@cache
def variables():
    """Random everything: with fresh norms, skipped positions would show little of what becomes of them."""
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        if path.endswith("lam"):
            return jnp.float32(rng.uniform(0.7, 3.0))
        if path.endswith(("var", "scale")):
            return jnp.asarray(rng.uniform(0.5, 1.0, leaf.shape), leaf.dtype)
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 25
        return jnp.asarray(rng.normal(0, fan_in**-0.5, leaf.shape), leaf.dtype)

    return map_named(draw, shapes_of())


def compiled(fn, *arguments, gathers: bool = False):
    """Without the optimizations that take longest: the tests run each program a few times only.

    Args:
        gathers: With the newer emitters: half as long for the gathers of a sparse network, longer for others.
    """
    quickly = {
        "xla_llvm_disable_expensive_passes": True,
        "xla_backend_optimization_level": 0,
        "xla_cpu_use_fusion_emitters": gathers,
    }
    return jax.jit(fn).lower(*arguments).compile(compiler_options=quickly)


@cache
def exits(mode, **network):
    """(variables, images, masks) -> logits at a quarter of the resolution, after each exit."""
    # Without a name each layer chooses while it runs, and all it could choose from is compiled.
    implementation = "gather" if mode == "sparse" else None

    def run(variables, images, masks):
        routing = Routing(mode=mode, masks=masks, implementation=implementation)
        after = tiny(**network).network.apply(variables, images, routing)
        return [one.logits for one in after]

    return compiled(run, shapes_of(**network), ODD, nested(1.0, (15, 23)), gathers=mode == "sparse")


def nested(density: float, cells: tuple[int, int] = CELLS) -> dict[str, jax.Array]:
    """Masks each within the one before: blobs and single positions."""
    noise = np.random.default_rng(2).random((2, *cells))
    noise[:, :8, :8] = 1.0
    noise[:, 8:, 12:] *= 0.5
    return {
        f"stage{number}": jnp.asarray(noise < density ** (number - 1) if density < 1 else noise >= 0)
        for number in (2, 3, 4)
    }


@pytest.mark.parametrize("density", [0.0, 0.7, 1.0])
def test_both_modes_agree_and_skipped_positions_carry_over(density):
    """The share that is computed: none, .7, .5, .3 of the positions, all."""
    masks = nested(density, (15, 23))
    dense, sparse = (exits(mode)(variables(), ODD, masks) for mode in ("dense", "sparse"))
    for first, second in zip(dense, sparse, strict=True):
        np.testing.assert_allclose(first, second, atol=2e-4, rtol=2e-4)
    for outputs in (dense, sparse):
        for number, (before, after) in enumerate(itertools.pairwise(outputs), 2):
            skipped = ~np.asarray(masks[f"stage{number}"])
            np.testing.assert_array_equal(np.asarray(before)[skipped], np.asarray(after)[skipped])
    if density == 0.7:
        assert not np.allclose(dense[0], dense[-1])


NETWORKS = {"w18s1": {}, "w18s2": dict(arch="w18s2"), "plain exits": dict(plain=True)}
GOLDEN_LOGITS = {
    "w18s1": ((7, 11), (-0.1745586919, 1.3498344654, 0.6554431640, 6.9855652382)),
    "w18s2": ((7, 18), (-0.2478531745, -0.7534062049, 1.5511317302, 1.0183236003)),
    "plain exits": ((6, 11), (-0.0822948304, -0.3857877687, 0.4005547345, 8.9215401457)),
}
"""A position that all stages compute, and NumPy's logit of the first class there in the second image."""


@cache
def of_numpy(arch: str = "w18s1", *, plain: bool = False):
    """(variables by official names, images, logits after each exit, masks by confidence above .6)."""
    # Bottlenecks and their width; modules of stages 2 to 4; blocks.
    shape = (4, (1, 32), (1, 1, 1), 1) if arch == "w18s1" else (4, (2, 64), (1, 3, 2), 1)
    reference = AnytimeReference(*shape, classes=5, features=0 if plain else 8, threshold=0.6)
    # Large blocks of colour, or all positions would be as certain as the others.
    images = np.random.default_rng(4).integers(0, 256, (2, 3, 4, 3), np.uint8).repeat(20, 1).repeat(23, 2)
    logits, masks = zip(*(reference.exits(normalized(image)) for image in images), strict=True)
    expected = [np.moveaxis(np.stack(one), 1, -1) for one in zip(*logits, strict=True)]
    given = {f"stage{n}": np.stack(one) for n, one in enumerate(zip(*masks, strict=True), 2)}
    flat = {}
    for name, tensor in reference.tensors.items():
        target = weight_names.translate(name, heads=tiny(arch, plain=plain).config.heads)
        flat[target.name] = jnp.asarray(target.convert(tensor))
    return flat, images, expected, given


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("w18s1", "dense"),
        ("w18s1", "sparse"),
        pytest.param("w18s2", "dense", marks=pytest.mark.slow),
        pytest.param("w18s2", "sparse", marks=pytest.mark.slow),
        pytest.param("plain exits", "dense", marks=pytest.mark.slow),
    ],
)
def test_forward_pass_of_numpy(name, mode):
    """To 1e-5, by official names, on sides that do not halve evenly; masks are NumPy's own, by confidence."""
    network = NETWORKS[name]
    flat, images, expected, given = of_numpy(**network)
    (row, column), golden = GOLDEN_LOGITS[name]
    assert [one[1, row, column, 0] for one in expected] == pytest.approx(golden, rel=1e-6)
    assert 0.1 < given["stage4"].mean() < given["stage2"].mean() < 0.9
    assert {path: leaf.shape for path, leaf in named_leaves(shapes_of(**network))} == {
        path: leaf.shape for path, leaf in flat.items()
    }
    found = exits(mode, **network)(traverse_util.unflatten_dict(flat, sep="/"), images, given)
    gate = ConfidenceOptions(threshold=0.6).build("logits", 5)
    for number, (ours, theirs) in enumerate(zip(found, expected, strict=True), 2):
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
        if number < 5:
            own = gate.apply({}, ours, Routing()).mask
            np.testing.assert_array_equal(own > 0.5, given[f"stage{number}"])


def test_a_prediction_within_a_budget_has_no_density():
    assert density(tiny(), {}) is None
    assert density(tiny(), dict.fromkeys(tiny().gated, 0.5)) == 0.5


def test_small_images():
    """Redesigned heads halve a quarter of the image three times; plain ones take any image, in both modes."""
    small = jnp.zeros((1, 28, 40, 3))
    with pytest.raises(UserError, match="map of 7x10 cells that an exit reads is halved 3 times"):
        jax.eval_shape(tiny().apply, shapes_of(), small)
    narrow = jnp.zeros((1, 16, 64, 3))
    for mode in ("dense", "sparse"):
        routing = Routing(mode=mode, implementation="gather")
        outputs = jax.eval_shape(tiny(plain=True).apply, shapes_of(plain=True), narrow, {}, routing)
        assert outputs.predictions["segmentation"].shape == (1, 16, 64, 5)


def test_stages_between_two_exits_share_the_masks_that_are_given_for_them():
    system = Anytime(dataclasses.replace(TINY, exits=(1, 3, 4), weights=(1.0,) * 3))
    shapes = jax.eval_shape(lambda key: system.init(key, {"image": IMAGES}), jax.random.key(0))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    first, second = np.random.default_rng(0).random((2, 2, *CELLS)) < 0.5

    @jax.jit  # the masks alone: of the network nothing else is compiled
    def masks(given):
        gates = system.apply(zeros, jnp.asarray(IMAGES), {}, Routing(masks=given)).gates
        return gates["stage2"], gates["stage3"]

    for given, expected in (
        ({"stage3": second}, second),
        ({"stage2": first, "stage3": second}, first & second),
    ):
        for found in masks(jax.tree.map(jnp.asarray, given)):
            np.testing.assert_array_equal(found, expected)


def test_shapes_and_names():
    outputs = jax.eval_shape(tiny().apply, variables(), IMAGES)
    assert outputs.predictions["segmentation"].shape == (2, *SIZE, 5)
    assert [exit_["segmentation"].shape for exit_ in outputs.exits] == [(2, *SIZE, 5)] * 3
    assert {name: mask.shape for name, mask in outputs.gates.items()} == {
        f"stage{number}": (2, *CELLS) for number in (2, 3, 4)
    }
    with pytest.raises(ValueError, match="stage1"):
        jax.eval_shape(tiny().apply, variables(), IMAGES, {}, Routing(masks={"stage1": IMAGES}))
    masks = {"stage2": jnp.ones((2, 3, 3), bool)}
    with pytest.raises(ValueError, match="stage2"):
        jax.eval_shape(tiny().apply, variables(), IMAGES, {}, Routing(masks=masks))
    with pytest.raises(ValueError, match="sparse"):
        jax.eval_shape(tiny().apply, variables(), IMAGES, {}, Routing(train=True, mode="sparse"))


def test_sides_of_redesigned_heads():
    """Where 4 * 2^D does not divide a side. At 120x184 the release's exits 1 and 2 have 24x40 and 28x44
    positions, of 30x46.
    """
    images = jax.ShapeDtypeStruct((1, 120, 184, 3), jnp.float32)
    for sides, sizes in (("floored", ((24, 40), (28, 44))), ("restored", ((30, 46), (30, 46)))):
        heads = dataclasses.replace(TINY.heads, sides=sides)
        network = Anytime(dataclasses.replace(TINY, adaptivity=None, heads=heads)).network
        after, _ = jax.eval_shape(network.init_with_output, jax.random.key(0), images)
        assert tuple(one.logits.shape[1:3] for one in after) == (*sizes, (30, 46), (30, 46))
    section = dict(system="anytime", task="segmentation", task_options=dict(classes=5), adaptivity=dict())
    with pytest.raises(UserError, match=r"heads\.sides: 'floored' gives logits that no mask fits"):
        build(section | dict(heads=dict(sides="floored")))


def test_a_training_step_has_gradients_everywhere():
    """Of every exit, the first one by what is carried over too; the widths of interpolation learn."""
    system = Anytime(
        dataclasses.replace(TINY, adaptivity=AdaptivityConfig("top_k", options=TopKOptions(0.6)))
    )
    labels = np.random.default_rng(3).integers(0, 5, (2, *SIZE), np.int32)
    batch = {"image": jnp.asarray(IMAGES), "segmentation": jnp.asarray(labels), "valid": jnp.ones(2, bool)}

    def gradients(variables, batch):
        def loss(params):
            given = {**variables, "params": params}
            return system.loss(given, batch, rngs={}, controls=system.controls(jnp.int32(0), 10))

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    (total, aux), grads = compiled(gradients, variables(), batch)(variables(), batch)
    terms = {name: float(value) for name, value in aux.terms.items()}
    assert float(total) == pytest.approx(sum(terms[f"exit{number}"] for number in (1, 2, 3, 4)), rel=1e-5)
    assert 0 < terms["density_stage4"] <= terms["density_stage3"] <= terms["density_stage2"] < 1
    # Nobody reads what the last convolution of a head interpolates.
    dead = {path for path, grad in named_leaves(grads) if not np.any(grad)}
    assert all(path.endswith(("lam", "conv/bias")) for path in dead), dead
    assert sum(path.endswith("lam") for path, grad in named_leaves(grads) if np.any(grad)) > 10
    assert set(aux.updates) == {"batch_stats"}


@pytest.mark.parametrize(("task", "options"), [("segmentation", dict(classes=64)), ("pose", {})])
def test_fresh_kernels(task, options):
    """Spread by fan-out (He); what predicts heatmaps as released, so that they start near 0."""
    section = dataclasses.replace(TINY, task=task, task_options=options, adaptivity=None)
    fresh = Anytime(section).init(jax.random.key(0), {"image": IMAGES})["params"]
    kernels = {path: leaf for path, leaf in named_leaves(fresh) if path.endswith("/kernel")}
    last = [leaf for path, leaf in kernels.items() if path.startswith("exit") and "/classify/" in path]
    assert len(last) == 4
    for leaf in last:
        spread = 0.001 if task == "pose" else (2 / leaf.shape[-1]) ** 0.5
        assert np.std(leaf) == pytest.approx(spread, rel=0.25)
    stem = kernels["backbone/conv2/conv/conv/kernel"]
    assert np.std(stem) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)


def test_nothing_is_skipped_before_its_time():
    system = Anytime(dataclasses.replace(TINY, adaptivity=dataclasses.replace(CA, start=0.5)))
    found = [bool(system.controls(jnp.int32(step), 10)["adapt_now"]) for step in (0, 4, 5, 9)]
    assert found == [False, False, True, True]


def test_before_its_time_a_gate_opens_everything_and_given_masks_count():
    nothing = AdaptivityConfig(options=ConfidenceOptions(threshold=0.0))
    network = Anytime(dataclasses.replace(TINY, adaptivity=nothing)).network
    images = jnp.asarray(IMAGES)

    # What follows the second exit is not compiled.
    def masks(variables, images, adapt_now):
        return [one.mask for one in network.apply(variables, images, adapt_now=adapt_now)[:2]]

    run = compiled(masks, variables(), images, jnp.bool_(False))
    for adapt_now, expected in ((False, 1), (True, 0)):
        for mask in run(variables(), images, jnp.bool_(adapt_now)):
            np.testing.assert_array_equal(mask, np.full((2, *CELLS), expected, bool))

    given = nested(0.7)["stage3"]

    def skipped(variables, images, given):
        after = network.apply(variables, images, Routing(masks={"stage2": given}), adapt_now=False)
        return after[0].mask, after[0].logits, after[1].logits

    mask, before, after = compiled(skipped, variables(), images, given)(variables(), images, given)
    np.testing.assert_array_equal(mask, given)
    np.testing.assert_array_equal((np.asarray(before) == after).all(-1), ~given)


GOLDEN = {
    ("w18s2", "plain", 128): (31.4, 42.6, 59.5, 82.9),
    ("w18s2", "redesigned", 64): (23.7, 34.7, 49.9, 73.2),
    ("w48", "plain", 128): (48.4, 113.5, 388.9, 722.2),
    ("w48", "redesigned", 128): (41.9, 105.6, 368.0, 701.3),
}
"""Table 1, and the same for the small network: MACs / 2^30 up to each exit, 1024x2048, 19 classes."""


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] * (case[0] == "w48")) for case in GOLDEN]
)
def test_macs_of_table_1(case):
    arch, kind, features = case
    heads = HeadConfig(kind=kind, features=features)
    system = Anytime(
        AnytimeConfig("anytime", "segmentation", dict(classes=19), HRNetConfig(arch), heads=heads)
    )
    steps = system_macs(system, (1024, 2048)).up_to_predictions({})
    assert [macs / 2**30 for macs in steps] == pytest.approx(GOLDEN[case], abs=0.06)


def test_parts_of_the_network():
    """`dynpix flops` tells them by stages and exits: together they are the steps that are counted layer by
    layer."""
    parts = parts_of(dense_report(tiny(), SIZE))
    # Two 3x3 of stride 2, from 3 channels to 64 to 64.
    assert parts["backbone/stem"] == 32 * 48 * 27 * 64 + 16 * 24 * 9 * 64 * 64
    steps = [parts[f"backbone/stage{number}"] + parts[f"exit{number}"] for number in (1, 2, 3, 4)]
    steps[0] += parts["backbone/stem"]
    assert steps == list(system_macs(tiny(), SIZE).steps)
    assert len(parts) == 9


def test_macs_that_masks_leave():
    """The released code's count of MACs, by hand for one resolution."""
    system = tiny()
    macs = system_macs(system, SIZE)
    full = macs.gated
    assert sum(full.values()) <= sum(macs.steps[1:])
    mask = np.zeros((1, *CELLS), np.float32)
    mask[:, ::2] = 1.0
    gates = {f"stage{number}": jnp.asarray(mask) for number in (2, 3, 4)}
    outputs = dataclasses.replace(jax.eval_shape(system.apply, variables(), IMAGES), gates=gates)
    shares = system.executed_shares(outputs)
    assert set(shares) == set(full)
    # At an eighth the top-left positions are those of even rows: all are computed, none is interpolated.
    assert float(shares["stage3_stride8"][0]) == 1.0
    # Stage 4 at a quarter: two 3x3 of 4 channels, the head's 1x1 of 60 to 60 and of 60 to 5.
    by_hand = dict(stage4_stride4=(2 * 9 * 4 * 4, 2 * 4), exit4_stride4=(60 * 60 + 60 * 5, 60 + 5))
    for name, (products, features) in by_hand.items():
        assert full[name] == 16 * 24 * products
        assert float(shares[name][0]) == pytest.approx(0.5 + 0.5 * 0.5 * 49 * features / products)


@cache
def read_out(kind, exits):
    """A system with exits of this kind, and the shapes of its variables."""
    heads = dataclasses.replace(TINY.heads, kind=kind)
    system = Anytime(dataclasses.replace(TINY, heads=heads, exits=exits, weights=(1.0,) * len(exits)))
    return system, variable_shapes(system)


@pytest.mark.parametrize("exits", [(1, 2, 3, 4), (1, 3, 4)])
@pytest.mark.parametrize("size", [(64, 96), (61, 93)])
@pytest.mark.parametrize("kind", ["redesigned", "plain"])
def test_scopes_hold_what_layers_compute(exits, size, kind):
    """Against a count of every convolution as it is called, grouped by the resolution of what it gives."""
    system, shapes = read_out(kind, exits)
    steps, groups = layers_counted.step_macs(system.config, 5, shapes, size)
    macs = system_macs(system, size)
    assert macs.steps == steps
    cells = (1, -(-size[0] // 4), -(-size[1] // 4))
    mask = jnp.asarray(np.random.default_rng(0).random(cells) < 0.4, jnp.float32)
    masks = {f"stage{number}": mask for number in range(exits[0] + 1, 5)}
    shares = system.executed_shares(Outputs({}, masks))
    expected = layers_counted.shares(groups, masks)
    for stage in masks:
        own = [group for group in groups if group.gate == stage]
        mine = [name for name in macs.gated if name.split("_")[0] in (stage, stage.replace("stage", "exit"))]
        assert sum(macs.gated[name] for name in mine) == sum(group.macs for group in own)
        left = sum(macs.gated[name] * float(shares[name][0]) for name in mine)
        assert left == pytest.approx(sum(group.macs * float(expected[group.name][0]) for group in own))


@pytest.mark.slow
def test_predictions_on_the_way_are_those_of_apply():
    system, given = tiny(), nested(0.7)
    arguments = (variables(), jnp.asarray(IMAGES), {}, Routing(masks=given))
    outputs = compiled(system.apply, *arguments)(*arguments)
    expected = [*outputs.exits, outputs.predictions]
    predictor = StepPredictor(system, arguments[0])
    steps = list(predictor.run(*arguments[1:]))
    assert [step.index for step in steps] == [0, 1, 2, 3]
    for step, exit_ in zip(steps, expected, strict=True):
        np.testing.assert_allclose(step.predictions["segmentation"], exit_["segmentation"], atol=1e-4)
        assert step.confidence.shape == (2, *CELLS)
    full = system_macs(system, SIZE).up_to_predictions({})
    assert steps[0].total_macs == full[0]
    assert all(step.total_macs < macs for step, macs in zip(steps[1:], full[1:], strict=True))
    stopped = predictor.predict(*arguments[1:], budget_macs=full[1])
    assert stopped.index == max(step.index for step in steps if step.total_macs <= full[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(exits=(1, 2)), "exits"),
        (dict(weights=(1.0,)), "weights"),
        (dict(exits=(4,), weights=(1.0,)), "adaptivity"),
        (dict(adaptivity=dict(options=dict(measure="max_value"))), "adaptivity.kind"),
        (dict(task="pose", task_options={}, adaptivity=dict(kind="top_k")), "adaptivity.kind"),
        (dict(adaptivity=dict(kind="pixel")), "adaptivity.kind: 'pixel' does not decide on predictions"),
        (dict(adaptivity=dict(options=dict(threshold=2.0))), "adaptivity.options.threshold"),
        (dict(backbone=dict(arch="w47")), "w48"),
        (dict(heads=dict(downsampling=(0, 1, 1))), "downsampling"),
        (dict(task="depth", task_options={}), "adaptivity.kind: 'confidence' with task 'depth'"),
        (dict(task="dept", task_options={}), "model.task: .*'depth'"),
    ],
)
def test_what_a_config_must_not_say(change, message):
    section = dict(system="anytime", task="segmentation", task_options=dict(classes=5), adaptivity=dict())
    with pytest.raises(UserError, match=message):
        build({**section, **change})
