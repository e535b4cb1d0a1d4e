"""ASTMT: turns that leave other tasks alone, gradients that a discriminator reads, sizes of the networks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax import papers
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.trees import named_leaves
from dynpix_jax.flops import dense_report, variable_shapes
from dynpix_jax.nn.per_task import Modulation
from dynpix_jax.papers.astmt.adversarial import (
    discriminator_loss,
    loss_and_gradient,
    reversal_strength,
    reverse_gradient,
    unit_gradient,
)
from dynpix_jax.papers.astmt.layers import Discriminator, Unit, predictor
from dynpix_jax.training.optim import Flat
from tests.one_step import QUICKLY
from tests.papers.astmt.tiny import (
    TASKS,
    random_batch,
    random_variables,
    section,
    small_blocks,
    training_step,
)

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module", autouse=True)
def _small():
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch)
        yield


def leaves(tree: Any) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in named_leaves(tree)}


@pytest.fixture(scope="module")
def trained():
    """A system, its states before and after two steps: one with all labels, one without any depth."""
    system = papers.build(section())
    step, state, _ = training_step(system, random_variables(system))
    batch = random_batch()
    run = jax.jit(step).lower(state, batch).compile(compiler_options=QUICKLY)
    first, metrics = run(state, batch)
    no_depth = {**batch, "depth": jnp.zeros_like(batch["depth"])}
    second, skipped = run(first, no_depth)
    return system, (state, first, second), (metrics, skipped)


def momentum(state: Any) -> Flat:
    """Of all leaves, by path."""
    return {path.split("/", 1)[1]: leaf for path, leaf in _momenta(state.opt_state)}


def _momenta(tree: Any) -> list[tuple[str, np.ndarray]]:
    found = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        if len(names) == 2:
            found.append(("/".join(names), np.asarray(leaf)))
    return found


def test_a_turn_changes_what_its_task_uses(trained):
    """Acceptance of the paper's last detail: no update, momentum or decay of what a task does not use."""
    system, (start, first, second), (metrics, skipped) = trained
    assert (metrics["boundaries/labelled"], metrics["depth/labelled"]) == (1, 1)
    assert (skipped["boundaries/labelled"], skipped["depth/labelled"]) == (1, 0)
    assert skipped["depth"] == 0
    assert skipped["boundaries"] > 0
    states = [leaves(state.params) for state in (start, first, second)]
    moving = [momentum(state) for state in (start, first, second)]
    assert moving[0].keys() == states[0].keys()
    owners = {path: system.owner(path) for path in states[0]}
    assert set(owners.values()) == {None, *TASKS}
    for path, owner in owners.items():
        if owner == "depth":
            np.testing.assert_array_equal(states[1][path], states[2][path], path)
            np.testing.assert_array_equal(moving[1][path], moving[2][path], path)
        elif path.endswith(("kernel", "scale")) and "adapter" not in path:
            # Decay alone moves these.
            assert not np.array_equal(states[1][path], states[2][path]), path
            assert not np.array_equal(moving[1][path], moving[2][path]), path
        if path.endswith("scale"):
            assert not np.array_equal(states[0][path], states[1][path]), path


def test_norms_move_with_their_task(trained):
    system, states, _ = trained
    _, first, second = (leaves(state.collections["batch_stats"]) for state in states)
    for path, value in first.items():
        assert np.array_equal(value, second[path]) == (system.owner(path) == "depth"), path


def test_declared_use_is_what_the_loss_depends_on():
    """A gradient of exactly zero for all that a turn does not use, and another one for what it uses."""
    system = papers.build(section(adversarial=dict(weight=0.1)))
    variables = random_variables(system)
    batch = random_batch()
    controls = {"reversal": jnp.asarray(0.5)}

    def loss(params: Any, turn: str) -> Any:
        given = {**variables, "params": params}
        return system.turn_loss(given, batch, turn, rngs={}, controls=controls)[0]

    grad = jax.jit(jax.grad(loss), static_argnums=1)
    run = grad.lower(variables["params"], "depth").compile(compiler_options=QUICKLY)
    gradients = leaves(run(variables["params"]))
    used = {path for path in gradients if system.uses("depth", path)}
    assert not any(gradients[path].any() for path in gradients.keys() - used)
    assert "discriminator/conv1/kernel" in used
    # Units of so narrow a network may be dead.
    assert sum(gradients[path].any() for path in used) > 0.8 * len(used) > 0.3 * len(gradients)


def head(weights: Any, features: Any) -> tuple[Any, Any]:
    """A tiny task: a 1x1 layer and a loss with a second derivative."""
    logits = jnp.einsum("bhwc,cd->bhwd", features, weights)
    return (jax.nn.softplus(logits) - 0.3 * logits).mean(), {}


def test_the_discriminator_reads_the_gradient_of_an_explicit_vjp():
    keys = jax.random.split(jax.random.key(0), 3)
    features, weights = jax.random.normal(keys[0], (2, 3, 4, 5)), jax.random.normal(keys[1], (5, 2))
    value, _, gradient = loss_and_gradient(lambda x: head(weights, x), features)
    expected, pull = jax.vjp(lambda x: head(weights, x)[0], features)
    np.testing.assert_array_equal(value, expected)
    np.testing.assert_allclose(gradient, pull(jnp.ones(()))[0], rtol=1e-6)


def test_solved_positions_fade_for_the_discriminator():
    """g / (|g| + 1e-10), whatever the map's largest is."""
    lengths = np.array([1.0, 1e-6, 1e-8, 1e-9, 1e-10, 1e-11, 1e-12, 1e-14, 1e-25, 0.0])
    directions = np.random.default_rng(0).normal(size=(len(lengths), 5))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    gradient = jnp.asarray((lengths[:, None] * directions)[None, None], jnp.float32)
    found = np.linalg.norm(unit_gradient(gradient)[0, 0], axis=-1)
    np.testing.assert_allclose(found, lengths / (lengths + 1e-10), rtol=1e-5, atol=1e-9)
    # Finite backwards, too: to first order the direction's change over |g| + 1e-10.
    slope = jax.grad(lambda g: (unit_gradient(g) ** 3).sum())(gradient)
    assert np.isfinite(slope).all()


def test_the_reversal_changes_the_sign_alone():
    """Through the gradient of the task's loss, second derivatives and all, against finite differences."""
    keys = jax.random.split(jax.random.key(1), 4)
    features, weights = jax.random.normal(keys[0], (1, 2, 2, 3)), jax.random.normal(keys[1], (3, 2))
    tells = jax.random.normal(keys[2], (3, 2))
    labelled = jnp.ones((1, 4, 4), bool)

    @jax.jit
    def told(x: Any, weights: Any, tells: Any, strength: float) -> Any:
        _, _, gradient = loss_and_gradient(lambda x: head(weights, x), x)
        discriminate = lambda g: jnp.einsum("bhwc,cd->bhwd", g, tells)  # noqa: E731
        return discriminator_loss(discriminate, gradient, labelled, 1, jnp.asarray(strength))

    arguments = (features, weights, tells)
    assert told(*arguments, 0.0) == told(*arguments, 2.0)
    backwards = jax.jit(jax.grad(told, (0, 1, 2)))(*arguments, 0.7)
    for place, (value, gradient) in enumerate(zip(arguments, backwards, strict=True)):
        direction = np.asarray(jax.random.normal(keys[3], value.shape))
        ends = []
        for sign in (1, -1):
            moved = [*arguments]
            moved[place] = value + sign * 1e-2 * direction
            ends.append(float(told(*moved, 0.7)))
        slope = (ends[0] - ends[1]) / 2e-2
        # The discriminator itself (place 2) learns to tell; what its input comes from learns the opposite.
        expected = slope if place == 2 else -0.7 * slope
        assert float((np.asarray(gradient) * direction).sum()) == pytest.approx(expected, rel=2e-2, abs=1e-4)


def test_reversal_strength():
    assert float(reversal_strength(jnp.asarray(0.0), 60)) == pytest.approx(0.08314, abs=1e-5)
    assert float(reversal_strength(jnp.asarray(59.0), 60)) == pytest.approx(0.99991, abs=1e-5)
    system = papers.build(section(adversarial=dict(weight=0.1, epochs=60)))
    found = [float(system.controls(jnp.asarray(step), 600)["reversal"]) for step in (0, 9, 10, 599)]
    assert found[0] == found[1] < found[2]
    assert found[0] == pytest.approx(0.08314, abs=1e-5)
    assert found[3] == pytest.approx(0.99991, abs=1e-5)
    assert float(jax.grad(lambda x: reverse_gradient(x, jnp.asarray(0.25)) * 3.0)(1.0)) == -0.75


def test_without_weight_the_discriminator_changes_nothing(trained):
    """w_d = 0: bit for bit the plain run, and the discriminator keeps its first values."""
    _, (_, plain, _), (metrics, _) = trained
    system = papers.build(section(adversarial=dict(weight=0.0)))
    variables, batch = random_variables(system), random_batch()
    step, state, _ = training_step(system, variables)
    end, same = jax.jit(step).lower(state, batch).compile(compiler_options=QUICKLY)(state, batch)
    assert metrics.keys() == same.keys()
    for name in metrics:
        np.testing.assert_array_equal(metrics[name], same[name])
    start, first, second = leaves(variables["params"]), leaves(plain.params), leaves(end.params)
    for path, value in second.items():
        np.testing.assert_array_equal(value, (start if path.startswith("discriminator") else first)[path])


def test_adapters_start_as_nothing_and_shared_parts_run_once():
    """Zero adapters: all tasks' features are those of the network without. Shared encoders count once."""
    system = papers.build(section(encoder=dict(adapters=True), decoder=dict(features=6, rates=(1,))))
    plain = papers.build(section(encoder=dict(), decoder=dict(features=6, rates=(1,))))
    variables, images = random_variables(system), random_batch()["image"]

    def prune(tree: Any) -> Any:
        return {k: prune(v) if isinstance(v, dict) else v for k, v in tree.items() if k != "adapter"}

    found = system.apply(variables, images).predictions
    expected = plain.apply(jax.tree.map(jnp.asarray, prune(variables)), images).predictions
    for task in TASKS:
        np.testing.assert_array_equal(found[task], expected[task])
    single = papers.build(section(tasks=("depth",), encoder=dict(), decoder=dict(features=6, rates=(1,))))
    # A turn too: a batch without its labels changes nothing (tests/training/test_turns.py).
    assert single.turns == ("depth",)
    both, one = (dense_report(system, (32, 32)).total for system in (plain, single))
    # A further task costs a 1x1 convolution of the 8 x 8 map and its resizing to 32 x 32.
    assert both - one == 64 * 6 + 32 * 8 * (8 + 32)


def spread(module: nn.Module, *inputs: Any, **options: Any) -> dict[str, float]:
    """Standard deviation of each parameter's first values."""
    params = module.init(jax.random.key(0), *inputs, **options)["params"]
    return {path: float(leaf.std()) for path, leaf in named_leaves(params)}


@pytest.mark.parametrize("separable", [False, True])
def test_first_values_are_as_released(separable):
    """ResNets: N(0, .01), SE by its inputs. MobileNet: by the number of outputs, SE N(0, .01)."""
    own = Modulation(TASKS, se=True, norm=True)
    unit = Unit(128, 64, own, separable=separable)
    found = spread(unit, jnp.zeros((1, 1, 1, 128)), "depth", train=False)
    small = pytest.approx(0.01, rel=0.1)
    assert found["conv/kernel"] == (pytest.approx((2 / 64) ** 0.5, rel=0.1) if separable else small)
    se = small if separable else pytest.approx((2 / 64) ** 0.5, rel=0.2)
    assert found["se/depth/reduce/kernel"] == se
    assert found["se/depth/reduce/bias"] == 0.0


def test_first_values_of_the_discriminator_and_the_predictions():
    found = spread(Discriminator(64, 5, 3), jnp.zeros((1, 1, 1, 64)))
    assert found["conv1/kernel"] == pytest.approx(0.01, rel=0.1)
    assert found["conv2/kernel"] == pytest.approx(0.01, rel=0.1)
    # Uniform up to 1 / 8, as PyTorch's convolutions.
    assert spread(predictor(64, 500), jnp.zeros((1, 1, 1, 64)))["bias"] == pytest.approx(
        1 / 8 / 3**0.5, rel=0.1
    )


def test_published_ratio_of_mobilenet():
    """Figure 1's text: modulated, it has 8 % of the parameters of the multi-task R-50."""
    tasks = ("boundaries", "segmentation", "parts", "normals", "saliency")
    options = dict(segmentation=dict(classes=21))
    common: dict[str, Any] = dict(system="astmt", tasks=tasks, task_options=options)
    own = dict(se=True, norm=True)
    common["backbone"], separable = dict(name="mobilenetv2"), dict(separable=True)
    mobile = papers.build({**common, "encoder": own, "decoder": {**own, **separable}})
    plain = papers.build({**common, "decoder": separable})
    r50 = papers.build({**common, "backbone": dict(se=True, depth=50, output_stride=16)})
    counts = {}
    for name, system in (("mobile", mobile), ("plain", plain), ("r50", r50)):
        counts[name] = sum(leaf.size for _, leaf in named_leaves(variable_shapes(system)["params"]))
    assert 100 * counts["mobile"] / counts["r50"] == pytest.approx(8, abs=1)
    # Decoder of R-50 by hand: ASPP (1x1, three 3x3, pooled 1x1; a 1x1 over them), low-level 1x1, two 3x3;
    # a norm's two vectors each; 39 channels of predictions.
    aspp = 2048 * 64 * (1 + 27 + 1) + 5 * 64 * 64
    decoder = aspp + 256 * 12 + 9 * 76 * 64 + 9 * 64 * 64 + 2 * (8 * 64 + 12) + 65 * (1 + 21 + 7 + 3 + 1)
    # Its encoder is the published classifier less its last layer.
    assert counts["r50"] == 28_088_024 - 2_049_000 + decoder
    # Separable: 3x3 of each channel and a 1x1; encoder with SE.
    blocks = (16, 24, 24, *[32] * 3, *[64] * 4, *[96] * 3, *[160] * 3, 320)
    excite = sum(2 * c * (c // 4) + c // 4 + c for c in blocks)
    aspp = 320 * 64 * 5 + 3 * 9 * 320 + 5 * 64 * 64
    decoder = aspp + 24 * 12 + 9 * (76 + 64) + (76 + 64) * 64 + 2 * (8 * 64 + 12) + 65 * 33
    assert counts["plain"] == 1_811_712 + excite + decoder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(tasks=()), "expected at least one"),
        (dict(tasks=("depth", "dept")), "did you mean 'depth'"),
        (dict(task_weights=dict(normals=1.0)), r"task_weights\.normals"),
        (dict(task_weights=dict(depth=0.0)), r"task_weights\.depth: 0\.0; expected a positive"),
        (dict(backbone=dict(name="resnet18")), "there is no backbone 'resnet18'; did you mean 'resnet'"),
        (dict(backbone=dict(depth=18)), r"encoder\.se: nothing reads True: this resnet has none"),
        (dict(backbone=dict(name="mobilenetv2")), r"encoder\.adapters: .* this mobilenetv2 has none"),
        (
            dict(backbone=dict(name="mobilenetv2", se=False), encoder=dict(se=True), decoder={}),
            r"encoder\.se",
        ),
        (dict(decoder=dict(adapters=True, separable=True)), r"decoder\.adapters: .* separable"),
        (dict(decoder=dict(kind="uber", se=True)), r"decoder\.se: .* 'uber'"),
        (dict(tasks=("depth",), adversarial={}), "adversarial: of one task"),
        (dict(adversarial=dict(weight=1.0)), r"adversarial\.weight: 1\.0"),
    ],
)
def test_sections_that_make_no_sense(changes, message):
    with pytest.raises(UserError, match=message):
        papers.build(section(**changes))


@pytest.mark.slow
def test_8_devices_give_the_losses_of_1():
    """With the discriminator, norms and SE of each task; the turns alone: tests/training/test_turns.py."""
    command = [sys.executable, "-W", "error", "-m", "tests.papers.astmt.devices"]
    running = []
    for devices in (1, 8):
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
        running.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=-1, stderr=-1, text=True))
    found = []
    for devices, process in zip((1, 8), running, strict=True):
        out, errors = process.communicate(timeout=1800)
        assert process.returncode == 0, errors
        found.append(json.loads(out.splitlines()[-1]))
        assert found[-1]["devices"] == devices
    for one, eight in zip(found[0]["lines"], found[1]["lines"], strict=True):
        assert one.keys() == eight.keys()
        for name in one:
            assert eight[name] == pytest.approx(one[name], rel=1e-3, abs=1e-6), name
    assert found[0]["lines"][-1]["loss"] < found[0]["lines"][0]["loss"]
