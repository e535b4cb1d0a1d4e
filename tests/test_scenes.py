"""configs/pag/scenes.py: every task is built, and beats by a stated margin what knows no image."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from dynpix_jax import tasks
from dynpix_jax.cli import eval as eval_program
from dynpix_jax.cli import train
from dynpix_jax.core.configs import load_config
from dynpix_jax.core.errors import UserError
from dynpix_jax.data.scene_layout import CLASSES
from dynpix_jax.run_config import read_run
from dynpix_jax.training.checks import check_stages
from dynpix_jax.training.inputs import data_source

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "pag" / "scenes.py"
MARGINS = {
    "boundaries": ("ods", 0.3),
    "segmentation": ("miou", 0.2),
    "depth": ("delta1", 0.15),
    "normals": ("mean", -15.0),
}
"""Task -> (score, by how much the trained network is better than the best constant prediction)."""


@pytest.mark.parametrize(
    "arg",
    [
        "task=boundaries",
        "task=segmentation,variant=average",
        "task=depth,variant=gated,rho=0.5",
        "task=normals,variant=multipool",
    ],
)
def test_every_task_is_built_for_the_labels_that_it_gets(arg):
    config = load_config(f"{CONFIG}:{arg}")
    source = data_source(read_run(config), "train")
    stages = check_stages(read_run(config), source.spec)
    assert stages[0].name == "base"
    # Gates are trained in two stages: with samples, then with the masks of evaluation.
    assert len(stages) == 1 + ("variant" in arg) + ("variant=gated" in arg)
    element = source[0]
    assert element["image"].shape == (96, 128, 3)
    assert f"task={config.model.task}" in arg
    assert config.model.task in element


def test_arguments():
    import configs.pag.scenes as scenes

    assert tuple(MARGINS) == scenes.TASKS
    assert set(MARGINS) <= set(tasks.TASKS)
    assert len(CLASSES) == scenes.datasets.SCENE_CLASSES
    for arg, message in (
        ("task=dept", "did you mean 'depth'"),
        ("variant=gate", "did you mean 'gated'"),
        ("rho=0.5", "variant=base does not read it"),
        ("variant=gated,rho=0", "rho=0"),
    ):
        with pytest.raises(UserError, match=message):
            scenes.get_config(arg)


def constant_prediction(task: str, labels: np.ndarray) -> np.ndarray:
    """The prediction (H, W) that knows the labels (N, H, W) of the training set, and no image."""
    if task == "segmentation":
        return np.full(labels.shape[1:3], np.bincount(labels[labels != 255]).argmax(), np.int32)
    if task == "depth":
        return np.full(labels.shape[1:3], np.exp(np.median(np.log(labels[labels > 0]))), np.float32)
    mean = labels.reshape(-1, 3).mean(0)
    return np.broadcast_to(mean / np.linalg.norm(mean), labels.shape[1:]).astype(np.float32)


def constant_score(config, task: tasks.Task) -> float:
    """What the constant prediction reaches on the images of the evaluation, in the task's first score."""
    sources = {part: data_source(read_run(config), part) for part in ("train", "eval")}
    known = np.stack([sources["train"][index][task.name] for index in range(50)])
    truth = np.stack([element[task.name] for element in sources["eval"]])
    if not isinstance(task, tasks.PixelTask):
        # All is boundary: every boundary pixel is found, and of the predicted ones only these match.
        share = truth.mean()
        return float(2 * share / (1 + share))
    prediction = np.broadcast_to(constant_prediction(task.name, known), truth.shape)
    state = task.measure(prediction, {task.name: truth, "valid": np.ones(len(truth), bool)})
    return task.compute(state)[task.scores[0].name]


@pytest.mark.slow
@pytest.mark.parametrize("name", MARGINS)
def test_a_trained_network_beats_the_constant_prediction(name, tmp_path):
    """In under 3 minutes of training on 2 cores, when nothing else runs on them."""
    arguments = [f"--config={CONFIG}:task={name}", f"--workdir={tmp_path}"]
    config = load_config(f"{CONFIG}:task={name}")
    start = time.perf_counter()
    assert train.main(arguments) == 0
    print(f"{name}: trained in {time.perf_counter() - start:.0f} s")
    assert eval_program.main([*arguments, "--set", "evaluation.mode=dense"]) == 0
    (row,) = json.loads((tmp_path / "eval.json").read_text())["rows"]
    task = tasks.build(name, dict(config.model.task_options), "")
    score, margin = MARGINS[name]
    assert score == task.scores[0].name
    assert (margin > 0) == task.higher_is_better
    constant, reached = constant_score(config, task), row["modes"]["dense"][score]
    print(f"{name}: {score} {reached:.4f}, constant prediction {constant:.4f}")
    assert (reached - constant) / margin >= 1.0
