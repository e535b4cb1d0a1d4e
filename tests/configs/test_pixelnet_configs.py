"""configs/pixelnet: every variant is built, and trains a step on a narrow VGG; the benchmark programs run."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import ml_collections
import pytest

from dynpix_jax import papers
from dynpix_jax.core.configs import load_config
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.trees import match_first
from dynpix_jax.evaluation.reproduce import Options, Reproduction, select
from dynpix_jax.evaluation.table_files import read_tables
from dynpix_jax.run_config import read_run
from dynpix_jax.training.checks import check_stages
from tests.configs.test_configs import RandomElements, source_spec, variables_of
from tests.one_step import stage_system, take_one_step

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "pixelnet"
TASKS = ("segmentation", "boundaries", "depth", "normals")
VARIANTS = (
    *("bsds500:", "bsds500:rare=0", "bsds500:conv7,balanced=True,test_scales=0.5+1.0"),
    *("pascal_context:", "pascal_context:classes=33,conv7", "pascal_context:fc=1"),
    *("voc2012:conv7", "voc2012:rare=0.5", "nyuv2_normals:", "nyuv2_normals:task=depth,fc=2"),
    *("camvid:", "camvid:pixels=10000,images=1"),
)
SCENES = tuple(
    f"scenes:task={task},strategy={strategy}"
    for task, strategy in itertools.product(TASKS, ("stratified", "uniform", "biased"))
    if (task, strategy) not in {("depth", "uniform"), ("depth", "biased"), ("normals", "biased")}
)
QUICK = ("bsds500:rare=0.25", "scenes:task=depth")


def load(spec: str) -> ml_collections.ConfigDict:
    name, _, arg = spec.partition(":")
    return load_config(f"{FOLDER / name}.py:{arg}")


@pytest.mark.parametrize("spec", VARIANTS + SCENES)
def test_every_variant_is_built(spec):
    for budget in ("",) if "scenes" in spec else ("cpu", "gpu")["," in spec :]:
        # What the arguments change is the same for both: variants with several are built for one.
        config = load(f"{spec},budget={budget}".replace(":,", ":") if budget else spec)
        check_stages(read_run(config), source_spec(config))
        stages = read_run(config).training.stages
        system = papers.build(config.model.to_dict())
        task = config.model.task
        assert set(system.tasks) == {task}
        if budget == "gpu":
            assert [round(stage.learning_rate / stages[-1].learning_rate) for stage in stages] == [100, 10, 1]
            assert config.model.mlp.hidden in ((), (4096,), (4096, 4096))
            assert not any(stage.frozen for stage in stages)


def assert_trains(spec: str) -> None:
    """A step of the last stage, on what its loader makes of random elements; the network is narrow."""
    config = load(spec)
    elements: Any = RandomElements(source_spec(config))
    with config.unlocked():
        config.model.backbone.width = 2
        if "fc7" in config.model.hypercolumn.layers:
            config.model.backbone.fc_features = 4
        config.model.mlp.hidden = (6,) * len(config.model.mlp.hidden)
        config.model.sampling.pixels = 20
        config.training.batch_size = 2
        if config.data.train.get("augment") and config.data.train.augment.get("crop"):
            config.data.train.augment.crop = (32, 48)
    step = take_one_step(read_run(config), elements, variables_of(stage_system(read_run(config))))
    assert step.metrics[config.model.task] > 0
    assert len(step.changed) > len(step.before) / 2


@pytest.mark.parametrize("spec", QUICK)
def test_a_step_is_trained(spec):
    assert_trains(spec)


@pytest.mark.slow
@pytest.mark.parametrize("spec", VARIANTS + SCENES)
def test_every_variant_trains_a_step(spec):
    assert_trains(spec)


def test_every_file_is_built():
    files = {file.stem for file in FOLDER.glob("*.py") if "def get_config" in file.read_text()}
    assert files - {"folder"} == {spec.split(":")[0] for spec in VARIANTS + SCENES}


def test_the_papers_own_training_whatever_the_budget():
    """Section 4: SGD at 1e-3, 1e-4, 1e-5, five images a step, layers of 4096."""
    for budget in ("cpu", "gpu"):
        run = read_run(load(f"pascal_context:budget={budget},recipe=paper"))
        training, model = run.training, run.stages[0].model
        assert (training.optimizer, training.batch_size, training.weight_decay) == ("sgd", 5, 5e-4)
        assert (training.warmup_steps, training.poly_power) == (0, 0.0)
        assert [stage.learning_rate for stage in run.stages] == pytest.approx([1e-3, 1e-4, 1e-5])
        assert (model.mlp.hidden, model.mlp.init_std, model.hypercolumn.normalize) == (
            (4096, 4096),
            1e-3,
            "none",
        )
        ours = read_run(load(f"pascal_context:budget={budget},recipe=ours"))
        assert ours.training.optimizer == "adamw"
        assert len(ours.stages) == 1
        assert ours.training.total_steps == pytest.approx(training.total_steps, abs=2)
    for budget, recipe in (("cpu", "ours"), ("gpu", "paper")):
        default = read_run(load(f"bsds500:budget={budget}"))
        assert default == read_run(load(f"bsds500:budget={budget},recipe={recipe}"))


def test_lengths_are_the_papers():
    """96 epochs of 4998 images, five a step; 25 of 9600; three times 8 from an earlier run."""

    def steps(spec: str) -> list[int]:
        return [stage.steps for stage in read_run(load(spec)).training.stages]

    assert steps("pascal_context:budget=gpu") == [80 * 999, 8 * 999, 8 * 999]
    assert steps("bsds500:budget=gpu") == [28800, 9600, 9600]
    assert steps("pascal_context:budget=gpu,train_scales=multi,continue_from=runs/x") == [8 * 999] * 3
    # With one image a step, an epoch is as many steps as there are images.
    assert steps("pascal_context:budget=gpu,images=1") == [80 * 4998, 8 * 4998, 8 * 4998]
    assert load("bsds500:budget=gpu").data.train.source.consensus == 3.0
    assert load("voc2012:sbd=somewhere").data.train.source.to_dict() == {
        **dict(name="voc2012", root="data/VOCdevkit", split="trainaug", sbd="somewhere")
    }
    assert "sbd" not in load("voc2012:sbd=somewhere").data.eval.source
    packed = load("voc2012:packed,split=trainval").data
    assert (packed.train.source.name, packed.train.source.split) == ("packed", "trainaug")
    assert (packed.eval.source.name, packed.eval.source.split) == ("packed", "trainval")


def test_rows_of_several_sizes_go_on_from_before_the_first_lower_rate(monkeypatch):
    """Right before the rate is first reduced: what the stage at the first rate ended with (section 4.1)."""
    monkeypatch.chdir(FOLDER.parents[1])
    tables = read_tables("pixelnet")
    plan = Reproduction(tables.all, Options(Path("runs"), "budget=gpu"))
    found = {}
    for table, rows in select(tables, ["Table 3", "Section 4.1"], ["conv7 (0.5-*", "ours"]):
        for row in rows:
            step = [step for step in plan.commands([(table, row)]) if step.out is None][-1]
            run = read_run(step.spec)
            found[table.source, row.network] = run.training.init_from.rpartition("/")[2]
            assert [stage.steps for stage in run.training.stages] == [run.training.stages[0].steps] * 3
    assert found == {
        ("pascal_context", "conv7 (0.5-1.0)"): "classes_33_conv7@train",
        ("pascal_context", "conv7 (0.5-0.25,0.5,1.0)"): "classes_33_conv7@train",
        ("voc2012", "ours"): "conv7@train",
    }
    half = read_run(f"{FOLDER}/pascal_context.py:conv7,budget=gpu").training.stages
    assert [(stage.name, stage.learning_rate) for stage in half][:2] == [("train", 1e-3), ("lower", 1e-4)]


def test_normals_see_conv7():
    """As released: table 5's network samples it, without dropout."""
    for budget in ("cpu", "gpu"):
        model = load(f"nyuv2_normals:task=normals,budget={budget}").model
        assert model.hypercolumn.layers[-1] == "fc7"
        assert model.backbone.dropout == 0.0
    assert "fc7" not in load("nyuv2_normals:conv7=False").model.hypercolumn.layers
    assert "fc7" not in load("nyuv2_normals:task=depth").model.hypercolumn.layers


def test_biases_and_the_boundaries_mlp_learn_faster():
    """Caffe's multipliers as released: 1 and 2; 10 and 20 in the MLP of boundaries."""
    expected = {
        "bsds500": {"mlp1/kernel": 10, "mlp3/bias": 20, "backbone/conv1_1/bias": 2, "backbone/fc7/kernel": 1},
        "voc2012": {"mlp1/kernel": 1, "mlp3/bias": 2, "backbone/conv1_1/bias": 2, "backbone/fc7/kernel": 1},
    }
    for name, leaves in expected.items():
        for stage in read_run(load(f"{name}:conv7,budget=gpu")).training.stages:
            assert {leaf: match_first(stage.multipliers, leaf) for leaf in leaves} == leaves


def test_the_papers_budget_takes_the_papers_weights():
    """Its rates are for Caffe's weights, whose activations are larger than torchvision's."""
    for budget, kind, file in (("gpu", "caffe", "vgg16_caffe"), ("cpu", "torch", "vgg16")):
        config = load(f"pascal_context:budget={budget}")
        assert config.model.backbone.preprocessing == kind
        assert config.training.init_from == f"weights/{file}.safetensors"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("bsds500:rare=1.0", "expected a share"),
        ("bsds500:fc=4", "fc=4"),
        ("bsds500:fc=1,width=64", "does not read it"),
        ("pascal_context:classes=60", "classes=60"),
        ("pascal_context:train_scales=large", "train_scales=large"),
        ("nyuv2_normals:task=edges", "task=edges"),
        ("camvid:pixels=1", "expected at least 2"),
        ("camvid:budget=gpu,steps=9", "budget=gpu does not read it"),
        ("voc2012:packed,sbd=x", "sbd: packed=True does not read it"),
        ("pascal_context:packed,label_root=x", "label_root: packed=True does not read it"),
        ("scenes:budget=cpu", "the scenes do not read it"),
        ("scenes:rare=0.3", "strategy=stratified does not read it"),
    ],
)
def test_wrong_arguments(spec, message):
    with pytest.raises(UserError, match=message):
        load(spec)
