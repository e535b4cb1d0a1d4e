"""configs/anytime, pose: rows of table 2 have the paper's cost, train, and beat the mean figure."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax import papers
from dynpix_jax.cli import eval as eval_program
from dynpix_jax.cli import train
from dynpix_jax.core.configs import load_config
from dynpix_jax.core.errors import UserError
from dynpix_jax.flops import system_macs
from dynpix_jax.run_config import read_run
from dynpix_jax.tasks.pose import pck_counts, pck_scores
from dynpix_jax.tasks.skeletons import MPII
from dynpix_jax.training.checks import check_stages
from dynpix_jax.training.inputs import data_source
from dynpix_jax.training.optim import stage_optimizer
from dynpix_jax.training.state import new_state
from dynpix_jax.training.step import make_step

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "anytime"
VARIANTS = ("hrnet", "ee", "rh", "ca")
GIBI = {
    "hrnet": (9.493,),
    "ee": (1.261, 2.267, 5.892, 9.513),
    "rh": (1.271, 2.289, 5.930, 9.551),
    "ca": (1.271, 2.289, 5.930, 9.551),
}
"""Table 2's "GFLOPs", MACs / 2^30 up to each exit at 256x256, nothing skipped, to three decimals."""
MARGIN = 0.2
"""By how much PCKh@.5 on scenes beats that of the mean figure."""


def load(name: str, arg: str = ""):
    return load_config(f"{FOLDER / name}.py:{arg}")


@pytest.mark.parametrize(
    "variant",
    # rh costs what ca does with nothing skipped.
    [pytest.param(name, marks=pytest.mark.slow if name == "rh" else ()) for name in VARIANTS],
)
def test_rows_of_table_2(variant):
    """As many MACs as the paper's, and the stages of HRNet's training."""
    config = load("mpii", f"variant={variant}")
    system = papers.build(config.model.to_dict())
    macs = [value / 2**30 for value in system_macs(system, (256, 256)).up_to_predictions({})]
    assert macs == pytest.approx(GIBI[variant], abs=1e-3)
    assert bool(system.gated) == (variant == "ca")
    training, data = read_run(config).training, read_run(config).data
    assert [stage.steps for stage in training.stages] == [170 * 173, 30 * 173, 10 * 173]
    assert [stage.learning_rate for stage in training.stages] == pytest.approx([1e-3, 1e-4, 1e-5])
    assert (training.optimizer, training.weight_decay, training.poly_power) == ("adamw", 0, 0)
    if variant == "ca":
        sections = [stage.model.adaptivity for stage in training.stages]
        assert [one.start for one in sections] == pytest.approx([10 / 170, 0, 0])
    assert data.train.augment.crop == (256, 256)
    assert (data.train.augment.resampling, data.train.augment.outside) == ("linear", "black")
    settings = data.eval.source
    assert (settings.name, settings.options.crop, settings.split) == ("mpii", (256, 256), "val")


def test_parameters_and_coco():
    """28.5 M parameters; 7.12 at COCO's 256x192 with its 17 joints."""
    config = load("mpii", "variant=hrnet")
    system = papers.build(config.model.to_dict())
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8)
    shapes = jax.eval_shape(partial(system.init, batch={"image": images}), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) / 1e6 == pytest.approx(28.5, abs=0.05)
    config.model.task_options.skeleton = "coco"
    coco = papers.build(config.model.to_dict())
    assert system_macs(coco, (256, 192)).report.gibi == pytest.approx(7.120, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "arg", "message"),
    [
        ("mpii", "variant=cs", "variant=cs: valid: ca, ee, hrnet, rh"),
        ("mpii", "arch=w16", "arch=w16"),
        ("mpii", "split=test", "split=test"),
        ("scenes_pose", "variant=hrnt", "did you mean 'hrnet'"),
        ("scenes_pose", "arch=w32", "'arch' is unknown"),
    ],
)
def test_wrong_arguments(name, arg, message):
    with pytest.raises(UserError, match=message):
        load(name, arg)


def stage_step(variant: str):
    """(step, first state, batch) of a variant's last stage, on narrow branches and images of 32 pixels."""
    config = load("scenes_pose", f"variant={variant}")
    with config.unlocked():
        config.model.backbone.update(width=4, blocks=1)
    training = read_run(config).training
    stage = training.stages[-1]
    system = papers.build(stage.model)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (2, 32, 32, 3), np.uint8),
        "keypoints": rng.uniform(0, 32, (2, 16, 3)).astype(np.float32),
        "valid": np.array([True, False]),
    }
    variables = jax.eval_shape(partial(system.init, batch=batch), jax.random.key(0))
    optimizer = stage_optimizer(variables["params"], training, stage)

    def start(key):
        return new_state(system.init(key, batch), optimizer.tx, optimizer.pick, 0)

    return make_step(system, optimizer, seed=0, stage_start=0, stage_steps=stage.steps), start, batch


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_training_step_fits(variant):
    """Traced only: shapes, dtypes and the tree of the state. The next test runs all of them."""
    config = load("scenes_pose", f"variant={variant}")
    assert check_stages(read_run(config), data_source(read_run(config), "train").spec)
    step, start, batch = stage_step(variant)
    state = jax.eval_shape(start, jax.random.key(0))
    after, metrics = jax.eval_shape(step, state, batch)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, after))
    exits = {"exit4"} if variant == "hrnet" else {"exit1", "exit2", "exit3", "exit4"}
    assert {name for name in metrics if name.startswith("exit")} == exits
    densities = {name for name in metrics if name.startswith("density")}
    assert len(densities) == (3 if variant == "ca" else 0)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains_a_step(variant):
    step, start, batch = stage_step(variant)
    state = jax.jit(start)(jax.random.key(0))
    after, metrics = jax.jit(step)(state, batch)
    assert np.isfinite(metrics["loss"])
    assert metrics["grad_norm"] > 0
    before, new = (jax.tree.leaves(jax.device_get(one.params)) for one in (state, after))
    changed = [not np.array_equal(a, b) for a, b in zip(before, new, strict=True)]
    assert sum(changed) > len(changed) / 2
    assert all(np.isfinite(leaf).all() for leaf in new)


def mean_figure_score(config) -> float:
    """PCKh@.5, on what is evaluated, of what knows the training figures and no image: the median
    place of each joint in crops around them."""
    source = dict(config.data.train.source.to_dict(), crop=config.data.eval.source.crop)
    config.data.train.source = source
    known, seen = data_source(read_run(config), "train"), data_source(read_run(config), "eval")
    joints = np.stack([known[index]["keypoints"] for index in range(150)])
    places = np.where(joints[..., 2:] > 0, joints[..., :2], np.nan)
    truth = [seen[index] for index in range(len(seen))]
    targets, sizes = (np.stack([one[name] for one in truth]) for name in ("keypoints", "head_size"))
    mean = np.broadcast_to(np.nanmedian(places, axis=0), (len(truth), 16, 2))
    (hits,), count = pck_counts(mean, targets, sizes, (0.5,))
    return pck_scores(hits, count, MPII)["mean"]


def test_the_mean_figure_scores_little():
    """What the config's docstring says of it."""
    assert mean_figure_score(load("scenes_pose")) == pytest.approx(0.415, abs=0.01)


@pytest.mark.slow
def test_a_trained_network_beats_the_mean_figure(tmp_path):
    """In under 3 minutes of training on 2 cores, when nothing else runs on them."""
    spec = f"{FOLDER / 'scenes_pose'}.py:variant=rh"
    arguments = [f"--config={spec}", f"--workdir={tmp_path}"]
    start = time.perf_counter()
    assert train.main(arguments) == 0
    print(f"trained in {time.perf_counter() - start:.0f} s")
    assert eval_program.main([*arguments, "--set", "evaluation.mode=dense"]) == 0
    row = json.loads((tmp_path / "eval.json").read_text())["rows"][-1]
    reached, constant = row["modes"]["dense"]["pckh"], mean_figure_score(load("scenes_pose"))
    print(f"PCKh@.5 {reached:.4f}, mean figure {constant:.4f}")
    assert reached - constant >= MARGIN
