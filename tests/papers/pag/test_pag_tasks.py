"""PAG's heads for every task: shapes, parameters, MACs by hand, loss."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest

from dynpix_jax import papers
from dynpix_jax.backbones.resnet import ResNetConfig
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.routing import Routing
from dynpix_jax.core.trees import named_leaves
from dynpix_jax.flops import dense_report, gated_macs
from dynpix_jax.papers.pag.system import MultiPoolConfig, Pag, PagConfig

SIZE = (33, 49)
BACKBONE = ResNetConfig(depth=26, width=8)
CHANNELS = {"segmentation": 5, "depth": 1, "normals": 3}


def system_of(task: str, **options) -> Pag:
    task_options = {"classes": 5} if task == "segmentation" else {}
    return Pag(PagConfig("pag", task, BACKBONE, head_features=4, task_options=task_options, **options))


def variables_of(system: Pag, seed: int = 0):
    """Random small numbers, moments too; nothing is compiled."""
    rng = np.random.default_rng(seed)
    images = jax.ShapeDtypeStruct((1, *SIZE, 3), np.uint8)
    shapes = jax.eval_shape(lambda key: system.init(key, {"image": images}), jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.uniform(0.05, 0.1, leaf.shape).astype(np.float32), shapes)


def shapes_of(system: Pag) -> dict[str, tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in named_leaves(variables_of(system)["params"])}


def decoder_shapes(name: str, channels: int, stride: int, features: int, out: int) -> dict[str, tuple]:
    return {
        f"{name}/reduce/kernel": (1, 1, channels, features),
        f"{name}/reduce/bias": (features,),
        f"{name}/deconv/kernel": (2 * stride, 2 * stride, features, features),
        f"{name}/conv/kernel": (3, 3, features, features),
        f"{name}/conv/bias": (features,),
        f"{name}/logits/kernel": (3, 3, features, out),
        f"{name}/logits/bias": (out,),
    }


def test_the_boundary_network_keeps_its_parameters():
    """Checkpoints of it exist."""
    head = {path: shape for path, shape in shapes_of(system_of("boundaries")).items() if path[:5] == "head/"}
    expected: dict[str, tuple] = {"head/fusion/kernel": (1, 1, 4, 1), "head/fusion/bias": (1,)}
    for stage, channels, stride in (("res2", 32, 4), ("res3", 64, 8), ("res4", 128, 8), ("res5", 256, 8)):
        expected |= decoder_shapes(f"head/{stage}", channels, stride, 4, 1)
    assert head == expected


@pytest.mark.parametrize("task", CHANNELS)
@pytest.mark.parametrize("res6", [False, True])
def test_one_decoder_for_the_other_tasks(task, res6):
    """Res5 is 5x7 with 256 channels, Res6 of the same size with 64."""
    system, channels = system_of(task, res6=res6), CHANNELS[task]
    shapes = shapes_of(system)
    head = {path: shape for path, shape in shapes.items() if path[:5] == "head/"}
    assert head == decoder_shapes("head/decoder", 64 if res6 else 256, 8, 4, channels)
    assert any(path.startswith("res6/") for path in shapes) == res6
    images = jax.ShapeDtypeStruct((2, *SIZE, 3), np.uint8)
    outputs = jax.eval_shape(system.apply, variables_of(system), images)
    assert outputs.predictions[task].shape == (2, *SIZE, channels)
    assert outputs.exits == ()

    boundary = dense_report(system_of("boundaries"), SIZE).by_scope
    backbone = sum(macs for scope, macs in boundary.items() if "/backbone" in scope)
    expected = backbone + (35 * 9 * (256 * 64 + 64 * 64) if res6 else 0)
    # The deconvolution has a block of output pixels more than cells, down and across.
    expected += 35 * (64 if res6 else 256) * 4 + 6 * 8 * (4 * 4) * (8 * 8 * 4)
    expected += 33 * 49 * 9 * (4 * 4 + 4 * channels)
    assert dense_report(system, SIZE).total == expected


def test_multipool_in_res6():
    system = system_of("depth", res6=True, multipool=MultiPoolConfig(blocks=("res6",), dilations=(0, 1, 2)))
    assert gated_macs(system, SIZE) == {f"res6/dilation_{d}": 35 * 9 * 64 * 64 for d in (1, 2)}


def test_loss_is_the_tasks_own():
    """One loss, on the prediction: side outputs are the boundary network's."""
    system = system_of("depth", drop_blocks=6)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (2, *SIZE, 3), np.uint8),
        "depth": rng.uniform(0, 3, (2, *SIZE)).astype(np.float32),
        "valid": np.array([True, False]),
    }

    @jax.jit
    def run(variables, key):
        outputs = system.apply(variables, batch["image"], {}, Routing(train=True), rngs={"gumbel": key})
        expected = system.task.loss(outputs.predictions["depth"], batch["depth"], batch["valid"])
        return expected, system.loss(variables, batch, rngs={"gumbel": key}, controls=system.controls(0, 1))

    expected, (total, aux) = run(variables_of(system), jax.random.key(0))
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    assert set(aux.terms) == {"depth"}
    assert float(total) > 0


def test_tasks_are_hashable_parts_of_a_system():
    system = system_of("segmentation")
    assert list(system.tasks) == ["segmentation"]
    assert system.tasks["segmentation"] is system.task
    assert system.task.channels == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(task="dept"), r"config\.model\.task: there is no task 'dept'; did you mean 'depth'"),
        (
            dict(task="depth", task_options=dict(classes=3)),
            r"config\.model\.task_options\.classes: unknown key",
        ),
        (dict(task="segmentation"), r"config\.model\.task_options\.classes: missing; expected int"),
        (dict(task="normals", task_options=dict(arccos=-1.0)), r"config\.model\.task_options\.arccos: -1\.0"),
    ],
)
def test_mistakes_name_the_key(changes, message):
    section = dict(system="pag", backbone=dict(depth=26)) | changes
    with pytest.raises(UserError, match=message):
        papers.build(section)


def test_a_stage_of_another_task_keeps_the_backbone():
    """Weights of a boundary network start a depth network: its head stays fresh."""
    first, second = system_of("boundaries", drop_blocks=6), system_of("depth", drop_blocks=6)
    given, fresh = variables_of(first), variables_of(second, seed=1)
    adapted = second.adapt(given, fresh)
    jax.tree.map(np.testing.assert_array_equal, adapted["params"]["backbone"], given["params"]["backbone"])
    jax.tree.map(np.testing.assert_array_equal, adapted["params"]["head"], fresh["params"]["head"])
    assert replace(first.config, task="depth") == second.config
