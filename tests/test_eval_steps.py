"""eval.py's pictures of a network that works in steps and whose pixels choose: a toy with known answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax import tasks
from dynpix_jax.cli.evaluated import Evaluated, make_examples
from dynpix_jax.core.progressive import in_step
from dynpix_jax.core.routing import Routing
from dynpix_jax.core.settings import EvaluationConfig, InferenceConfig
from dynpix_jax.core.system import LossAux, Outputs, System
from dynpix_jax.data.sources import build_source
from dynpix_jax.evaluation.evaluator import evaluate_system
from dynpix_jax.ops.resize import resize_nearest
from dynpix_jax.serving.trained import Trained, with_alternatives
from dynpix_jax.visualization.report import report_html
from dynpix_jax.visualization.task_pictures import ClassPictures


class Steps(System):
    """Step k says class k where red is above 50 k, else class 0. Bright pixels choose "wide", others "small".

    With ``count`` 2 it stops after the first step, which is its alternative "step_0".
    """

    name = "steps"
    choices = ("small", "wide")

    def __init__(self, count: int = 3):
        self.count = count
        self.tasks = {"segmentation": tasks.build("segmentation", {"classes": 8}, "")}

    def init(self, key, batch):
        return {"params": {}}

    def apply(self, variables, images, inputs=None, routing=Routing(), *, rngs=None):
        red = images[..., :1].astype(jnp.float32)
        steps = []
        for k in range(self.count):
            with in_step(k):
                one = jnp.einsum("i,i->", jnp.ones(1), jnp.ones(1))  # MAC a step
                logits = jnp.where(jnp.arange(8) == jnp.where(red > 50 * k, k, 0), 5.0 * one, 0.0)
                steps.append({"segmentation": logits})
        bright = red[:, ::4, ::4] > 127
        chosen = jnp.concatenate([~bright, bright], -1).astype(jnp.float32)
        return Outputs(steps[-1], gates={}, selections={"first": chosen}, exits=tuple(steps[:-1]))

    def loss(self, variables, batch, *, rngs, controls):
        return jnp.zeros(()), LossAux({}, {})

    def adapt(self, given, fresh):
        return given

    @property
    def alternatives(self) -> Mapping[str, System]:
        return {"step_1": Steps(2)} if self.count > 2 else {}

    def choice_maps(self, outputs, size):
        chosen = {name: jnp.argmax(weights, -1) for name, weights in outputs.selections.items()}
        return {
            name: resize_nearest(value.astype(jnp.int32)[..., None], size)[..., 0]
            for name, value in chosen.items()
        }

    def true_choices(self, labels):
        return (labels["depth"] < 3.0).astype(jnp.int32)


def scenes():
    section = dict(name="scenes", size=(96, 128), length=2, fields=("segmentation", "depth"))
    return build_source(section, "val")


def examples(inference: InferenceConfig):
    """(rows' labels, evaluations, examples) of the toy and its alternative."""
    runs = with_alternatives([Trained(Steps(), {"params": {}}, "end", 1, 1.0)], ("step_1",))
    settings = EvaluationConfig(mode="dense", pictures=1, inference=inference)
    source = scenes()
    found = [evaluate_system(run.system, run.variables, source, settings) for run in runs]
    rows = [Evaluated(run, one) for run, one in zip(runs, found, strict=True)]
    return [row.budget for row in rows], found, list(make_examples(source, rows))


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_steps_and_choices_of_the_report(scale):
    rows, found, (example,) = examples(InferenceConfig(scales=(scale,)))
    assert [row.label for row in rows] == ["end", "end, step_1"]
    element = scenes()[0]
    assert example.choices == ("small", "wide")
    np.testing.assert_array_equal(example.true_choices, element["depth"] < 3.0)
    whole, fewer = example.predictions
    assert [len(prediction.earlier) for prediction in (whole, fewer)] == [2, 1]
    shapes = {step["segmentation"].shape for step in (*whole.earlier, *fewer.earlier)}
    assert shapes == {whole.choices["first"].shape} == {(96, 128)}
    if scale == 1.0:
        red = element["image"][..., 0]
        np.testing.assert_array_equal(whole.earlier[1]["segmentation"], np.where(red > 50, 1, 0))
        np.testing.assert_array_equal(whole.by_task["segmentation"], np.where(red > 100, 2, 0))
        np.testing.assert_array_equal(fewer.by_task["segmentation"], whole.earlier[1]["segmentation"])
        np.testing.assert_array_equal(whole.choices["first"][::4, ::4], red[::4, ::4] > 127)
    field = scenes().spec.fields["segmentation"]
    pictures = {"segmentation": ClassPictures(field.classes, field.palette)}
    text = report_html("t", {}, found[0].tasks, rows, [example], pictures)
    assert text.count("<b>Changed by step") == 3
    assert "Choices by the labels" in text


def test_several_views_have_steps_but_no_choices():
    _, _, (example,) = examples(replace(InferenceConfig(), flip=True))
    assert [len(prediction.earlier) for prediction in example.predictions] == [2, 1]
    assert not any(prediction.choices for prediction in example.predictions)
