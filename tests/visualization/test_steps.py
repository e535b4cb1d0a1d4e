"""Choices and steps: their pictures, and the report with them."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
from PIL import Image

from dynpix_jax import tasks
from dynpix_jax.visualization.example import Example, RowPrediction
from dynpix_jax.visualization.report import Budget, report_html
from dynpix_jax.visualization.steps import change_picture, choice_colours, choice_note, choice_picture
from dynpix_jax.visualization.task_pictures import ClassPictures, DepthPictures

NAMES = ("dilation 1", "dilation 2", "dilation 4")


def test_choices_have_the_colours_of_their_branches():
    choice = np.array([[0, 2], [1, 255]], np.int32)
    picture = choice_picture(choice, 3)
    colours = choice_colours(3)
    assert [tuple(map(int, pixel)) for pixel in picture.reshape(-1, 3)] == [
        colours[0], colours[2], colours[1], (0, 0, 0)
    ]  # fmt: skip
    assert colours[0][2] > colours[0][0]  # from blue
    assert colours[2][0] > colours[2][2]  # to red
    assert choice_note(np.array([[2, 2], [2, 0]]), NAMES) == "dilation 4 75%, dilation 1 25%"


def test_changes_of_classes_and_of_depth():
    photo = np.zeros((2, 2, 3), np.uint8)
    classes = ClassPictures(("a", "b"))
    before, after = np.array([[0, 1], [1, 1]]), np.array([[0, 1], [0, 1]])
    changed, note = change_picture(before, after, classes, before, photo)
    np.testing.assert_array_equal(changed, [[0, 0], [255, 0]])
    assert note == "25.0% of the pixels"
    depth = DepthPictures()
    before = np.array([[1.0, 2.0], [4.0, 8.0]])
    changed, _ = change_picture(before, before * [[1, 1.1], [1, 2]], depth, before, photo)
    assert changed[0, 0] == changed[1, 0] == 0
    assert changed[0, 1] > 0


def test_report_of_a_network_that_loops():
    """Two steps of a prediction, what pixels chose in both of them, and what they should have."""
    task = tasks.build("segmentation", {"classes": 2}, "")
    numbers = {"miou": 0.25, "pixel_accuracy": 0.5, "mean_accuracy": 0.5}
    row = Budget("loop", 1.0, None, 2e9, 2e9, numbers, {})
    first, last = np.array([[0, 1, 1]], np.int32), np.array([[0, 0, 1]], np.int32)
    maps = {"loop_0": np.array([[0, 1, 2]]), "loop_1": np.array([[2, 2, 2]])}
    prediction = RowPrediction("loop", {"segmentation": last}, {}, {}, [{"segmentation": first}], maps)
    photo, labels = np.zeros((1, 3, 3), np.uint8), {"segmentation": last}
    example = Example("x", photo, labels, [prediction], NAMES, np.array([[0, 255, 2]]))
    pictures = {"segmentation": ClassPictures(("a", "c"))}
    text = report_html("t", {}, {"segmentation": task}, [row], [example], pictures)
    found = re.findall(
        r'src="data:image/png;base64,([^"]+)"><figcaption><b>([^<]*)</b>(?: <small>([^<]*))?', text
    )
    assert [(title, note) for _, title, note in found[1:]] == [
        ("Photo", ""),
        ("Ground truth", ""),
        ("Choices by the labels", "dilation 1 33%, dilation 4 33%"),
        ("Prediction", ""),
        ("Step 0", ""),
        ("Step 1", ""),
        ("Changed by step 1", "33.3% of the pixels"),
        ("loop_0", "dilation 1 33%, dilation 2 33%, dilation 4 33%"),
        ("loop_1", "dilation 4 100%"),
    ]
    with Image.open(io.BytesIO(base64.b64decode(found[7][0]))) as changed:
        np.testing.assert_array_equal(np.asarray(changed), [[0, 255, 0]])
    for name, colour in zip(NAMES, choice_colours(3), strict=True):
        assert f'<i style="background: rgb{colour}"></i>{name}</span>' in text
