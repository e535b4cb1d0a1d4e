"""The evaluator on a system whose predictions are known: scores over batches, padding, limits, mistakes."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from dynpix_jax import tasks
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.routing import Routing
from dynpix_jax.core.settings import EvaluationConfig, InferenceConfig
from dynpix_jax.core.source import BOUNDARIES, DEPTH, IMAGE, INDEX, NORMALS, SourceSpec
from dynpix_jax.core.system import LossAux, Outputs, System
from dynpix_jax.evaluation.evaluator import evaluate, evaluate_system
from dynpix_jax.evaluation.scorers import BoundaryScorer
from dynpix_jax.evaluation.totals import Differences
from dynpix_jax.visualization.comparison import comparison

SETTINGS = EvaluationConfig(mode="dense", pictures=2)


class Known(System):
    """Predicts a depth of (red + 1) centimetres through a 1x1 convolution that changes nothing, and walls."""

    name = "known"

    def __init__(self, *names: str):
        self.tasks = {name: tasks.build(name, {}, "") for name in names or ("depth",)}

    def init(self, key, batch):
        return {"params": {"gain": jnp.ones(())}}

    def apply(self, variables, images, inputs=None, routing=Routing(), *, rngs=None):
        depth = (images[..., :1].astype(jnp.float32) + 1.0) / 100.0
        same = jnp.einsum("bhwi,io->bhwo", depth, jnp.eye(1)) * variables["params"]["gain"]
        known = {"depth": jnp.log(same), "normals": same * jnp.array([0.0, 0.0, -1.0])}
        return Outputs(predictions={name: known[name] for name in self.tasks}, gates={}, selections={})

    def loss(self, variables, batch, *, rngs, controls):
        return jnp.zeros(()), LossAux({}, {})

    def adapt(self, given, fresh):
        return given


class Frames:
    """Five frames; the true depth is the predicted one times a factor that grows with the frame."""

    def __init__(self, spec: SourceSpec, sizes: tuple[tuple[int, int], ...] = ((6, 8),) * 5):
        self.spec, self._sizes = spec, sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def name(self, index: int) -> str:
        return f"frame{index}"

    def __getitem__(self, index: int):
        rng = np.random.default_rng(index)
        image = rng.integers(0, 256, (*self._sizes[index], 3), np.uint8)
        depth = (image[..., 0] + 1.0) / 100 * (1.0 + 0.1 * index)
        depth[:index] = 0.0  # invalid
        normals = np.broadcast_to(np.array([0.0, 0.6, -0.8], np.float32), (*depth.shape, 3))
        element = {"image": image, "depth": depth.astype(np.float32), "index": np.int64(index)}
        return element | ({"normals": normals} if "normals" in self.spec.fields else {})


SPEC = SourceSpec("frames", {"image": IMAGE, "depth": DEPTH, "index": INDEX})
VARIABLES = {"params": {"gain": np.float32(1.0)}}


@pytest.mark.parametrize("batch_size", [1, 2, 5, 7])
def test_scores_pool_the_labelled_pixels_of_all_images(batch_size):
    source, seen = Frames(SPEC), []
    settings = replace(SETTINGS, batch_size=batch_size)
    result = evaluate_system(
        Known(), VARIABLES, source, settings, progress=lambda done, name: seen.append((done, name))
    )
    factors = np.concatenate([np.full((6 - index) * 8, 1.0 + 0.1 * index) for index in range(5)])
    numbers = result.numbers
    assert numbers["delta1"] == pytest.approx((factors < 1.25).mean())
    assert numbers["rmse_log"] == pytest.approx(np.sqrt((np.log(factors) ** 2).mean()), rel=1e-5)
    assert numbers["abs_rel"] == pytest.approx((1 - 1 / factors).mean(), rel=1e-5)
    assert result.images == 5
    assert result.macs == result.macs_open == 6 * 8
    assert (result.density, result.mode_difference, result.shares) == (None, {"depth": None}, {})
    assert seen == [(index + 1, f"frame{index}") for index in range(5)]
    (first, results), (second, _) = result.seen
    assert (first, second) == ("frame0", "frame1")
    depth = results["dense"].outputs.predictions["depth"]
    np.testing.assert_allclose(np.exp(depth[0, ..., 0]), source[0]["depth"], rtol=1e-5)


def test_limit_both_modes_and_the_numbers_of_a_training_run():
    settings = replace(SETTINGS, mode="both", limit=1)
    result = evaluate_system(Known(), VARIABLES, Frames(SPEC), settings)
    # Nothing is gated: one run stands for both modes.
    assert result.modes["dense"] == result.modes["sparse"]
    assert result.to_dict()["modes"]["sparse"]["delta1"] == 1.0
    numbers = evaluate(Known(), VARIABLES, Frames(SPEC), settings)
    assert numbers["rmse"] < 1e-5
    assert numbers["macs"] == 6 * 8
    assert "density" not in numbers
    assert not any(isinstance(value, np.ndarray) for value in numbers.values())


def test_pictures_of_a_training_run_show_photo_prediction_and_label():
    source, settings = Frames(SPEC), replace(SETTINGS, mode="both", pictures=2)
    logged = evaluate(Known(), VARIABLES, source, settings, comparison)
    pictures = {name: value for name, value in logged.items() if isinstance(value, np.ndarray)}
    assert list(pictures) == ["depth/frame0", "depth/frame1"]
    photo, prediction, label = np.split(pictures["depth/frame0"], 3, axis=1)
    np.testing.assert_array_equal(photo, source[0]["image"])
    np.testing.assert_array_equal(prediction, label)  # it knows the depth of the first frame


def test_several_tasks_stand_side_by_side():
    """The numbers of all but the first carry their task's name."""
    spec = replace(SPEC, fields={**SPEC.fields, "normals": NORMALS})
    system = Known("depth", "normals")
    result = evaluate_system(system, VARIABLES, Frames(spec), replace(SETTINGS, batch_size=2))
    assert list(result.numbers) == [score.name for score in tasks.all_scores(system.tasks)]
    assert result.numbers["normals/mean"] == pytest.approx(np.rad2deg(np.arccos(0.8)), rel=1e-5)
    alone = evaluate_system(Known(), VARIABLES, Frames(SPEC), SETTINGS)
    assert {name: result.numbers[name] for name in alone.numbers} == pytest.approx(alone.numbers)
    row = result.to_dict()
    assert row["tasks"] == ["depth", "normals"]
    assert row["modes"]["dense"]["normals/within_30"] == 0.0
    assert (row["mode_difference"], row["normals/mode_difference"]) == (None, None)


def test_views_add_up_their_macs():
    inference = InferenceConfig(window=(6, 4), flip=True)
    result = evaluate_system(Known(), VARIABLES, Frames(SPEC), replace(SETTINGS, inference=inference))
    # Windows at columns 0, 3, 4; twice for the mirror image.
    assert result.macs == pytest.approx(2 * 3 * 6 * 4)
    assert result.numbers["delta3"] == 1.0


def test_one_view_at_another_size():
    """The network sees a quarter of the pixels; predictions and labels are at the image's size."""
    inference = InferenceConfig(scales=(0.5,))
    result = evaluate_system(Known(), VARIABLES, Frames(SPEC), replace(SETTINGS, inference=inference))
    assert result.macs == 3 * 4
    image = result.seen[0][1]["dense"]
    assert image.seen == (3, 4)
    assert image.outputs.predictions["depth"].shape == (1, 6, 8, 1)
    plain = evaluate_system(Known(), VARIABLES, Frames(SPEC), SETTINGS)
    # What is seen at half the size is twice as near as it looks.
    sizes = [np.exp(one.seen[0][1]["dense"].outputs.predictions["depth"]).mean() for one in (result, plain)]
    assert sizes[0] / sizes[1] == pytest.approx(0.5, rel=0.2)


def test_depth_is_smoothed_in_metres():
    """At the image's size, from one view and from two; what is not depth stays as it is."""
    spec = replace(SPEC, fields={**SPEC.fields, "normals": NORMALS})
    system, source = Known("depth", "normals"), Frames(spec)
    truth = source[0]["depth"]
    smooth = ndimage.gaussian_filter(truth, 1.5, mode="nearest")
    for flip in (False, True):
        settings = replace(SETTINGS, limit=1, inference=InferenceConfig(blur=1.5, flip=flip))
        result = evaluate_system(system, VARIABLES, source, settings)
        found = result.seen[0][1]["dense"].outputs.predictions
        np.testing.assert_allclose(np.exp(found["depth"][0, ..., 0]), smooth, rtol=1e-5)
        error = np.sqrt(((smooth - truth) ** 2).mean())
        assert result.numbers["rmse"] == pytest.approx(error, rel=1e-4)
        assert result.macs == (1 + flip) * 6 * 8


@pytest.mark.parametrize(
    ("system", "variables", "source", "message"),
    [
        (Known("normals"), VARIABLES, Frames(SPEC), "source frames: no 'normals' labels"),
        (Known(), VARIABLES, Frames(SPEC, ((6, 8), (8, 6))), "different sizes in one batch, .* to 1"),
        (
            Known(),
            {"params": {"gain": np.float32(np.nan)}},
            Frames(SPEC),
            "depth: scores that are not finite",
        ),
        (Known(), VARIABLES, Frames(SPEC, ((1, 1),)), None),
    ],
)
def test_mistakes(system, variables, source, message):
    settings = replace(SETTINGS, batch_size=2, pictures=0)
    if message is None:
        assert evaluate_system(system, variables, source, settings).images == 1
        return
    with pytest.raises(UserError, match=message):
        evaluate_system(system, variables, source, settings)


def test_settings():
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        EvaluationConfig(batch_size=0)


def test_a_difference_that_is_not_a_number_stays():
    found = Differences({"depth": None})
    for gap in (1.0, np.nan, 2.0):
        found.add({"depth": np.float32(gap)})
    other = Differences({"depth": 3.0})
    assert np.isnan(found.finish([found.sums(), other.sums()])["depth"])


class Namesakes:
    """Two elements of one name, as a joint source of two folders has them: a column and a row."""

    spec = SourceSpec("both", {"image": IMAGE, "boundaries": BOUNDARIES, "index": INDEX})

    def __len__(self) -> int:
        return 2

    def name(self, index: int) -> str:
        return "folder/0001"

    def __getitem__(self, index: int):
        lines = np.zeros((24, 24), np.float32)
        lines[(slice(None), 12) if index == 0 else (12, slice(None))] = 1.0
        image = np.zeros((24, 24, 3), np.uint8)
        return {"image": image, "boundaries": lines, "index": np.int64(index)}


def test_elements_of_one_name_have_their_own_labels():
    task, source = tasks.build("boundaries", {}, ""), Namesakes()
    settings = EvaluationConfig(thresholds=3, workers=0, nms=False)
    scorer = BoundaryScorer(task, source, 2, settings)
    for index in range(2):
        lines = source[index]["boundaries"][None]
        scorer.add(lines, {"boundaries": lines, "valid": np.ones(1, bool)})
    assert scorer.finish([scorer.sums()]).numbers["ods"] == pytest.approx(1.0)
