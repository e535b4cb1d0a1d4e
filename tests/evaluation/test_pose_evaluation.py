"""Evaluation and prediction of poses by a system whose heatmaps are what the image shows."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dynpix_jax import tasks
from dynpix_jax.core.augmentation import GeometryRanges
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.routing import Routing
from dynpix_jax.core.settings import EvaluationConfig, InferenceConfig
from dynpix_jax.core.source import BOX, HEAD_SIZE, IMAGE, INDEX, FieldSpec, SourceSpec
from dynpix_jax.core.system import LossAux, Outputs, System
from dynpix_jax.evaluation.evaluator import evaluate_system
from dynpix_jax.evaluation.inference import sliding_window
from dynpix_jax.evaluation.runner import Runner
from dynpix_jax.serving.demo import Demo
from dynpix_jax.serving.labelling import label
from dynpix_jax.serving.photos import Photo, around_person
from dynpix_jax.serving.predictor import Predictor
from dynpix_jax.tasks.skeletons import MPII
from dynpix_jax.visualization.pictures import png_bytes

VARIABLES = {"params": {"gain": np.float32(1.0)}}
SIZE = (32, 48)


class Lamps(System):
    """A person is two lamps: right joints are at the one to the left, as of somebody who faces us, left ones
    at the other, middle ones at the brighter one."""

    name = "lamps"

    def __init__(self):
        self.tasks = {"pose": tasks.build("pose", {"thresholds": (0.5, 0.25)}, "")}

    def init(self, key, batch):
        return {"params": {"gain": jnp.ones(())}}

    def apply(self, variables, images, inputs=None, routing=Routing(), *, rngs=None):
        light = images[:, ::4, ::4, :1].astype(jnp.float32) / 255
        same = jnp.einsum("bhwi,io->bhwo", light, jnp.ones((1, 16))) * variables["params"]["gain"]
        sides = {"left": 1.0, "right": -1.0}
        lean = jnp.array([sides.get(name.split()[0], 0.0) for name in MPII.joints])
        heatmaps = same * (1 + lean * jnp.linspace(-0.5, 0.5, light.shape[2])[:, None])
        return Outputs(predictions={"pose": heatmaps}, gates={}, selections={})

    def loss(self, variables, batch, *, rngs, controls):
        return jnp.zeros(()), LossAux({}, {})

    def adapt(self, given, fresh):
        return given


class People:
    """Three people with two lamps each; the joints of the last are 12 px to the right of what shows."""

    def __init__(self):
        keypoints = FieldSpec("keypoints", (16, 3), "float32", classes=MPII.joints, pairs=MPII.pairs)
        fields = {"image": IMAGE, "keypoints": keypoints, "head_size": HEAD_SIZE, "box": BOX, "index": INDEX}
        self.spec = SourceSpec("people", fields)

    def __len__(self) -> int:
        return 3

    def name(self, index: int) -> str:
        return f"person{index}"

    def __getitem__(self, index: int):
        image = np.zeros((*SIZE, 3), np.uint8)
        places = {"right": (8 + 4 * index, 12), "left": (28 + 4 * index, 20)}
        # Three pixels wide, so that the cells of a mirror image, which lie elsewhere, show them as well.
        for (x, y), light in zip(places.values(), (200, 240), strict=True):
            image[y - 1 : y + 2, x - 1 : x + 2, 0] = light
        keypoints = np.full((16, 3), 2, np.float32)
        for joint, name in enumerate(MPII.joints):
            keypoints[joint, :2] = places.get(name.split()[0], places["left"])
        keypoints[:, 0] += 12 * (index == 2)
        head = np.array(20.0, np.float32)
        return {"image": image, "keypoints": keypoints, "head_size": head, "index": np.int64(index)}


@pytest.mark.parametrize("batch_size", [1, 2])
def test_scores_of_known_predictions(batch_size):
    """The last person is wrong by 0.6 head sizes."""
    settings = EvaluationConfig(mode="dense", pictures=1, batch_size=batch_size)
    result = evaluate_system(Lamps(), VARIABLES, People(), settings)
    assert result.numbers["pckh"] == pytest.approx(2 / 3)
    assert result.numbers["pckh_25"] == pytest.approx(2 / 3)
    assert result.numbers["wrist"] == pytest.approx(2 / 3)
    assert result.per_class == {"pckh": [pytest.approx(2 / 3)] * 16}
    _, shown = result.seen[0]
    assert shown["dense"].outputs.predictions["pose"].shape == (1, 8, 12, 16)
    assert result.scores["pose"].details["classes"] == list(MPII.joints)


def test_flip_test_says_the_same():
    """Mirrored, left is right and cells lie elsewhere: both are undone."""
    settings = EvaluationConfig(mode="dense", inference=InferenceConfig(flip=True))
    result = evaluate_system(Lamps(), VARIABLES, People(), settings)
    assert result.numbers["pckh"] == pytest.approx(2 / 3)
    with pytest.raises(UserError, match="pose is not predicted in windows"):
        sliding_window(lambda images: ({}, {}), Lamps().tasks, (8, 8))


def test_predict_crops_people_as_training_does():
    photo = np.full((60, 90, 3), 200, np.uint8)
    shown = Photo(Path("p.png"), "p", photo, photo)
    ranges = GeometryRanges(crop=(64, 64), resampling="linear", outside="black")
    for training, corner in ((None, (124, 116, 104)), (ranges, (0, 0, 0))):
        crop = around_person(shown, (64, 64), None, training).image
        np.testing.assert_array_equal(crop[0, 0], corner)
        np.testing.assert_array_equal(crop[32, 32], (200, 200, 200))


@pytest.mark.parametrize("box", [None, (30.0, 10.0, 40.0, 24.0)])
def test_predict_finds_the_joints_in_the_photo(box, tmp_path: Path):
    """Of the whole photo, or of a box in it, through a crop of another size and back."""
    photo = np.zeros((60, 90, 3), np.uint8)
    right, left = (38, 22), (62, 30)
    for x, y in (right, left):
        photo[y - 2 : y + 3, x - 2 : x + 3, 0] = 250
    shown = Photo(Path("p.png"), "p", photo, photo)
    shown = around_person(shown, (64, 64), box)
    assert shown.image.shape == (64, 64, 3)
    system = Lamps()
    trained = SimpleNamespace(stage="base", step=1, rho=1.0, system=system)
    numbers = label(shown, Runner(system, VARIABLES), trained, "dense", tmp_path)
    assert numbers["size"] == [60, 90]
    assert numbers["computed_size"] == [64, 64]
    assert set(numbers["files"]) == {"overlay"}
    with Image.open(numbers["files"]["overlay"]) as picture:
        assert picture.size == (90, 60)
    for joint, place in (("right wrist", right), ("left wrist", left)):
        # A cell of 4 px is that much in the photo: with the box a quarter more than 40 px on 64.
        cell = 4 * (90 if box is None else 50) / 64
        assert np.abs(np.array(numbers["pose"][joint][:2]) - place).max() <= 0.75 * cell + 1


def test_the_demo_shows_the_network_what_predict_does(tmp_path: Path):
    """A photo as one crop of the size of training, not the photo at its own size."""
    photo = np.zeros((60, 90, 3), np.uint8)
    for x, y in ((38, 22), (62, 30)):
        photo[y - 2 : y + 3, x - 2 : x + 3, 0] = 250
    system, ranges = Lamps(), GeometryRanges(crop=(32, 32), outside="black")
    trained = SimpleNamespace(stage="base", step=1, rho=1.0, system=system, variables=VARIABLES)
    shown = around_person(Photo(Path("p.png"), "p", photo, photo), (32, 32), None, ranges)
    files = label(shown, Runner(system, VARIABLES), trained, "dense", tmp_path)["files"]
    data = SimpleNamespace(
        eval=SimpleNamespace(source=SimpleNamespace(crop=(32, 32))), train=SimpleNamespace(augment=ranges)
    )
    settings = SimpleNamespace(inference=InferenceConfig(), implementation=None)
    run = SimpleNamespace(name="lamps", data=data, evaluation=settings, execution=settings)
    found = Demo(Predictor(run, trained)).label(png_bytes(photo), 0.0)
    assert found["size"] == (60, 90)
    content = base64.b64decode(found["pictures"]["pose"].partition(",")[2])
    with Image.open(files["overlay"]) as expected, Image.open(io.BytesIO(content)) as picture:
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected))
