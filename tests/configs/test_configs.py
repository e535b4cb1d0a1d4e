"""Every config of quickstart and PAG is read, its networks have the right shapes, its last stage trains.

On random elements of its source's spec; trained is a small network. A few programs stand for all; the others,
each task with each variant, are slow.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import pytest

from dynpix_jax import papers
from dynpix_jax.backbones import resnet
from dynpix_jax.core.configs import load_config
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.source import Element, FieldSpec, SourceSpec
from dynpix_jax.core.system import System
from dynpix_jax.data.sources import SOURCES, read_source
from dynpix_jax.flops import variable_shapes
from dynpix_jax.papers.pag.config import gated_blocks
from dynpix_jax.run_config import read_run
from dynpix_jax.training.checks import check_stages
from tests.one_step import stage_system, take_one_step

ROOT = Path(__file__).resolve().parents[2]
QUICK = (
    "quickstart.py",
    "pag/quickstart_gates.py",
    "pag/boundaries.py",
    "pag/bsds500.py:variant=layer_skip",
    "pag/camvid.py:variant=gated",
    "pag/cityscapes.py:task=segmentation,variant=multipool",
    "pag/nyuv2.py:task=depth,variant=average,multipool=res6,budget=gpu",
    "pag/scenes.py:task=boundaries,variant=base",
    "pag/sevenscenes.py:task=normals,variant=gated,gate_scope=conv3x3",
    "pag/stanford2d3d.py:task=normals,variant=truncated",
)
ELSEWHERE = {
    "anytime": "tests/configs/test_pose_configs.py",
    "astmt": "tests/configs/test_astmt_configs.py",
    "mdeq": "tests/configs/test_mdeq_configs.py",
    "perspective": "tests/configs/test_perspective_configs.py",
    "pixelnet": "tests/configs/test_pixelnet_configs.py",
}
TASKS = {
    "nyuv2": ("segmentation", "depth", "normals"),
    "stanford2d3d": ("segmentation", "depth", "normals"),
    "cityscapes": ("segmentation", "depth"),
    "camvid": ("segmentation",),
    "sevenscenes": ("depth", "normals"),
    "scenes": ("boundaries", "segmentation", "depth", "normals"),
}
VARIANTS = ("base", "multipool", "average", "gated", "truncated", "layer_skip")


def every_program() -> list[str]:
    """Each task with each variant of every config, and what else changes a program."""
    specs = [f"pag/bsds500.py:variant={variant}" for variant in VARIANTS]
    for name, tasks in TASKS.items():
        variants = VARIANTS[:4] if name == "scenes" else VARIANTS
        specs += [f"pag/{name}.py:task={task},variant={v}" for task, v in itertools.product(tasks, variants)]
    losses = ("depth,loss=l1", "depth,loss=l2", "normals,loss=cosine", "normals,loss=arccos")
    specs += [f"pag/nyuv2.py:task={loss}" for loss in losses]
    return [*specs, "pag/nyuv2.py:task=segmentation,variant=multipool,multipool=res3_2+res4_2+res5_2+res6"]


@dataclasses.dataclass(frozen=True)
class RandomElements:
    """Two elements of 48x64 pixels as a spec declares them, a few pixels of each label ignored."""

    spec: SourceSpec

    def __len__(self) -> int:
        return 2

    def name(self, index: int) -> str:
        return str(index)

    def __getitem__(self, index: int) -> Element:
        rng = np.random.default_rng(index)
        made = {name: random_field(rng, field) for name, field in self.spec.fields.items()}
        return made | {"index": np.array(index, np.int64)}


def random_field(rng: np.random.Generator, field: FieldSpec) -> np.ndarray:
    shape = (48, 64)
    value: Any = {
        "image": lambda: rng.integers(0, 256, (*shape, 3)),
        "boundary": lambda: rng.random(shape) < 0.1,
        # Ids of instances have no classes.
        "label": lambda: rng.integers(0, len(field.classes) or 5, shape),
        "depth": lambda: rng.uniform(0.5, 8, shape),
        "normals": lambda: np.broadcast_to([0.6, 0.0, -0.8], (*shape, 3)).copy(),
        "keypoints": lambda: rng.uniform(0, 48, (*field.shape[:1], 3)),
        "length": lambda: np.ones(()),
        "box": lambda: np.array([30.0, 20.0, 40.0, 40.0]),
        "scalar": lambda: np.zeros(()),
    }[field.kind]()
    value = value.astype(field.dtype)
    if field.ignore is not None:
        value[:4] = field.ignore
    return value


def source_spec(config: ml_collections.ConfigDict) -> SourceSpec:
    """What the training source of a config would hold, without its data."""
    settings = read_source(config.data.train.source, "source")
    # The spec follows from the options alone.
    source = object.__new__(SOURCES.resolve(settings.name, "source"))
    source.config = settings.options
    return source.spec


def narrow(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The last stage, with Res2 and Res3 of few channels and a MultiPool, if any, in their last block."""
    config = ml_collections.ConfigDict(config.to_dict())
    stage = ml_collections.ConfigDict(config.training.stages[-1])
    blocks = resnet.ResNetConfig(depth=26).block_specs
    kept = [block.name for block in blocks if block.stage in ("res2", "res3")]
    with config.unlocked(), config.ignore_type(), stage.ignore_type():
        config.model.backbone = {**config.model.get("backbone", {}), "depth": 26, "width": 8}
        config.model.drop_blocks, config.model.head_features = len(blocks) - len(kept), 4
        config.training.batch_size = 2
        stage.steps = 1
        if "model" in stage and "gate" in stage.model and "stages" in stage.model.gate:
            stage.model.gate.stages = ("res3",)
        if "model" in stage and "multipool" in stage.model:
            above = [block for block in stage.model.multipool.blocks if block == "res6"]
            stage.model.multipool.blocks = tuple(above or kept[-1:])
            stage.model.multipool.dilations = (0, 1, 2)
        config.training.stages = (stage.to_dict(),)
        if config.data.train.get("augment"):
            config.data.train.augment.crop = (32, 48)
    return config


def variables_of(system: System) -> Any:
    """Random kernels; everything else as a network begins, without compiling its initializers."""
    rng = np.random.default_rng(0)

    def leaf(path: tuple, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        if name == "kernel":
            fan_in = int(np.prod(shape.shape[:-1]))
            return rng.normal(0, fan_in**-0.5, shape.shape).astype(shape.dtype)
        return np.full(shape.shape, name in ("scale", "var"), shape.dtype)

    return jax.tree_util.tree_map_with_path(leaf, variable_shapes(system))


def assert_builds(arg: str) -> None:
    """The network of each stage, as it is in the config: shapes alone."""
    config = load_config(ROOT / "configs" / arg)
    stages = check_stages(read_run(config), source_spec(config))
    system = papers.build(read_run(config).stages[-1].model)
    images = jax.ShapeDtypeStruct((2, 33, 50, 3), np.uint8)
    outputs = jax.eval_shape(system.apply, variable_shapes(system), images)
    ((name, task),) = system.tasks.items()
    assert name == config.model.task
    assert outputs.predictions[name].shape == (2, 33, 50, task.channels)
    assert bool(outputs.gates) == (stages[-1].name not in ("base", "multipool"))


def assert_trains(arg: str) -> None:
    """One step of the last stage, on what its loader makes of random elements."""
    config = load_config(ROOT / "configs" / arg)
    spec, config = source_spec(config), narrow(config)
    assert len(config.training.stages) == 1
    step = take_one_step(read_run(config), RandomElements(spec), variables_of(stage_system(read_run(config))))
    assert step.metrics[config.model.task] > 0
    assert len(step.changed) > len(step.before) / 2
    assert all(np.isfinite(value).all() for value in step.after.values())


@pytest.mark.parametrize("arg", QUICK)
def test_builds_and_trains_a_step(arg, monkeypatch):
    """The step is that of a network with a block a stage, with a projection: half of it to compile."""
    assert_builds(arg)
    monkeypatch.setitem(resnet._BLOCKS, 26, (1, 1, 1, 1))
    assert_trains(arg)


@pytest.mark.slow
@pytest.mark.parametrize("arg", every_program())
def test_every_program_builds_and_trains_a_step(arg):
    assert_builds(arg)
    assert_trains(arg)


def test_every_config_is_tested():
    """Those of a folder in ELSEWHERE, and all folder.py, are by tests of their own."""
    folder = ROOT / "configs"
    files = {
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*.py")
        if "def get_config" in file.read_text() and file.stem != "folder"
    }
    assert {file for file in files if file.split("/")[0] not in ELSEWHERE} == {
        arg.split(":")[0] for arg in QUICK
    }
    assert all((ROOT / file).is_file() for file in ELSEWHERE.values())


@pytest.mark.parametrize(
    ("name", "arg", "message"),
    [
        ("nyuv2", "task=segmentatoin", "did you mean 'segmentation'"),
        ("nyuv2", "variant=truncate", "did you mean 'truncated'"),
        ("nyuv2", "rho=0.5", "variant=base does not read it; rho is for variant=gated or layer_skip"),
        (
            "nyuv2",
            "variant=multipool,drop_blocks=2",
            "does not read it; drop_blocks is for variant=truncated",
        ),
        ("nyuv2", "variant=truncated,drop_blocks=16", "expected 0 to 15"),
        ("nyuv2", "variant=average,multipool=", "variant=average needs a block"),
        ("nyuv2", "variant=truncated,drop_layers=3", "expected 0, 1 or 2"),
        ("nyuv2", "variant=base,drop_layers=1", "drop_layers is for variant=truncated"),
        ("nyuv2", "stem=5x5", "stem=5x5"),
        ("camvid", "stem=3x3", "'stem' is unknown"),
        ("nyuv2", "variant=gated,rho=1.5", "expected a density"),
        ("nyuv2", "task=segmentation,loss=l2", "loss=l2"),
        ("nyuv2", "task=depth,loss=cosine", "loss=cosine"),
        ("cityscapes", "task=normals", "task=normals"),
        ("stanford2d3d", "task=depth,points=a.json", "points: task=depth does not read it"),
        ("camvid", "budget=tpu", "budget=tpu"),
        ("camvid", "recipe=papers", "did you mean 'paper'"),
        ("camvid", "calibrate=each", "variant=base does not read it; calibrate is for variant=gated"),
        ("bsds500", "train_split=test", "train_split=test"),
        ("boundaries", "drop_blocks=2", "drop_blocks: the network boundaries does not read it"),
        ("boundaries", "multipool=res4_2", "multipool: the network boundaries does not read it"),
        ("boundaries", "variant=multipool", "variant=multipool"),
        ("quickstart_gates", "gates=centered", "did you mean 'centred'"),
        (
            "quickstart_gates",
            "gates=base,continue_from=w",
            "gates=base is what the others continue from",
        ),
        ("quickstart_gates", "later=0", "later=0: expected at least 1"),
        ("quickstart_gates", "gates=base,later=2", "later=2: nothing follows the base"),
    ],
)
def test_arguments_that_make_no_sense(name, arg, message):
    with pytest.raises(UserError, match=message):
        importlib.import_module(f"configs.pag.{name}").get_config(arg)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("no_res2", {"stages": ("res3", "res4")}),
        ("conv3x3", {"scope": "conv3x3"}),
        ("centred", {"options": {"centred": True}}),
        ("blurred", {"options": {"blur": True}}),
        ("soft", {"soft": True}),
        ("sampled", {"noise": (1.0, 1.0)}),
        ("cold", {"temperature": (0.5, 0.1)}),
        ("combined", {"sparsity": "combined", "calibrate": "mean"}),
        ("at_once", {"insert": False}),
        ("weight_x5", {"weight": 0.1}),
        ("guided", {"guidance": 0.01}),
        ("guided_held", {"guidance": 0.01, "weight": 0.1}),
        ("no_res2_guided", {"stages": ("res3", "res4"), "guidance": 0.01}),
        ("no_res2_centred", {"stages": ("res3", "res4"), "options": {"centred": True}}),
        ("together", {"stages": ("res3", "res4"), "options": {"centred": True}, "guidance": 0.01}),
        ("quickstart", {}),
        ("longer", {}),
    ],
)
def test_one_thing_of_the_quickstarts_gates_is_changed(name, changed):
    """By its parsed settings; the rest is the quickstart's own, after 600 steps without gates, or 1100."""
    quickstart = read_run(load_config(ROOT / "configs/quickstart.py"))
    run = read_run(load_config(ROOT / f"configs/pag/quickstart_gates.py:gates={name}"))
    assert [stage.steps for stage in run.stages] == [600, *([250, 250] if name == "longer" else []), 250, 250]
    for own, stage in zip(quickstart.stages[-2:], run.stages[-2:], strict=True):
        gate = own.model.gate
        values = {
            key: dataclasses.replace(gate.options, **value) if key == "options" else value
            for key, value in changed.items()
        }
        model = dataclasses.replace(own.model, gate=dataclasses.replace(gate, **values))
        assert stage == dataclasses.replace(own, model=model)


def test_what_the_quickstarts_gates_continue_from():
    get_config = importlib.import_module("configs.pag.quickstart_gates").get_config
    names = {
        name: [stage["name"] for stage in get_config(f"gates={name}{after}").training.stages]
        for name, after in (("base", ""), ("none", ",continue_from=w"), ("longer", ",continue_from=w"))
    }
    assert names == {"base": ["base"], "none": ["longer", "longest"], "longer": ["rho0.7", "rho0.5"]}
    assert get_config("gates=longer,continue_from=w").training.init_from == "w"
    steps = {
        gates: [stage["steps"] for stage in get_config(f"gates={gates},later=3").training.stages]
        for gates in ("none", "quickstart")
    }
    assert steps == {"none": [600, 750, 750], "quickstart": [600, 750, 750]}


def test_stages_begin_where_another_run_ended():
    get_config = importlib.import_module("configs.pag.nyuv2").get_config
    whole = [stage["name"] for stage in get_config("variant=gated").training.stages]
    assert whole == ["base", "multipool", "gates", "rho", "settle"]
    later = get_config("variant=gated,continue_from=runs/multipool").training
    assert [stage["name"] for stage in later.stages] == whole[2:]
    assert later.init_from == "runs/multipool"
    later = get_config("variant=multipool,continue_from=runs/base").training
    assert [stage["name"] for stage in later.stages] == ["multipool"]


def test_gates_without_a_multipool_in_a_shorter_network():
    get_config = importlib.import_module("configs.pag.bsds500").get_config
    arg = "variant=gated,multipool=,drop_blocks=7"
    run = read_run(get_config(arg))
    assert [stage.name for stage in run.stages] == ["base", "gates", "rho", "settle"]
    assert all(stage.model.multipool.blocks == () for stage in run.stages)
    assert {stage.model.drop_blocks for stage in run.stages} == {7}
    later = get_config(f"{arg},continue_from=runs/truncated").training
    assert [stage["name"] for stage in later.stages] == ["gates", "rho", "settle"]
    assert get_config("variant=gated").model.drop_blocks == 0


def test_the_network_boundaries():
    """Ends at Res4_4, has gates in Res3 and Res4, and the masks of its last stage are those of evaluation."""
    run = read_run(importlib.import_module("configs.pag.boundaries").get_config("rho=0.4"))
    assert [stage.name for stage in run.stages] == ["base", "gates", "rho", "settle"]
    blocks = [f"res3_{n}" for n in (1, 2, 3, 4)] + [f"res4_{n}" for n in (1, 2, 3, 4)]
    assert [list(gated_blocks(stage.model)) for stage in run.stages] == [[], blocks, blocks, blocks]
    gates = [stage.model.gate for stage in run.stages[1:]]
    assert [(gate.rho_start, gate.rho) for gate in gates] == [(0.9, 0.7), (0.7, 0.4), (1.0, 0.4)]
    assert [gate.noise for gate in gates] == [(1.0, 1.0), (1.0, 0.0), (0.0, 0.0)]
    assert {(gate.calibrate, gate.options.centred) for gate in gates} == {("each", True)}


def test_the_papers_own_training():
    """Section 4: SGD, one image a step, 2e-4, no warm-up, lambda 1e-4, margin crops; as many images."""
    ours = read_run(load_config(ROOT / "configs/pag/nyuv2.py:variant=gated,budget=gpu"))
    paper = read_run(load_config(ROOT / "configs/pag/nyuv2.py:variant=gated,budget=gpu,recipe=paper"))
    training = paper.training
    found = (training.optimizer, training.momentum, training.batch_size, training.warmup_steps)
    assert found == ("sgd", 0.9, 1, 0)
    assert training.poly_power == 0.9
    assert {stage.learning_rate for stage in paper.stages} == {2e-4}
    gates = [stage.model.gate for stage in paper.stages if stage.model.gate.exists]
    assert {gate.weight for gate in gates} == {1e-4}
    assert {(gate.options.init_std, gate.options.open_bias) for gate in gates} == {(1.0, 0.0)}
    assert paper.stages[1].model.multipool.original_bias == 0.0
    images = [sum(stage.steps for stage in run.stages) * run.training.batch_size for run in (ours, paper)]
    assert images[0] == images[1]
    augment = paper.data.train.augment
    assert (augment.margin, augment.crop, augment.flip, augment.scales) == (20, None, True, (1.0,))


def test_rho_is_that_of_evaluations_masks_unless_told_otherwise():
    def held(arg: str) -> list[tuple[str, tuple[float, float]]]:
        run = read_run(load_config(ROOT / f"configs/pag/{arg}"))
        gates = [stage.model.gate for stage in run.stages if stage.model.gate.exists]
        return [(gate.calibrate, gate.noise) for gate in gates]

    # The last stage begins calibrated, trains on arg-max masks, and ends calibrated.
    samples, masks = (1, 1), (0, 0)
    assert held("camvid.py:variant=gated") == [("none", samples), ("each", samples), ("each", masks)]
    paper = held("bsds500.py:variant=gated,calibrate=mean,recipe=paper")
    assert paper[1:] == [("mean", samples), ("mean", masks)]
    assert held("bsds500.py:variant=gated,calibrate=none") == [("none", samples)] * 3
    assert held("bsds500.py:variant=layer_skip") == [("none", samples)] * 3
    assert held("scenes.py:variant=gated") == [("each", samples), ("each", masks)]
    # On BSDS500 samples become masks within the stage before.
    assert held("bsds500.py:variant=gated") == [("none", samples), ("each", (1, 0)), ("each", masks)]


def test_the_papers_images_of_bsds500():
    """Train and val, 300 images; what is evaluated is then test."""
    for folder in ("pag", "pixelnet"):
        data = read_run(load_config(ROOT / f"configs/{folder}/bsds500.py:train_split=trainval")).data
        assert (data.train.source.split, data.eval.source.split) == ("trainval", "test")
        data = read_run(load_config(ROOT / f"configs/{folder}/bsds500.py")).data
        assert (data.train.source.split, data.eval.source.split) == ("train", "val")


def test_losses_are_those_of_the_tables():
    """What is left of eq. 9 and 10 with one of their terms."""
    get_config = importlib.import_module("configs.pag.nyuv2").get_config
    batch = np.full((1, 1, 1, 1), 0.5, np.float32), np.full((1, 1, 1), 1.0, np.float32), np.array([True])

    def loss(arg: str, *batch: np.ndarray) -> float:
        return float(papers.build(get_config(arg).model.to_dict()).task.loss(*batch))

    # Log depth .5 where it is 0: squared .25, absolute .5, which counts twice.
    assert loss("task=depth", *batch) == pytest.approx(1.25)
    assert loss("task=depth,loss=l2", *batch) == pytest.approx(0.25)
    assert loss("task=depth,loss=l1", *batch) / 1000 == pytest.approx(0.5, rel=1e-3)
    # Normals at a right angle: the cosine's term is 1, the angle's 4 times pi / 2.
    right = np.float32([[[[1, 0, 0]]]]), np.float32([[[[0, 0, -1]]]]), np.array([True])
    assert loss("task=normals", *right) == pytest.approx(1 + 2 * np.pi)
    assert loss("task=normals,loss=cosine", *right) == pytest.approx(1)
    assert loss("task=normals,loss=arccos", *right) == pytest.approx(2 * np.pi)
