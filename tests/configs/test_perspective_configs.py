"""configs/perspective: every variant of every stage is built, and trains a step on a tiny backbone."""

from __future__ import annotations

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax import papers
from dynpix_jax.backbones import resnet
from dynpix_jax.core.configs import load_config
from dynpix_jax.core.errors import UserError
from dynpix_jax.evaluation.table_files import read_tables
from dynpix_jax.papers.perspective.config import CITYSCAPES_EDGES, NYU_EDGES
from dynpix_jax.run_config import read_run
from dynpix_jax.training.checks import check_stages
from dynpix_jax.training.inputs import data_source
from dynpix_jax.training.optim import stage_optimizer
from dynpix_jax.training.state import TrainState
from dynpix_jax.training.step import make_step

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "perspective"
DATA_SETS = ("nyuv2", "sunrgbd", "cityscapes", "stanford2d3d", "scenes")
VARIANTS = (
    # Table 2.
    "",
    "variant=gt_depth",
    "variant=pred_depth",
    "variant=baseline,loops=1",
    "variant=gt_depth,loops=1",
    "variant=pred_depth,loops=1,regression=True",
    "variant=pred_depth,loops=2",
    "variant=pred_depth,loops=2,test_aug=True",
    # Figure 4 and the supplement's table 1; what else there is.
    "variant=average,tied=True",
    "variant=average",
    "variant=gt_depth,tied=True",
    "variant=attention",
    "variant=average,pooling=multiscale,tied=True",
    "variant=average,pooling=multiscale",
    "variant=pred_depth,pooling=multiscale",
    "variant=pred_depth,loops=3,gate=argmax",
)
SIZE = (17, 25)


def load(name: str, arg: str = ""):
    return load_config(f"{FOLDER / name}.py:{arg}")


@pytest.mark.parametrize("arg", VARIANTS)
@pytest.mark.parametrize("name", DATA_SETS)
def test_every_variant_is_built(name, arg):
    config = load(name, arg)
    training, data = read_run(config).training, read_run(config).data
    systems = [papers.build(stage.model) for stage in training.stages]
    options = data.train.source.options
    assert ("depth" in options.fields) == ("_depth" in arg)
    assert all(set(system.tasks) <= set(options.fields) for system in systems)
    loops = [system.config.loops for system in systems]
    assert loops == sorted(loops)
    assert str(loops[-1]) == (arg.split("loops=")[1][0] if "loops" in arg else "0")
    last = systems[-1].config
    if len(systems) > 1 and training.stages[-1].name == "finetune":
        assert last.depth is None
        assert last.loss.depth_class == 0 or "pred_depth" not in last.signals
    # What the stages end with is what the config says.
    assert systems[-1].config.pooling == papers.build(config.model.to_dict()).config.pooling


def weights_of_loops(arg: str) -> list[tuple[float, ...]]:
    """Lambda_s of the feed-forward pass and each loop, in each stage."""
    models = [stage.model for stage in read_run(load("nyuv2", arg)).training.stages]
    given = [(model.loss.segmentation, model.loops) for model in models]
    return [(*weights, *weights[-1:] * loops)[: loops + 1] for weights, loops in given]


def test_the_last_stage_keeps_the_losses_of_all_loops():
    """Section 4: the depth's alone are dropped; one lambda_s. Or the weights of the released scripts."""
    stages = [(1,), (1,), (1, 1), (1, 1, 1), (1, 1, 1)]
    assert weights_of_loops("variant=pred_depth,loops=2") == stages
    nyu = [(1,), (1,), (1, 5), (1, 5, 5), (1, 5, 5)]
    assert weights_of_loops("variant=pred_depth,loops=2,loop_loss=nyuv2") == nyu
    cityscapes = [(1,), (1,), (0.5, 1), (0.1, 0.5, 1), (0, 0.1, 0.5, 1), (0, 0.1, 0.5, 1)]
    assert weights_of_loops("variant=attention,loops=3,loop_loss=cityscapes") == cityscapes


def test_nyuv2_and_sun_rgbd_read_the_filled_depth():
    """Footnote 3; the other depth by --set."""
    for name in ("nyuv2", "sunrgbd"):
        for variant in ("gt_depth", "pred_depth"):
            spec = f"{FOLDER / name}.py:variant={variant}"
            data = read_run(spec).data
            assert data.train.source.options.depth == data.eval.source.options.depth == "filled"
            changed = read_run(spec, ["data.train.source.depth=raw"]).data
            assert changed.train.source.options.depth == "raw"
        with pytest.raises(UserError, match=r"nothing reads 'filled': .*'depth'"):
            read_run(f"{FOLDER / name}.py", ["data.train.source.depth=filled"])


def test_rows_of_cityscapes_follow_the_supplements_order():
    """Each from the one before, but attention; loops go on from before the depth's losses are dropped."""
    found = {}
    for table in read_tables("perspective").tables:
        if table.source in ("cityscapes", "nyuv2") and table.number != "Table 1":
            found |= {(table.source, row.argument): row.after for row in table.rows}
    order = ["baseline", "average,tied=True", "gt_depth,tied=True", "gt_depth", "pred_depth"]
    for before, after in itertools.pairwise(order):
        assert found["cityscapes", f"variant={after}"] == f"variant={before}"
    assert found["cityscapes", "variant=attention"] == "variant=baseline"
    for source in ("cityscapes", "nyuv2"):
        assert found[source, "variant=pred_depth,loops=1"] == "variant=pred_depth@gating"
        assert found[source, "variant=pred_depth,loops=2"] == "variant=pred_depth,loops=1@loop_1"


def test_other_data_sets():
    for arg in ("variant=attention,loops=2", "variant=average,tied=True", ""):
        config = load("camvid", arg)
        for stage in read_run(config).training.stages:
            assert set(papers.build(stage.model).tasks) == {"segmentation"}
    config = load("sevenscenes", "loops=2,every=5")
    for stage in read_run(config).training.stages:
        assert set(papers.build(stage.model).tasks) == {"depth"}
    for name, edges in (("nyuv2", NYU_EDGES), ("sunrgbd", NYU_EDGES), ("cityscapes", CITYSCAPES_EDGES)):
        assert tuple(load(name, "variant=gt_depth").model.bins.edges) == edges


def test_only_what_is_left_is_trained_after_an_earlier_run():
    def names(arg):
        stages = read_run(load("nyuv2", arg)).training.stages
        return [stage.name for stage in stages]

    assert names("variant=pred_depth,loops=2") == ["base", "gating", "loop_1", "loop_2", "finetune"]
    assert names("variant=pred_depth,loops=2,continue_from=runs/x") == ["loop_2", "finetune"]
    assert names("variant=average,tied=True,continue_from=runs/x") == ["gating"]
    assert names("continue_from=runs/x") == ["base"]


def test_the_papers_own_training():
    """Section 5: SGD, one image a step, 2.5e-4, no warm-up; depth losses as released; as many images."""
    arg = "variant=pred_depth,loops=1,regression=True,budget=gpu"
    ours, paper = (read_run(load("nyuv2", f"{arg},recipe={name}")) for name in ("ours", "paper"))
    training = paper.training
    assert (training.optimizer, training.batch_size, training.warmup_steps) == ("sgd", 1, 0)
    assert {stage.learning_rate for stage in paper.stages} == {2.5e-4}
    assert {(stage.model.loss.depth_class, stage.model.loss.depth) for stage in paper.stages} == {
        (0.01, 0.001)
    }
    assert training.total_steps == ours.training.total_steps * ours.training.batch_size
    # Without classes there is no layer of theirs to learn faster.
    assert read_run(load("sevenscenes", "recipe=paper")).stages[0].multipliers == ((".*", 1.0),)


def test_steps_of_all_stages_together():
    """By hand: 4 parts, 2 for the gates and each loop, 1 for the last stage."""

    def steps(name, arg):
        return [stage.steps for stage in read_run(load(name, arg)).training.stages]

    assert steps("camvid", "variant=attention,loops=2,steps=110") == [40, 20, 20, 20, 10]
    assert steps("camvid", "variant=attention,steps=110") == [74, 36]
    assert steps("sevenscenes", "loops=1,steps=60") == [40, 20]
    assert steps("scenes", "variant=pred_depth") == [1029, 514, 257]


def test_evaluation_has_a_row_for_the_other_way_to_gate():
    def also(arg):
        return tuple(load("nyuv2", arg).evaluation.also)

    assert also("variant=pred_depth") == also("variant=attention,loops=1") == ("argmax",)
    assert also("variant=gt_depth,gate=argmax") == ("softmax",)
    assert also("") == also("variant=average") == also("variant=pred_depth,pooling=multiscale") == ()


@pytest.mark.parametrize("variant", ["gt_depth", "pred_depth"])
def test_a_depth_that_a_later_stage_needs_is_missed_at_once(variant):
    config = load("scenes", f"variant={variant}")
    config.data.train.source.fields = ("segmentation",)
    spec = data_source(read_run(config), "train").spec
    with pytest.raises(UserError, match="source scenes: no 'depth' labels, stage 'gating' needs them"):
        check_stages(read_run(config), spec)
    config = load("scenes", "variant=attention,loops=1")
    assert check_stages(read_run(config), data_source(read_run(config), "train").spec)


def test_scenes_train_equally_long():
    totals = {read_run(load("scenes", arg)).training.total_steps for arg in VARIANTS}
    assert len(totals) == 1
    assert load("scenes", "seed=2").seed == 2


@pytest.mark.parametrize(
    ("name", "arg", "message"),
    [
        ("nyuv2", "variant=pred_dept", "did you mean 'pred_depth'"),
        ("nyuv2", "tied=True", "variant=baseline does not read it"),
        ("nyuv2", "variant=average,gate=argmax", "variant=average does not read it"),
        ("nyuv2", "variant=average,pooling=multiscale,loops=1", "has no loops"),
        ("nyuv2", "loops=-1", "loops=-1"),
        ("nyuv2", "loop_loss=nyuv2", "no loop without loops=1"),
        ("sevenscenes", "loops=1,loop_loss=nyuv2", "7-Scenes has no classes"),
        ("nyuv2", "variant=attention,blur=2", "variant=attention does not read it"),
        ("nyuv2", "variant=pred_depth,blur=2", "no depth to smooth without regression=True"),
        ("nyuv2", "variant=pred_depth,regression=True,blur=-1", "blur=-1"),
        ("nyuv2", "variant=pred_depth,steps=6", "steps=6: expected at least 7"),
        ("nyuv2", "steps=-1", "steps=-1"),
        ("camvid", "variant=pred_depth", "variant=pred_depth"),
        ("sevenscenes", "variant=pred_depth", "7-Scenes has no classes"),
        ("scenes", "budget=gpu", "the scenes do not read it"),
    ],
)
def test_wrong_arguments(name, arg, message):
    with pytest.raises(UserError, match=message):
        load(name, arg)


def stage_step(config, monkeypatch):
    """(step, state, batch) of a config's last stage, on a backbone of four narrow blocks."""
    monkeypatch.setitem(resnet._BLOCKS, 18, (1, 1, 1, 1))
    config.model.backbone.update(depth=18, width=4)
    config.model.features = 8
    if "depth_features" in config.model:  # of networks that predict a depth
        config.model.depth_features = (8, 4)
    training = read_run(config).training
    stage = training.stages[-1]
    system = papers.build(stage.model)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (1, *SIZE, 3), np.uint8),
        "segmentation": rng.integers(0, 8, (1, *SIZE)).astype(np.int32),
        "depth": rng.uniform(0.5, 8.0, (1, *SIZE)).astype(np.float32),
        "valid": np.ones(1, bool),
    }
    shapes = jax.eval_shape(lambda key: system.init(key, batch), jax.random.key(0))
    optimizer = stage_optimizer(shapes["params"], training, stage)
    step = make_step(system, optimizer, seed=0, stage_start=0, stage_steps=stage.steps)

    def start(key):
        variables = system.init(key, batch)
        trainable, _ = optimizer.split(variables["params"])
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            collections={name: tree for name, tree in variables.items() if name != "params"},
            opt_state=optimizer.tx.init(trainable),
        )

    return step, start, batch


@pytest.mark.parametrize(
    ("name", "arg"),
    [
        ("scenes", ""),
        ("scenes", "variant=gt_depth,loops=1"),
        ("scenes", "variant=pred_depth,loops=1,regression=True"),
        ("scenes", "variant=average,pooling=multiscale,tied=True"),
        ("camvid", "variant=average,tied=True"),
        ("sevenscenes", "loops=1"),
    ],
)
def test_a_training_step_fits(name, arg, monkeypatch):
    """Traced only: shapes, dtypes and the tree of the state. The next test runs all of them."""
    step, start, batch = stage_step(load(name, arg), monkeypatch)
    state = jax.eval_shape(start, jax.random.key(0))
    after, metrics = jax.eval_shape(step, state, batch)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, after))
    assert {"loss", "depth" if name == "sevenscenes" else "segmentation", "grad_norm"} <= set(metrics)


@pytest.mark.slow
@pytest.mark.parametrize("arg", VARIANTS)
def test_every_variant_trains_a_step(arg, monkeypatch):
    step, start, batch = stage_step(load("scenes", arg), monkeypatch)
    state = jax.jit(start)(jax.random.key(0))
    after, metrics = jax.jit(step)(state, batch)
    assert np.isfinite(metrics["loss"])
    assert metrics["grad_norm"] > 0
    for name in set(state.params) & {"feedforward", "loop"}:
        pairs = zip(jax.tree.leaves(state.params[name]), jax.tree.leaves(after.params[name]), strict=True)
        assert any((np.asarray(a) != np.asarray(b)).any() for a, b in pairs)
