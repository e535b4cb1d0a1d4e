"""Every value of every config has a reader: another value builds something else, or is refused.

What is compared is what the settings build: the programs of networks and optimizers, drawn augmentations, the
views of an image. A leaf that takes other values, none of which changes anything, has no reader.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynpix_jax
from dynpix_jax import papers
from dynpix_jax.backbones import resnet
from dynpix_jax.core.augmentation import GeometryRanges
from dynpix_jax.core.config import DataConfig, DataSection, RunConfig
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.merging import leaves
from dynpix_jax.core.settings import (
    EvaluationConfig,
    ExecutionConfig,
    MeshConfig,
    ModelConfig,
    StageConfig,
    TrainingConfig,
)
from dynpix_jax.core.source import BOX, IMAGE, SourceSpec, segmentation
from dynpix_jax.core.system import System
from dynpix_jax.data.geometry import augment
from dynpix_jax.data.sources import SOURCES, open_source
from dynpix_jax.evaluation import scorers
from dynpix_jax.evaluation.inference import all_views, smooth_logits
from dynpix_jax.flops import variable_shapes
from dynpix_jax.run_config import read_run
from dynpix_jax.training.inputs import train_loader
from dynpix_jax.training.optim import stage_optimizer
from tests.built import Built, text_of
from tests.every_config import FILES, ROOT, VARIANTS, change, changed, read, written_out

QUICK = ("configs/perspective/scenes.py", "configs/astmt/scenes.py:variant=single")
"""Networks that are traced in no time."""
OPTIMIZED = ("configs/perspective/scenes.py",)
AUGMENTED = ("configs/quickstart.py", "configs/anytime/mpii.py", "configs/astmt/scenes.py")
VIEWS = ("configs/pag/camvid.py", "configs/quickstart.py", "configs/perspective/sevenscenes.py")

ALIKE = {"configs/anytime/": {"model.backbone.arch": "w18s1", "model.backbone.blocks": 1}}
"""Changes by which networks of a folder keep their kind, and are traced in a fraction of the time."""


def quick_or_slow(specs: Sequence[str], quick: Collection[str]) -> list[Any]:
    """All configs, of which those that are not ``quick`` take minutes in all."""
    return [spec if spec in quick else pytest.param(spec, marks=pytest.mark.slow) for spec in specs]


def networks(run: RunConfig) -> list[Built]:
    """Those of the stages, the last one first."""
    return [Built(stage.model) for stage in reversed(run.stages)]


def unread_leaves(spec: str, prefix: str, differ: Callable[[RunConfig, RunConfig], bool]) -> Iterator[str]:
    """Leaves of a config that take other values, none of which makes a difference."""
    full = written_out(read(spec))
    for folder, changes in ALIKE.items():
        for path, value in changes.items() if spec.startswith(folder) else ():
            change(full, path, value)
    run = read(full)
    for path, value in leaves(full):
        if not re.match(prefix, path):
            continue
        taken = []
        for other, after in changed(full, path, value):
            taken.append(other)
            if differ(run, after):
                break
        else:
            if taken:
                yield f"{spec} {path}: {value!r} -> {taken}"


def assert_read(spec: str, prefix: str, differ: Callable[[RunConfig, RunConfig], bool]) -> None:
    assert not list(unread_leaves(spec, prefix, differ))


MODEL = r"model\.|training\.stages\[\d+\]\.model\."


def assert_model_is_read(spec: str) -> None:
    made: dict[int, list[Built]] = {}

    def differ(before: RunConfig, after: RunConfig) -> bool:
        own = made.setdefault(id(before), networks(before))
        try:
            return any(not one.same(other) for one, other in zip(own, networks(after), strict=True))
        except UserError:
            return True  # refused by what builds it

    assert_read(spec, MODEL, differ)


@pytest.mark.parametrize("spec", quick_or_slow([*FILES, *VARIANTS], QUICK))
def test_every_value_of_a_network_is_read(spec, monkeypatch):
    if spec in QUICK:
        # One stage of two blocks, for settings that tell blocks from stages.
        monkeypatch.setitem(resnet._BLOCKS, 26, (2, 1, 1, 1))
    assert_model_is_read(spec)


PARAMS: dict[str, tuple[System, Any]] = {}
"""Systems and their parameters as shapes."""


def built(model: ModelConfig) -> tuple[System, Any]:
    if repr(model) not in PARAMS:
        system = papers.build(model)
        PARAMS[repr(model)] = system, variable_shapes(system)["params"]
    return PARAMS[repr(model)]


def optimizers(run: RunConfig) -> Iterator[str]:
    """How each stage updates its parameters."""
    for stage in run.stages:
        system, params = built(stage.model)
        optimizer = stage_optimizer(params, run.training, stage, system)
        flat = optimizer.pick(params)
        state = jax.eval_shape(optimizer.tx.init, flat)
        step = jax.ShapeDtypeStruct((), jnp.int32)
        update = partial(_update, optimizer.tx, bool(optimizer.turns))
        yield f"{stage.name} {stage.steps} {sorted(flat)}"
        yield text_of(update, flat, state, step) + text_of(optimizer.schedule, step)


def _update(tx: Any, turns: bool, grads: Any, state: Any, step: Any) -> Any:
    return tx.update(grads, state, grads, **({"step": step} if turns else {}))


def optimizers_differ(before: RunConfig, after: RunConfig) -> bool:
    try:
        return any(one != other for one, other in zip(optimizers(before), optimizers(after), strict=False))
    except UserError:
        return True


AS_THEY_ARE = {
    TrainingConfig: (
        "log_every",
        "checkpoint_every",
        "eval_every",
        "keep",
        "init_from",
        "sharding",
        "stall_minutes",
        "wandb",
    ),
    MeshConfig: ("rules",),
    StageConfig: ("model",),
    EvaluationConfig: tuple(
        field.name
        for field in dataclasses.fields(EvaluationConfig)
        if field.name not in ("mode", "batch_size", "workers")
    ),
    ExecutionConfig: ("implementation",),
    DataConfig: ("source", "pad_to", "drop_labels"),
    DataSection: ("train", "eval"),
}
"""Settings that programs read whatever the others are; see `attributes`.

Of some a name says too little, since other things have it too. What these do is tested: ``seed``, batches and
workers at the end of this file, the first weights in tests/training/test_loop.py; the mesh's ``data`` and
``model`` in tests/training/test_8_devices.py; a stage's ``name`` in tests/training/test_gated.py and the
config's in tests/cli/test_check_config.py; ``evaluation.mode`` and its ``batch_size`` in
tests/evaluation/test_evaluator.py.
"""
SETTINGS = ("run", "config", "settings", "training", "mesh", "stage", "evaluation", "execution", "data")
"""Names of variables and attributes that hold such settings."""
OPTIMIZER = (
    r"training\.(optimizer|momentum|weight_decay(_on)?|schedule|poly_power|warmup_steps|grad_clip|"
    r"stages\[\d+\]\.(steps|learning_rate|frozen|multipliers))"
)


@pytest.mark.parametrize("spec", quick_or_slow([*FILES, *VARIANTS], OPTIMIZED))
def test_every_value_of_an_optimizer_is_read(spec):
    assert_read(spec, OPTIMIZER, optimizers_differ)


SIDES = (40, 56)
SPEC = SourceSpec("one", {"image": IMAGE, "segmentation": segmentation(("a", "b", "c")), "box": BOX})


def augmented(ranges: GeometryRanges | None) -> Iterator[bytes]:
    """What draws of an augmentation make of one element."""
    rng = np.random.default_rng(0)
    element = {
        "image": rng.integers(0, 256, (*SIDES, 3), np.uint8),
        "segmentation": rng.integers(0, 3, SIDES, np.int32),
        "box": np.array([25.0, 20.0, 400.0, 300.0], np.float32),
    }
    for draw in range(24 if ranges is not None else 0):
        found = augment(np.random.default_rng(draw), ranges, dict(element), SPEC)
        yield b"".join(np.asarray(found[name]).tobytes() for name in sorted(found))


def augmentations_differ(before: RunConfig, after: RunConfig) -> bool:
    one, other = before.data.train.augment, after.data.train.augment
    if one is None or other is None or (one.box and other.box and one.box.field != other.box.field):
        return one != other
    return any(first != second for first, second in zip(augmented(one), augmented(other), strict=True))


@pytest.mark.parametrize("spec", quick_or_slow(FILES, AUGMENTED))
def test_every_value_of_an_augmentation_is_read(spec):
    assert_read(spec, r"data\.train\.augment", augmentations_differ)


VIEWED = (50, 74)
"""(H, W): halves of it are no multiples of 2."""


def views(run: RunConfig) -> str:
    """How an image is predicted."""
    inference, tasks = run.evaluation.inference, papers.build(run.stages[-1].model).tasks
    sizes = {name: task.logits_size(VIEWED) for name, task in tasks.items()}

    def predict(images: Any) -> Any:
        factor = images.mean()
        size = (images.shape[1], images.shape[2])
        maps = {name: (*task.logits_size(size), task.channels) for name, task in tasks.items()}
        return {name: jnp.broadcast_to(factor, (1, *shape)) for name, shape in maps.items()}, {}

    def whole(images: Any) -> Any:
        found, _ = all_views(predict, tasks, inference)(images)
        return smooth_logits(found, tasks, inference.blur)

    return f"{sizes} {text_of(whole, jax.ShapeDtypeStruct((1, *VIEWED, 3), jnp.float32))}"


def views_differ(before: RunConfig, after: RunConfig) -> bool:
    try:
        return views(before) != views(after)
    except UserError:
        return True


@pytest.mark.parametrize("spec", quick_or_slow([*FILES, *VARIANTS], VIEWS))
def test_every_value_of_the_views_is_read(spec):
    assert_read(spec, r"evaluation\.inference", views_differ)


@cache
def attributes() -> dict[str, set[tuple[str, str]]]:
    """Module -> names that it reads of objects other than ``self``, each after the name of the object."""
    found = {}
    root = Path(dynpix_jax.__file__).parents[1]
    for file in (*(root / "dynpix_jax").rglob("*.py"), root / "train.py", root / "eval.py"):
        nodes = (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute))
        pairs = {(ast.unparse(node.value).rpartition(".")[2], node.attr) for node in nodes}
        found[str(file)] = {(owner, name) for owner, name in pairs if owner != "self"}
    return found


def test_settings_that_are_read_as_they_are():
    for kind, names in AS_THEY_ARE.items():
        own = inspect.getsourcefile(kind)
        others = set().union(*(pairs for file, pairs in attributes().items() if file != own))
        assert set(names) <= {name for owner, name in others if owner in SETTINGS}, kind


@pytest.mark.parametrize("name", list(SOURCES))
def test_every_option_of_a_source_is_read(name):
    source = SOURCES.resolve(name, "name")
    read = {option for _, option in attributes()[str(inspect.getsourcefile(source))]}
    assert {field.name for field in dataclasses.fields(source.Config)} <= read | {
        "root",
        "fields",
    }  # data.base


def first_element(run: RunConfig) -> list[Any]:
    found = []
    for part in (run.data.train, run.data.eval):
        source = open_source(part.source)
        found.append((len(source), {name: value.tobytes() for name, value in source[0].items()}))
    return found


@pytest.mark.parametrize("spec", ["configs/quickstart.py", "configs/anytime/scenes_pose.py"])
def test_every_option_of_the_scenes_is_read(spec):
    assert_read(
        spec, r"data\.\w+\.source\.", lambda before, after: first_element(before) != first_element(after)
    )


QUICKSTART = str(ROOT / "configs/quickstart.py")


def test_batches_are_those_of_the_settings():
    def first_batch(*changes: str) -> np.ndarray:
        return next(iter(train_loader(read_run(QUICKSTART, changes))))["image"]

    before = first_batch()
    np.testing.assert_array_equal(first_batch("data.eval.source.length=3"), before)
    assert not np.array_equal(first_batch("seed=5"), before)
    assert len(first_batch("training.batch_size=3")) == 3 != len(before)
    assert first_batch("data.train.source.size=(40, 56)").shape != before.shape


def test_processes_are_as_many_as_the_settings_say(monkeypatch):
    run = read_run(QUICKSTART, ["training.workers=3", "evaluation.workers=5"])
    assert train_loader(run).workers == 3
    found = {}
    monkeypatch.setattr(scorers, "count_boundaries", lambda *_, **options: found.update(options) or [])
    scorers.BoundaryScorer(papers.build(run.stages[0].model).task, None, 0, run.evaluation).sums()
    assert found["workers"] == 5
