"""configs/anytime, segmentation: every variant is built, has the paper's settings, trains a step."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import ml_collections
import pytest

from dynpix_jax import papers
from dynpix_jax.cli import main
from dynpix_jax.core.config import RunConfig
from dynpix_jax.core.configs import load_config
from dynpix_jax.core.errors import UserError
from dynpix_jax.run_config import read_run
from dynpix_jax.training.checks import check_stages
from tests.configs.test_configs import RandomElements, source_spec, variables_of
from tests.one_step import metrics_that_fit, stage_system, take_one_step

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "configs" / "anytime"
QUICK = ("scenes:variant=ca", "scenes:variant=hrnet", "camvid:variant=ca,heads=plain")
VARIANTS = (
    *(f"scenes:variant={variant}" for variant in ("ee", "rh")),
    *(f"scenes:variant=ca,criterion={criterion}" for criterion in ("entropy", "top_k", "random")),
    *("scenes:variant=ca,normalize=present", "scenes:variant=rh,downsampling=1+1+1"),
    *(f"camvid:variant={variant}" for variant in ("hrnet", "ee", "rh", "ca")),
    *("camvid:variant=ca,budget=gpu", "camvid:variant=ca,continue_from=runs/x"),
    *(f"cityscapes:variant={variant},arch=w18s2" for variant in ("hrnet", "ee", "rh", "ca")),
    *(f"cityscapes:variant=ca,arch={arch},budget=gpu" for arch in ("w48", "w32", "w18", "w18s1")),
    *(f"cityscapes:variant=rh,arch=w18s2,downsampling={d}" for d in ("1+1+1", "3+3+3")),
)


def load(spec: str) -> ml_collections.ConfigDict:
    name, _, arg = spec.partition(":")
    return load_config(f"{FOLDER / name}.py:{arg}")


def shrunk(spec: str) -> ml_collections.ConfigDict:
    """The config with a narrow network with few blocks and small crops."""
    config = load(spec)
    with config.unlocked():
        config.model.backbone.update(arch="w18s1", width=4, blocks=1)
        if config.model.heads.get("kind") == "redesigned":
            config.model.heads.features = 8
        config.training.batch_size = 2
        if config.data.train.augment.get("crop"):
            config.data.train.augment.crop = (32, 64)
    return config


def last_stage(spec: str) -> tuple[RunConfig, Any, Any]:
    """The arguments of `tests.one_step`: settings, random elements, variables."""
    config = shrunk(spec)
    run = read_run(config)
    return run, RandomElements(source_spec(config)), variables_of(stage_system(run))


def assert_exits(spec: str, metrics: Collection[str]) -> None:
    exits = {name for name in metrics if name.startswith("exit")}
    assert exits == ({"exit4"} if "hrnet" in spec else {"exit1", "exit2", "exit3", "exit4"})


def assert_built(spec: str) -> None:
    config = shrunk(spec)
    check_stages(read_run(config), source_spec(config))
    system = papers.build(load(spec).model.to_dict())
    assert (system.config.adaptivity is not None) == ("variant=ca" in spec)
    assert len(system.config.exits) == (1 if "hrnet" in spec else 4)
    redesigned = "variant=rh" in spec or ("variant=ca" in spec and "heads=plain" not in spec)
    # Without an exit before stage 4, as with hrnet, the kind says nothing.
    assert redesigned == (system.config.heads.kind == "redesigned" and "hrnet" not in spec)


@pytest.mark.parametrize("spec", QUICK)
def test_variants_are_built(spec):
    assert_built(spec)


def test_a_training_step_fits():
    """Traced only: shapes, dtypes and the tree of the state. The next test runs it, and all others."""
    assert_exits(QUICK[0], metrics_that_fit(*last_stage(QUICK[0])))


@pytest.mark.slow
@pytest.mark.parametrize("spec", [*QUICK, *VARIANTS])
def test_every_variant_is_built_and_trains_a_step(spec):
    assert_built(spec)
    step = take_one_step(*last_stage(spec))
    assert_exits(spec, step.metrics)
    assert len(step.changed) > len(step.before) / 2


def test_the_published_settings():
    """As the released settings: schedule, crops, scales, class weights, threshold."""
    config = load("cityscapes:variant=ca,arch=w48,budget=gpu")
    training, model = read_run(config).training, config.model
    (stage,) = training.stages
    assert (training.optimizer, stage.learning_rate, training.momentum) == ("sgd", 0.01, 0.9)
    assert (training.weight_decay, training.weight_decay_on) == (5e-4, (".*",))
    assert stage.steps * 12 / 2975 == pytest.approx(484, abs=0.1)
    augment = config.data.train.augment
    assert augment.crop == (512, 1024)
    assert (augment.resampling, augment.outside) == ("linear", "black")
    assert augment.scales == pytest.approx([0.5 + 0.1 * step for step in range(17)])
    assert model.adaptivity.options.to_dict() == dict(measure="max_probability", threshold=0.998)
    # Figure 7 masks in inference alone.
    assert model.adaptivity.start == 0.0
    assert load("cityscapes:criterion=entropy,masked=inference").model.adaptivity.start == 1.0
    assert model.heads.features == 128
    assert load("cityscapes:variant=ca,arch=w18s2").model.heads.features == 64
    assert sum(model.task_options.class_weights) == pytest.approx(18.9992, abs=1e-3)
    assert [stage["name"] for stage in load("camvid:variant=ca").training.stages] == ["base", "adaptive"]
    later = load("camvid:variant=ca,continue_from=runs/x").training
    assert ([stage["name"] for stage in later.stages], later.init_from) == (["adaptive"], "runs/x")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("scenes:variant=cb", "valid: ca, ee, hrnet, rh"),
        ("scenes:variant=ee,threshold=0.5", "threshold"),
        ("scenes:variant=rh,criterion=random", "criterion"),
        ("scenes:variant=ca,criterion=best", "criterion=best"),
        ("scenes:variant=rh,downsampling=3+2", "three numbers"),
        ("scenes:variant=ca,heads=plain,downsampling=1+1+1", "plain heads"),
        ("cityscapes:variant=ee,arch=w47", "w48"),
        ("camvid:steps=-1", "steps=-1"),
        ("camvid:variant=ca,continue_from=runs/x,weights=w.npz", "weights: continue_from gives"),
    ],
)
def test_wrong_arguments(spec, message):
    with pytest.raises(UserError, match=message):
        load(spec)


def test_table_beside_a_run(tmp_path, capsys, monkeypatch):
    """The rows of a run are its exits and their mean."""
    monkeypatch.chdir(ROOT)
    config = json.loads(json.dumps(load_config("configs/anytime/cityscapes.py:variant=ca").to_dict()))
    exits = [
        {"macs_per_image": macs * 2**30, "miou": miou}
        for macs, miou in ((41.9, 0.4), (90.0, 0.5), (250.0, 0.7), (380.0, 0.8))
    ]
    row = dict(
        stage="adaptive",
        tasks=["segmentation"],
        macs_per_image=380.0 * 2**30,
        modes={"dense": {"miou": 0.8}},
        exits=exits,
    )
    content = {"config": config, "data": "cityscapes val, 500 images", "rows": [row]}
    (tmp_path / "eval.json").write_text(json.dumps(content))
    assert main.main(["tables", "anytime", f"--runs={tmp_path}"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("EE + RH + CA, ")][:5]
    assert ["0.4000" in lines[0], "90.0" in lines[1], "0.8000" in lines[3]] == [True] * 3
    assert "0.6000" in lines[4]
    assert "190.5" in lines[4]
