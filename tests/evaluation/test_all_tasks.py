"""All tasks of the scenes in one evaluation, by a system that always says the same: scores by hand."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax import tasks
from dynpix_jax.cli import eval as eval_program
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.routing import Routing
from dynpix_jax.core.settings import EvaluationConfig
from dynpix_jax.core.system import LossAux, Outputs, System
from dynpix_jax.data.scenes import Scenes, ScenesConfig
from dynpix_jax.data.sources import build_source
from dynpix_jax.evaluation.evaluator import Evaluation, evaluate_system
from dynpix_jax.evaluation.multitask import Reference, TaskReference, write_reference
from dynpix_jax.evaluation.results import Measured, delta_scores
from dynpix_jax.serving.trained import Trained

ROOT = Path(__file__).resolve().parents[2]
SIZE = (32, 40)
WALL = 1
LOGITS = {
    "segmentation": tuple(float(c == WALL) for c in range(8)),
    "depth": (float(np.log(2.0)),),
    "normals": (0.0, 0.0, -5.0),
    "parts": (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    "albedo": (0.5, 0.25, 2.0),
    "saliency": (0.0,),
    "boundaries": (3.0,),
}
"""Wall; 2 m; towards the camera; background; a colour, its blue beyond 1; as likely as not; a boundary."""


SCORES = delta_scores({name: tasks.TASKS.resolve(name, "") for name in LOGITS})


class Constant(System):
    name = "constant"

    def __init__(self):
        options = {"segmentation": {"classes": 8}}
        self.tasks = {name: tasks.build(name, options.get(name, {}), "") for name in LOGITS}

    def init(self, key, batch):
        return {"params": {}}

    def apply(self, variables, images, inputs=None, routing=Routing(), *, rngs=None):
        # A network without MACs would have no share of them.
        nothing = jnp.einsum("bhwi,io->bhwo", 0.0 * images.astype(jnp.float32), jnp.ones((3, 1)))
        known = {name: nothing + jnp.array(value) for name, value in LOGITS.items()}
        return Outputs(predictions=known, gates={}, selections={})

    def loss(self, variables, batch, *, rngs, controls):
        return jnp.zeros(()), LossAux({}, {})

    def adapt(self, given, fresh):
        return given


@pytest.fixture(scope="module")
def scenes() -> list[dict[str, np.ndarray]]:
    return list(Scenes(ScenesConfig(SIZE, 3, fields=tuple(LOGITS)), "val"))


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    source = build_source({"name": "scenes", "size": SIZE, "length": 3, "fields": tuple(LOGITS)}, "val")
    settings = EvaluationConfig(mode="dense", thresholds=1, workers=0, pictures=0, batch_size=3)
    return evaluate_system(Constant(), {"params": {}}, source, settings)


def test_scores_are_those_of_the_constants(scenes, evaluation):
    def of(label: str) -> np.ndarray:
        return np.stack([scene[label] for scene in scenes]).astype(np.float64)

    numbers = evaluation.numbers
    assert numbers["pixel_accuracy"] == pytest.approx((of("segmentation") == WALL).mean())
    assert numbers["depth/rmse"] == pytest.approx(np.sqrt(((of("depth") - 2) ** 2).mean()), rel=1e-5)
    angles = np.degrees(np.arccos(np.clip(-of("normals")[..., 2], -1, 1)))
    assert numbers["normals/mean"] == pytest.approx(angles.mean(), rel=1e-4)
    # Of the scenes with a person all is called background, one of the classes that occur.
    people = [scene["parts"] for scene in scenes if scene["parts"].any()]
    assert people
    classes = {part for scene in people for part in np.unique(scene)}
    background = np.mean([scene == 0 for scene in people])
    assert numbers["parts/miou"] == pytest.approx(background / len(classes))
    errors = of("albedo") - (0.5, 0.25, 1.0)
    assert numbers["albedo/rmse"] == pytest.approx(np.sqrt((errors**2).mean((1, 2, 3))).mean(), rel=1e-5)
    # Below one half all is salient, so precision is the share of the salient pixels, and recall is 1.
    share = of("saliency").mean()
    assert numbers["saliency/miou"] == pytest.approx(share, rel=1e-5)
    assert numbers["saliency/max_f"] == pytest.approx(2 * share / (share + 1), rel=1e-5)
    assert 0 < numbers["boundaries/ods"] < 1
    assert evaluation.curve is not None


def test_its_own_scores_are_no_drop(evaluation):
    names = tuple(LOGITS)
    result = Measured(
        evaluation.numbers, 1.0, "scenes val, 3 images", ("here",), "one", names, delta_scores=SCORES
    )
    own = {
        name: TaskReference(m.score, m.higher_is_better, result.score(f"{name}/{m.score}"), ())
        for name, m in SCORES.items()
    }
    assert Reference(result.data, own).delta_m(result) == 0.0
    worse = own | {"depth": TaskReference("rmse", False, own["depth"].value / 1.07, ())}
    assert Reference(result.data, worse).delta_m(result) == pytest.approx(1.0)


def test_eval_prints_the_drop(evaluation, monkeypatch, tmp_path, capsys):
    """eval.py with a reference: a column, a number in eval.json, a line in the report; all tasks drawn."""
    file = tmp_path / "single.json"
    names = tuple(LOGITS)
    result = Measured(
        evaluation.numbers, 1.0, "scenes val, 3 images", ("here",), "one", names, delta_scores=SCORES
    )
    single = {
        # 10 % better than this network, each.
        name: TaskReference(
            m.score,
            m.higher_is_better,
            result.score(f"{name}/{m.score}") / (0.9 if m.higher_is_better else 1.1),
            (),
        )
        for name, m in SCORES.items()
    }
    write_reference(file, Reference(result.data, single))
    trained = Trained(Constant(), {"params": {}}, "one", 7, 1.0)
    monkeypatch.setattr(eval_program, "open_runs", lambda *_, **__: [trained])
    source = [f"size={SIZE}", "length=3", f"fields={names}"]
    settings = ["thresholds=1", "workers=0", "pictures=1", "batch_size=3", f"reference={file}"]
    argv = [f"--config={ROOT}/configs/astmt/scenes.py:variant=multi", f"--workdir={tmp_path}", "--set"]
    argv += [f"data.eval.source.{change}" for change in source] + [
        f"evaluation.{change}" for change in settings
    ]
    assert eval_program.main(argv) == 0
    head, line = (re.split(r"\s{2,}", text) for text in capsys.readouterr().out.splitlines()[:2])
    assert line[head.index("Δm, %")] == "10.00"
    numbers = json.loads((tmp_path / "eval.json").read_text())
    assert numbers["rows"][0]["delta_m"] == pytest.approx(10.0)
    assert numbers["rows"][0]["tasks"] == list(names)
    report = (tmp_path / "report.html").read_text()
    assert str(file) in report
    # A curve against MACs, one of boundaries; photo, seven labels and seven predictions.
    assert report.count('src="data:image/png;base64,') == 2 + 1 + 2 * len(names)
    with pytest.raises(
        UserError, match="measured on scenes val, 3 images; this evaluation is on scenes val, 2"
    ):
        eval_program.main([*argv, "evaluation.limit=2"])


def test_labels_agree(scenes):
    """A part is on a person, a salient thing is whole, a changed class is at a boundary."""
    person = 7
    for scene in scenes:
        np.testing.assert_array_equal(scene["parts"] > 0, scene["segmentation"] == person)
        assert set(np.unique(scene["saliency"])) == {0, 1}
        lines = scene["boundaries"] > 0
        for before, after in pairwise(range(SIZE[1])):
            changed = scene["segmentation"][:, before] != scene["segmentation"][:, after]
            assert (lines[:, before] | lines[:, after])[changed].all()
