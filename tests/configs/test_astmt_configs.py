"""configs/astmt: every variant is built, its learning rates are the paper's, one step of each is trained."""

from __future__ import annotations

import importlib
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax import papers
from dynpix_jax.backbones import mobilenet
from dynpix_jax.core.configs import load_config
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.trees import match_first
from dynpix_jax.run_config import read_run
from dynpix_jax.training.checks import check_stages
from dynpix_jax.training.optim import stage_optimizer
from dynpix_jax.training.state import new_state
from dynpix_jax.training.step import make_step
from tests.one_step import QUICKLY
from tests.papers.astmt.tiny import random_variables, small_blocks

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "astmt"
TASKS = {
    "pascal": ("boundaries", "segmentation", "parts", "normals", "saliency"),
    "nyud": ("boundaries", "segmentation", "normals", "depth"),
    "fsv": ("segmentation", "albedo", "depth"),
}
VARIANTS = ("variant=single", "variant=multi", "variant=se", "variant=adapters", "variant=adversarial")
RELEASED = ("variant=released",)
UBER = tuple(f"{variant},decoder=uber" for variant in VARIANTS)
MOBILE = tuple(f"backbone=mobilenet,{v}" for v in (*VARIANTS[:3], "variant=se,se=dec"))
# A few of each kind; the slow test has them all.
QUICK = (
    ("pascal", "backbone=r26,variant=adversarial"),
    ("pascal", "backbone=mobilenet,variant=se,se=dec"),
    ("nyud", "backbone=r26,variant=adapters"),
    ("fsv", "variant=multi,decoder=uber"),
    ("scenes", "variant=multi"),
    ("bsds_camvid", "variant=multi"),
    ("bsds_camvid", "variant=single,task=segmentation"),
)


def load(name: str, arg: str = "") -> Any:
    return load_config(f"{FOLDER / name}.py:{arg}")


def every_program() -> list[tuple[str, str]]:
    specs = [("scenes", variant) for variant in VARIANTS]
    specs += [("bsds_camvid", variant) for variant in VARIANTS[:3]]
    specs += [("pascal", variant) for variant in MOBILE]
    rows = itertools.product(("r26", "r50", "r101"), (*VARIANTS, *RELEASED, *UBER))
    specs += [(name, f"backbone={depth},{row}") for name in TASKS for depth, row in rows]
    return specs


def assert_builds(name: str, arg: str) -> Any:
    """Networks and rules of a config; its source has the labels and classes."""
    config = load(name, arg)
    (stage,) = check_stages(read_run(config))
    assert stage.steps > 0
    return config


@pytest.mark.parametrize(("name", "arg"), QUICK)
def test_builds(name, arg):
    config = assert_builds(name, arg)
    if name in TASKS:
        assert tuple(config.model.tasks) == TASKS[name]
        training = read_run(config).training
        assert training.stages[0].learning_rate == 0.005
        assert (training.optimizer, training.momentum, training.weight_decay) == ("sgd", 0.9, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "arg"), every_program())
def test_every_program_builds(name, arg):
    assert_builds(name, arg)


def test_weights_and_rates_are_the_papers():
    config = load("pascal", "variant=adversarial,backbone=r26")
    weights = dict(boundaries=50, segmentation=1, parts=2, normals=10, saliency=5)
    assert config.model.task_weights.to_dict() == weights
    assert dict(load("fsv").model.task_weights) == dict(segmentation=1, albedo=10, depth=1)
    assert config.model.adversarial.weight == 0.1
    assert config.model.task_options.boundaries.positive_weight == 0.95
    rules = config.training.stages[0]["multipliers"]
    rates = {
        "backbone/stem_conv/kernel": 1 / 5,
        "backbone/res2_1/conv1/kernel": 1 / 5,
        "backbone/res2_1/bn1/parts/scale": 1,
        "decoder/join/se/normals/reduce/bias": 1,
        "head_saliency/kernel": 1,
        "discriminator/conv1/kernel": 2,
    }
    for path, rate in rates.items():
        assert match_first(rules, path) == pytest.approx(rate), path
    # 60 epochs of 4998 images by 8; 200 of NYUD's 795.
    assert config.training.stages[0]["steps"] == 37485
    assert load("nyud").training.stages[0]["steps"] == 19875
    assert load("nyud").evaluation.max_dist == 0.011
    # A joint run of two data sets has twice the updates of a run for one.
    assert (
        load("bsds_camvid").training.stages[0]["steps"]
        == 2 * (load("bsds_camvid", "variant=single").training.stages[0]["steps"])
    )


@pytest.mark.parametrize(
    ("name", "arg", "message"),
    [
        ("pascal", "variant=mutli", "did you mean 'multi'"),
        ("pascal", "task=parts", "variant=multi does not read it"),
        ("pascal", "variant=single,task=depth", "task=depth"),
        ("pascal", "backbone=mobilenet,variant=adversarial", "backbone=mobilenet has none"),
        ("nyud", "variant=se,decoder=uber,se=dec", "decoder=uber has no SE"),
        ("nyud", "variant=adversarial,w_d=1", "w_d=1"),
        ("nyud", "classes=39", "classes=39: valid: 40, 41"),
        ("nyud", "variant=single,task=depth,classes=40", "classes is for task=segmentation"),
        ("nyud", "variant=single,task=depth,valid_normals=astmt", "valid_normals is for task=normals"),
        ("nyud", "valid_normals=all", "did you mean 'astmt'|valid_normals=all"),
        ("fsv", "variant=single,task=albedo,scores=astmt", "it is for task=segmentation or parts or depth"),
        ("pascal", "scores=mean", "scores=mean"),
        ("pascal", "backbone=mobilenet,variant=released", "backbone=mobilenet has none"),
        ("pascal", "variant=released,decoder=uber", "expected deeplab"),
        ("pascal", "variant=released,norm=own", "variant=released does not read it"),
        ("scenes", "root=x", "the scenes do not read it"),
        ("bsds_camvid", "backbone=r50", "this config reads"),
        ("bsds_camvid", "variant=adapters", "variant=adapters"),
    ],
)
def test_wrong_arguments(name, arg, message):
    with pytest.raises(UserError, match=message):
        load(name, arg)


def test_other_countings_of_the_data_sets():
    """40 classes; all normals. Without the arguments nothing of them is in the config."""
    plain, other = load("nyud"), load("nyud", "classes=40,valid_normals=astmt")
    assert other.model.task_options.segmentation.classes == other.data.eval.source.classes == 40
    assert other.data.train.source.valid_normals == other.data.eval.source.valid_normals == "astmt"
    assert not {"classes", "valid_normals"} & set(plain.data.train.source)
    assert read_run(other).data.train.source.options.valid_normals == "astmt"
    packed = load("nyud", "classes=40,valid_normals=astmt,packed").data.train.source.options
    assert packed.to_dict() == dict(classes=40, valid_normals="astmt")


def test_scores_as_released():
    options = {name: load(name, "scores=astmt").model.task_options for name in TASKS}
    for name, tasks in TASKS.items():
        for task in tasks:
            expected = "astmt" if task in ("segmentation", "parts", "depth") else None
            assert options[name].get(task, {}).get("scoring") == expected
            assert "scoring" not in load(name).model.task_options[task]
    assert options["nyud"].segmentation.classes == 41
    papers.build(load("nyud", "scores=astmt,backbone=r26").model.to_dict())


def test_norms_of_each_task_are_those_of_the_release():
    """ResNets: the encoder's wherever there are several tasks, the decoder's with its SE."""
    expected = {
        "variant=single": (False, False),
        "variant=multi": (True, False),
        "variant=se": (True, True),
        "variant=se,se=enc": (True, False),
        "variant=se,se=dec": (True, True),
        "variant=adapters": (True, False),
        "variant=adversarial": (True, True),
        "variant=released": (True, True),
        "variant=multi,norm=shared": (False, False),
        "variant=multi,norm=own": (True, True),
        "variant=se,decoder=uber": (True, False),
        "variant=multi,backbone=mobilenet": (False, False),
        "variant=se,se=dec,backbone=mobilenet": (False, True),
        "variant=se,backbone=mobilenet": (True, True),
    }
    for arg, norms in expected.items():
        model = load("pascal", arg).model
        assert (model.encoder.norm, model.decoder.norm) == norms, arg


def test_the_released_combination():
    """SE, adapters and discriminator in one network, with the values of the released training."""
    run = read_run(load("nyud", "variant=released"))
    model = run.stages[-1].model
    for part in (model.encoder, model.decoder):
        assert (part.se, part.norm, part.adapters) == (True, True, True)
    assert (model.adversarial.weight, model.adversarial.kernel) == (0.01, 3)
    assert (model.backbone.stride_in_1x1, model.backbone.preprocessing) == (True, "none")
    assert model.task_options["boundaries"].positive_weight == 0.8
    assert load("nyud", "variant=released,w_d=0.1").model.adversarial.weight == 0.1
    pascal = load("pascal", "variant=released").model
    assert "kernel" not in pascal.adversarial
    assert pascal.task_options.boundaries.positive_weight == 0.95
    assert pascal.task_options.normals.epsilon == "astmt"
    rules = load("nyud", "variant=released").training.stages[0]["multipliers"]
    assert match_first(rules, "discriminator/conv1/kernel") == 2.5
    assert match_first(rules, "backbone/res2_1/adapter/depth/kernel") == 1.0


def random_labels(tasks: tuple[str, ...], shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    normals = np.broadcast_to(np.float32([0.6, 0.0, -0.8]), (*shape, 3)).copy()
    fields = dict(
        boundaries=(rng.random(shape) < 0.1).astype(np.float32),
        segmentation=rng.integers(0, 3, shape).astype(np.int32),
        parts=rng.integers(0, 7, shape).astype(np.int32),
        normals=normals,
        saliency=rng.integers(0, 2, shape).astype(np.int32),
        depth=rng.uniform(0.5, 8, shape).astype(np.float32),
        albedo=rng.random((*shape, 3)).astype(np.float32),
    )
    return {task: fields[task] for task in tasks}


def assert_trains(name: str, arg: str, patch: pytest.MonkeyPatch) -> None:
    """A step of a narrow network with a block a stage; all that is trained changes."""
    small_blocks(patch)
    groups = ((1, 4, 1, 1, "a"), (6, 8, 2, 2, "b"), (6, 8, 1, 2, "c"), (6, 8, 1, 2, "d"))
    patch.setattr(mobilenet, "_GROUPS", groups)
    config = load(name, arg)
    if config.model.backbone.name == "mobilenetv2":
        config.model.backbone.width = 0.25
    else:
        config.model.backbone.update(depth=26, width=4)
    config.model.decoder.update(features=6, rates=(1,))
    training = read_run(config).training
    (stage,) = training.stages
    system = papers.build(stage.model)
    variables = random_variables(system)
    shape = (2, 16, 20)
    batch = {
        "image": np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8),
        **random_labels(tuple(system.tasks), shape),
        "valid": np.ones(2, bool),
    }
    optimizer = stage_optimizer(variables["params"], training, stage, system)
    state = new_state(variables, optimizer.tx, optimizer.pick, 0)
    step = jax.jit(make_step(system, optimizer, seed=0, stage_start=0, stage_steps=stage.steps))
    batch = jax.tree.map(jnp.asarray, batch)
    end, metrics = step.lower(state, batch).compile(compiler_options=QUICKLY)(state, batch)
    assert all(np.isfinite(value) for value in metrics.values())
    assert all(metrics[task] > 0 for task in system.tasks)
    before, after = optimizer.pick(variables["params"]), optimizer.pick(end.params)
    changed = [path for path in before if not np.array_equal(before[path], after[path])]
    assert len(changed) > len(before) / 2


def test_trains_a_step(monkeypatch):
    assert_trains("bsds_camvid", "variant=multi", monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arg"), [*QUICK, *[("pascal", v) for v in (*VARIANTS, *RELEASED, *UBER, *MOBILE)]]
)
def test_every_kind_trains_a_step(name, arg, monkeypatch):
    assert_trains(name, arg, monkeypatch)


def test_every_config_is_tested():
    files = {file.stem for file in FOLDER.glob("*.py")} - {"recipe", "folder"}
    assert files == {name for name, _ in QUICK}
    assert all(importlib.util.find_spec(f"configs.astmt.{name}") for name in files)
