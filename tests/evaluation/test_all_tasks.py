"""All tasks of the scenes in one evaluation, by a system that always says the same: scores by hand."""

from __future__ import annotations

from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax import tasks
from dynpix_jax.data.scenes import Scenes, ScenesConfig
from dynpix_jax.data.sources import build_source
from dynpix_jax.evaluation.evaluator import Evaluation, evaluate_system
from dynpix_jax.evaluation.multitask import MEASURES, Reference, TaskReference
from dynpix_jax.evaluation.results import Measured
from dynpix_jax.evaluation.settings import EvaluationConfig
from dynpix_jax.models.system import LossAux, Outputs, System

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


class Constant(System):
    name = "constant"

    def __init__(self):
        options = {"segmentation": {"classes": 8}}
        self.tasks = {name: tasks.build(name, options.get(name, {}), "") for name in LOGITS}

    def init(self, key, batch):
        return {"params": {}}

    def apply(self, variables, images, *, train=False, rngs=None, mode="dense", temperature=1.0, masks=None):
        shape = images.shape[:3]
        known = {
            name: jnp.broadcast_to(jnp.array(value), (*shape, len(value))) for name, value in LOGITS.items()
        }
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
    result = Measured(evaluation.numbers, 1.0, "scenes val, 3 images", "here", "one", names)
    own = {
        name: TaskReference(m.score, result.score(f"{name}/{m.score}"), ()) for name, m in MEASURES.items()
    }
    assert Reference(result.data, own).delta_m(result) == 0.0
    worse = own | {"depth": TaskReference("rmse", own["depth"].value / 1.07, ())}
    assert Reference(result.data, worse).delta_m(result) == pytest.approx(1.0)


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
