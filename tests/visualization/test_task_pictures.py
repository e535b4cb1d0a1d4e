from __future__ import annotations

import numpy as np
import pytest

from dynpix_jax.tasks import TASKS
from dynpix_jax.visualization.task_pictures import class_colours, depth_range, task_pictures

PHOTO = np.full((2, 3, 3), 100, np.uint8)


def test_every_task_is_drawn():
    for task in TASKS:
        assert task_pictures(task).caption
    with pytest.raises(KeyError):
        task_pictures("dept")


def test_classes_have_the_colours_of_the_palette():
    pictures = task_pictures("segmentation", ("a", "b", "c"), ((1, 2, 3), (4, 5, 6)))
    labels = np.array([[0, 1, 2], [255, 1, 3]], np.int32)
    drawn = pictures.picture(labels, labels)
    assert drawn.dtype == np.uint8
    assert tuple(drawn[0, 0]) == (1, 2, 3)
    assert tuple(drawn[0, 1]) == tuple(drawn[1, 1]) == (4, 5, 6)
    # The third class has no colour of its own in the palette: it gets one. What is no class is black.
    assert tuple(drawn[0, 2]) == class_colours(3)[2] == pictures.legend[2][1]
    assert not drawn[1, [0, 2]].any()
    assert [name for name, _ in pictures.legend] == ["a", "b", "c"]
    files = pictures.files(PHOTO, labels)
    np.testing.assert_array_equal(files["map"], labels)
    assert tuple(files["overlay"][0, 1]) == (42, 43, 44)  # 0.6 x (4, 5, 6) + 0.4 x 100


def test_colours_of_classes_differ():
    colours = np.array(class_colours(40), float)
    distance = np.abs(colours[:, None] - colours[None]).sum(-1) + 999 * np.eye(40)
    assert distance.min() >= 50


def test_depth_is_red_near_and_blue_far_in_the_range_of_the_reference():
    pictures = task_pictures("depth")
    truth = np.linspace(1.0, 9.0, 100).reshape(10, 10)
    near, far = depth_range(truth)
    assert (near, far) == pytest.approx((1.08, 8.92))
    assert pictures.note(truth) == "1.1 m (red) to 8.9 m (blue)"
    drawn = pictures.picture(np.array([[0.1, near, far, 50.0, 0.0, np.nan]]), truth).astype(int)
    np.testing.assert_array_equal(drawn[0, 0], drawn[0, 1])
    np.testing.assert_array_equal(drawn[0, 2], drawn[0, 3])
    assert drawn[0, 0, 0] > drawn[0, 0, 2]
    assert drawn[0, 3, 2] > drawn[0, 3, 0]
    assert not drawn[0, 4:].any()
    files = pictures.files(PHOTO, np.array([[0.5, 1.2344, 70.0], [1.0, 1.0, 1.0]]))
    assert files["map"].dtype == np.uint16
    np.testing.assert_array_equal(files["map"][0], [500, 1234, 65535])
    assert depth_range(np.zeros((2, 2))) == (1.0, 10.0)
    assert depth_range(np.ones((2, 2))) == pytest.approx((1.0, 1.01))


def test_normals_are_drawn_the_usual_way_round():
    """A wall that faces the camera is bluish, a floor green, what leans right red; invalid is black."""
    normals = np.array([[[0, 0, -1], [0, -1, 0], [2, 0, 0], [0, 0, 0]]], np.float32)
    drawn = task_pictures("normals").picture(normals, normals)
    np.testing.assert_array_equal(drawn, [[[128, 128, 255], [128, 255, 128], [255, 128, 128], [0, 0, 0]]])


def test_boundaries_ignored_pixels_are_no_boundary():
    labels = np.array([[1.0, 0.0, -1.0]])
    np.testing.assert_array_equal(task_pictures("boundaries").picture(labels, labels), [[255, 0, 0]])


def test_saliency_is_grey_and_darkens_the_rest():
    pictures = task_pictures("saliency")
    np.testing.assert_array_equal(pictures.picture(np.array([[0, 1, 255]]), np.zeros(1)), [[0, 255, 0]])
    files = pictures.files(PHOTO, np.array([[0.0, 0.5, 1.0]] * 2, np.float32))
    np.testing.assert_array_equal(files["map"][0], [0, 128, 255])
    np.testing.assert_array_equal(files["overlay"][0, :, 0], [25, 62, 100])


def test_albedo_is_its_colours():
    albedo = np.array([[[0.2, 1.0, 0.0], [-1.0, -1.0, -1.0]]], np.float32)
    np.testing.assert_array_equal(
        task_pictures("albedo").files(PHOTO, albedo)["map"], [[[51, 255, 0], [0, 0, 0]]]
    )
