"""Predictions on the way are scored beside their MACs: a system whose every exit gets a known share right."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax import tasks
from dynpix_jax.cli.tables import exit_table
from dynpix_jax.core.capabilities import GatedLayer
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.progressive import Step, StepResult
from dynpix_jax.core.routing import Routing
from dynpix_jax.core.settings import EvaluationConfig, InferenceConfig
from dynpix_jax.core.source import IMAGE, INDEX, FieldSpec, SourceSpec
from dynpix_jax.core.system import LossAux, Outputs, System
from dynpix_jax.evaluation import runner
from dynpix_jax.evaluation.evaluator import evaluate_system
from dynpix_jax.evaluation.runner import Runner, exit_maps
from dynpix_jax.visualization.report import Budget
from tests.stepwise import count

SIZE = (8, 12)
VARIABLES = {"params": {"gain": np.float32(1.0)}}


class Reader(System):
    """Class = red > 100. The first exit says 1 everywhere; the second reads the upper half; the last all.

    A gate computes where green is above 100.
    """

    name = "reader"

    def __init__(self):
        self.tasks = {"segmentation": tasks.build("segmentation", {"classes": 2}, "")}

    def init(self, key, batch):
        return {"params": {"gain": jnp.ones(())}}

    def apply(self, variables, images, inputs=None, routing=Routing(), *, rngs=None):
        red = (images[..., 0] > 100).astype(jnp.float32) * variables["params"]["gain"]
        upper = jnp.arange(images.shape[1])[:, None] < images.shape[1] // 2

        def logits(seen):
            one = jnp.where(seen, red, 1.0)
            return {"segmentation": jnp.stack([1 - one, one], -1)}

        gate = (images[:, ::4, ::4, 1] > 100).astype(jnp.float32)
        exits = (logits(jnp.zeros_like(upper)), logits(upper))
        return Outputs(logits(jnp.ones_like(upper)), gates={"later": gate}, selections={}, exits=exits)

    def loss(self, variables, batch, *, rngs, controls):
        return jnp.zeros(()), LossAux({}, {})

    def adapt(self, given, fresh):
        return given

    gated = {"later": GatedLayer(("later",))}  # noqa: RUF012

    def executed_shares(self, outputs):
        return {"later": outputs.gates["later"].mean((1, 2))}

    def exit_maps(self, outputs):
        steps = (*outputs.exits, outputs.predictions)
        return tuple((one["segmentation"].max(-1), outputs.gates["later"]) for one in steps)


class Pictures:
    """Two images of class 1 on the left and 0 on the right; the gate is open at a third of the second."""

    def __init__(self):
        labels = FieldSpec("segmentation", (None, None), "int32", classes=("a", "b"))
        self.spec = SourceSpec("pictures", {"image": IMAGE, "segmentation": labels, "index": INDEX})

    def __len__(self) -> int:
        return 2

    def name(self, index: int) -> str:
        return f"picture{index}"

    def __getitem__(self, index: int):
        image = np.zeros((*SIZE, 3), np.uint8)
        image[:, :6, 0] = 200
        image[:, :4, 1] = 200 * index
        labels = (image[..., 0] > 100).astype(np.int32)
        return {"image": image, "segmentation": labels, "index": np.int64(index)}


@pytest.fixture
def macs(monkeypatch):
    """10 up to the first exit, 20 and 40 from there to the next ones, all behind the gate."""
    counted = count((10.0, 20.0, 40.0), {"later": (0.0, 20.0, 40.0)})
    monkeypatch.setattr(runner, "system_macs", counted)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_every_exit_is_scored(macs, batch_size):
    settings = EvaluationConfig(mode="dense", pictures=1, batch_size=batch_size)
    result = evaluate_system(Reader(), VARIABLES, Pictures(), settings)
    accuracy = [one.numbers["pixel_accuracy"] for one in result.exits]
    assert accuracy == pytest.approx([0.5, 0.75, 1.0])
    # The gate's mean share is (0 + 1/3) / 2.
    assert [one.macs for one in result.exits] == pytest.approx([10, 10 + 20 / 6, 10 + 60 / 6])
    assert result.exits[-1].macs == pytest.approx(result.macs)
    rows = result.to_dict()["exits"]
    assert [row["macs_per_image"] for row in rows] == [one.macs for one in result.exits]
    assert rows[1]["pixel_accuracy"] == pytest.approx(0.75)

    _, shown = result.seen[0]
    maps = exit_maps(Reader(), shown["dense"], (16, 24))
    assert [macs for _, _, macs in maps] == [10, 10, 10]
    assert maps[0][0].shape == (16, 24)
    assert maps[0][1].all()  # nothing of the first image is computed on


def test_from_several_views(macs):
    """Mirrored, the gate sees as much; MACs are those of both views."""
    settings = EvaluationConfig(mode="dense", inference=InferenceConfig(flip=True))
    result = evaluate_system(Reader(), VARIABLES, Pictures(), settings)
    assert [one.numbers["pixel_accuracy"] for one in result.exits] == pytest.approx([0.5, 0.75, 1.0])
    assert [one.macs for one in result.exits] == pytest.approx([20, 20 + 20 / 3, 20 + 60 / 3], rel=1e-5)


class Stepwise(Reader):
    """Three steps of 10, 20 and 30 MACs; the k-th gives class 1 a logit of k where red is above 100."""

    def steps(self, variables, images, inputs, routing):
        def step(number):
            def run(state):
                red = number * (images[..., :1] > 100).astype(jnp.float32)
                return state, StepResult({"segmentation": jnp.concatenate([1 - red, red], -1)})

            return Step(run)

        return [step(number) for number in (1, 2, 3)], ()


@pytest.mark.parametrize(
    ("budget", "number"), [(5.0, 1), (29.0, 1), (30.0, 2), (59.9, 2), (60.0, 3), (None, 3)]
)
def test_a_photo_within_a_budget(budget, number, monkeypatch):
    """The latest prediction that fits, at the photo's size, though the network sees half of that."""
    monkeypatch.setattr(runner, "system_macs", count((10.0, 20.0, 30.0)))
    photo = Pictures()[0]["image"]
    half = Runner(Stepwise(), VARIABLES, InferenceConfig(scales=(0.5,)))
    result = half.within(photo, "dense", budget_ms=1e9, budget_macs=budget)
    assert result.prediction == (number, 3)
    assert result.macs == sum((10, 20, 30)[:number])
    assert result.seen == (4, 6)
    logits = result.outputs.predictions["segmentation"]
    assert logits.shape == (1, *SIZE, 2)
    assert logits[0, 4, 0, 1] == number


def test_budgets_need_steps_and_one_view():
    photo, budgets = Pictures()[0]["image"], dict(budget_ms=None, budget_macs=1.0)
    with pytest.raises(UserError, match="'reader' predict once"):
        Runner(Reader(), VARIABLES).within(photo, "dense", **budgets)
    with pytest.raises(UserError, match="several views"):
        Runner(Stepwise(), VARIABLES, InferenceConfig(flip=True)).within(photo, "dense", **budgets)


def test_table_of_exits():
    exits = [(2.0e9, {"miou": 0.5}), (4.0e9, {"miou": 0.75})]
    row = Budget("ca", 1.0, None, 4e9, 4e9, {"miou": 0.75}, {}, exits=exits)
    heads, cells = exit_table(tasks.segmentation.SCORES[:1], row)
    assert heads[:3] == ["exit", "MACs/image", "MACs / 2^30"]
    assert cells[0][:4] == ["1", "2.000e9", "1.86", "0.5000"]
    assert cells[2] == ["mean", "3.000e9", "2.79", "0.6250"]


class ManySteps(Reader):
    """Twelve exits before the last prediction: the k-th is right in the first k columns."""

    def apply(self, variables, images, inputs=None, routing=Routing(), *, rngs=None):
        outputs = super().apply(variables, images, inputs, routing)
        (last,) = outputs.predictions.values()
        column = jnp.arange(SIZE[1])

        def up_to(count):
            return {"segmentation": jnp.where((column < count)[:, None], last, 1 - last)}

        return dataclasses.replace(outputs, exits=tuple(up_to(count) for count in range(12)))


def test_a_dozen_exits_keep_their_order(monkeypatch):
    """Sums travel as trees whose keys are sorted as words: "10" is before "2"."""
    monkeypatch.setattr(runner, "system_macs", count((1.0,) * 13, {"later": (0.0,) * 12 + (1.0,)}))
    result = evaluate_system(ManySteps(), VARIABLES, Pictures(), EvaluationConfig(mode="dense"))
    assert [one.macs for one in result.exits] == pytest.approx([*range(1, 13), 12 + 1 / 6])
    accuracy = [one.numbers["pixel_accuracy"] for one in result.exits]
    assert accuracy == pytest.approx([*(right / 12 for right in range(12)), 1.0])
