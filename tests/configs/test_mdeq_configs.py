"""configs/mdeq: every variant of every stage is built, and trains a step with few channels; its table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import pytest

from dynpix_jax import papers
from dynpix_jax.cli import eval as evaluate
from dynpix_jax.cli import main, train
from dynpix_jax.core.configs import load_config
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.trees import map_named
from dynpix_jax.run_config import read_run
from dynpix_jax.training.checks import check_stages
from tests.configs.test_configs import RandomElements, source_spec, variables_of
from tests.one_step import stage_system, take_one_step
from tests.papers.mdeq.cells import CELLS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "configs" / "mdeq"
VARIANTS = (
    *("cityscapes:variant=small", "cityscapes:variant=xl", "cityscapes:variant=tiny,budget=cpu"),
    *("cityscapes:variant=small,budget=gpu", "cityscapes:variant=xl,budget=gpu,solver=anderson"),
    *("camvid:", "camvid:budget=gpu", "camvid:jacobian=0.5", "camvid:solver=anderson,iterations=12"),
    *("scenes:", "scenes:solver=anderson", "scenes:jacobian=0.1", "scenes:read_out=2+3,iterations=5"),
)


def load(spec: str) -> ml_collections.ConfigDict:
    name, _, arg = spec.partition(":")
    return load_config(f"{FOLDER / name}.py:{arg}")


@pytest.mark.parametrize("spec", VARIANTS)
def test_every_variant_is_built(spec):
    config = load(spec)
    settings = read_run(config).evaluation
    pretraining, equilibrium = check_stages(read_run(config), source_spec(config))
    assert pretraining.parameters == equilibrium.parameters
    system = papers.build(config.model.to_dict())
    assert set(settings.also) == set(system.alternatives)
    assert system.config.unrolled == 0
    first = papers.build(read_run(config).stages[0].model)
    assert first.config.unrolled == 3
    for variant, cell in CELLS.items():
        if f"variant={variant}" in spec:
            assert system.config.cell == cell


def test_the_published_settings():
    """Reference: crops and batches, 27 and 26 iterations, 60000 and 40000 steps of pretraining."""
    small, xl = (load(f"cityscapes:variant={variant},budget=gpu") for variant in ("small", "xl"))
    for config, crop, batch, iterations, steps in (
        (small, (512, 1024), 12, (27, 30), 60_000),
        (xl, (768, 1024), 16, (26, 26), 40_000),
    ):
        assert config.data.train.augment.crop == crop
        assert config.training.batch_size == batch
        assert (config.model.forward.iterations, config.model.backward.iterations) == iterations
        training = read_run(config).training
        assert training.stages[0].steps == steps
        assert training.total_steps * batch / 2975 == pytest.approx(500, rel=0.01)
        assert (training.optimizer, training.momentum, training.stages[0].learning_rate) == ("sgd", 0.9, 0.01)
        # What else the released code does.
        released = read_run(config).stages[1].model
        assert (released.implicit.gives, released.implicit.start) == ("applied", "zero")
        assert (released.forward.stops, released.backward.stops) == ("batch", "batch")
        assert training.weight_decay_on == (".*",)
        assert (training.schedule, training.warmup_steps) == ("cosine", 0)
        assert training.stages[1].learning_rate == 0.01
        augment = read_run(config).data.train.augment
        assert (augment.resampling, augment.outside) == ("linear", "black")
    assert (small.training.weight_decay, xl.training.weight_decay) == (2e-4, 3e-4)
    # 26 of XL fit into the memory of 27.
    assert read_run(small).stages[1].model.backward.forgets == "after"
    assert read_run(xl).stages[1].model.backward.forgets == "before"
    later = load("camvid:continue_from=runs/x").training
    assert [stage["name"] for stage in later.stages] == ["equilibrium"]
    assert later.init_from == "runs/x"


def assert_trains(spec: str, index: int) -> None:
    """A step of a stage, on what its loader makes of random elements; f has two narrow branches."""
    config = load(spec)
    elements: Any = RandomElements(source_spec(config))
    with config.unlocked():
        config.model.cell.update(channels=(8, 16), expansion=1)
        config.model.forward.iterations = config.model.backward.iterations = 3
        config.evaluation.also = ()
        config.training.batch_size = 2
        if config.data.train.augment.get("crop"):
            config.data.train.augment.crop = (32, 48)
    system = stage_system(read_run(config), index)
    # Filters of length 1: those of weight norm begin with what their kernels have.
    variables = map_named(
        lambda path, leaf: np.ones_like(leaf) if path.endswith("/gain") else leaf, variables_of(system)
    )
    step = take_one_step(read_run(config), elements, variables, index)
    assert ("diverged" in step.metrics) == (index == 1)
    assert len(step.changed) > 0.9 * len(step.before)


def test_a_step_is_trained():
    assert_trains("scenes:", 1)


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("spec", VARIANTS)
def test_every_variant_trains_a_step(spec, index):
    assert_trains(spec, index)


def test_every_file_is_built():
    files = {file.stem for file in FOLDER.glob("*.py") if "def get_config" in file.read_text()}
    assert files - {"folder"} == {spec.split(":")[0] for spec in VARIANTS}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cityscapes:variant=smal", "did you mean 'small'"),
        ("cityscapes:solver=newton", "solver=newton"),
        ("camvid:jacobian=-1.0", "jacobian=-1"),
        ("camvid:iterations=-1", "iterations=-1"),
        ("camvid:continue_from=runs/x,weights=w.npz", "weights: continue_from gives"),
        ("scenes:budget=gpu", "the scenes do not read it"),
    ],
)
def test_wrong_arguments(spec, message):
    with pytest.raises(UserError, match=message):
        load(spec)


def test_table_beside_a_run(tmp_path, capsys, monkeypatch):
    """Rows of a run are found by network and number of iterations; both counts of MACs are printed."""
    monkeypatch.chdir(ROOT)
    config = json.loads(json.dumps(load_config("configs/mdeq/cityscapes.py:variant=small").to_dict()))
    common = dict(stage="equilibrium", tasks=["segmentation"])
    rows = [
        dict(common, alternative=name, macs_per_image=macs * 2**30, modes={"dense": {"miou": miou}})
        for name, macs, miou in (("", 1404.9, 0.75), ("iterations_4", 276.3, 0.2))
    ]
    content = {"config": config, "data": "cityscapes val, 500 images", "rows": rows}
    (tmp_path / "eval.json").write_text(json.dumps(content))
    assert main.main(["tables", "mdeq", f"--runs={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = [line.split() for line in lines if line.startswith(("iteration 4 ", "iteration 6 "))]
    fourth, sixth = found[:2]
    assert fourth[2:7] == ["0.1730", "521.6", "276.3", "0.2000", "276.3"]
    assert sixth[2:7] == ["0.3870", "717.9", "374.4", "-", "-"]


@pytest.mark.slow
def test_trained_and_evaluated(tmp_path, capsys, monkeypatch):
    """A step of each stage; then one command scores what 1, 2 and 3 iterations have found."""
    monkeypatch.chdir(ROOT)
    arguments = ["--config=configs/mdeq/scenes.py:read_out=1+2,iterations=3", f"--workdir={tmp_path}"]
    small = [
        *("model.cell.channels=(8, 16)", "model.cell.expansion=1", "model.backward.iterations=3"),
        *("training.stages[0].steps=1", "training.stages[1].steps=1", "training.log_every=1"),
        *("data.train.source.size=(32, 48)", "data.eval.source.size=(32, 48)", "evaluation.limit=2"),
    ]
    assert train.main([*arguments, "--set", *small]) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    trained = {line["stage"]: line for line in lines if line["kind"] == "train"}
    assert "diverged" not in trained["pretraining"]
    assert trained["equilibrium"]["diverged"] == 0
    assert trained["equilibrium"]["iterations"] == 3
    assert evaluate.main([*arguments, "--set", *small]) == 0
    rows = json.loads((tmp_path / "eval.json").read_text())["rows"]
    assert [row.get("alternative", "") for row in rows] == [
        "",
        "iterations_1",
        "iterations_2",
        "iterations_3",
    ]
    own, *alone = rows
    assert own["measures"] == {"iterations": 3.0, "diverged": 0.0, "residual": own["measures"]["residual"]}
    assert [one["miou"] for one in own["exits"]] == [row["modes"]["dense"]["miou"] for row in alone]
    assert own["exits"][-1]["macs_per_image"] == pytest.approx(own["macs_per_image"])
    macs = [row["macs_per_image"] for row in alone]
    assert macs[2] - macs[1] == pytest.approx(macs[1] - macs[0])
