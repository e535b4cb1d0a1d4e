from __future__ import annotations

import numpy as np
import pytest

from dynpix_jax.core.errors import UserError
from dynpix_jax.tasks import TASKS
from dynpix_jax.tasks.depth import Depth
from dynpix_jax.tasks.skeletons import MPII
from dynpix_jax.visualization.task_pictures import (
    AlbedoPictures,
    BoundaryPictures,
    ClassPictures,
    DepthPictures,
    NormalPictures,
    PosePictures,
    SaliencyPictures,
    class_colours,
    depth_range,
    task_pictures,
)

PHOTO = np.full((2, 3, 3), 100, np.uint8)


def test_every_task_is_drawn():
    for task in TASKS:
        assert task_pictures(TASKS.resolve(task, "")).caption

    class Flow(Depth):
        name = "flow"
        pictures = "arows"

    with pytest.raises(UserError, match="task flow: pictures: there is no kind of pictures 'arows'"):
        task_pictures(Flow)


def test_classes_have_the_colours_of_the_palette():
    pictures = ClassPictures(("a", "b", "c"), ((1, 2, 3), (4, 5, 6)))
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
    pictures = DepthPictures()
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
    drawn = NormalPictures().picture(normals, normals)
    np.testing.assert_array_equal(drawn, [[[128, 128, 255], [128, 255, 128], [255, 128, 128], [0, 0, 0]]])


def test_boundaries_ignored_pixels_are_no_boundary():
    labels = np.array([[1.0, 0.0, -1.0]])
    np.testing.assert_array_equal(BoundaryPictures().picture(labels, labels), [[255, 0, 0]])


def test_saliency_is_grey_and_darkens_the_rest():
    pictures = SaliencyPictures()
    np.testing.assert_array_equal(pictures.picture(np.array([[0, 1, 255]]), np.zeros(1)), [[0, 255, 0]])
    files = pictures.files(PHOTO, np.array([[0.0, 0.5, 1.0]] * 2, np.float32))
    np.testing.assert_array_equal(files["map"][0], [0, 128, 255])
    np.testing.assert_array_equal(files["overlay"][0, :, 0], [25, 62, 100])


def test_albedo_is_its_colours():
    albedo = np.array([[[0.2, 1.0, 0.0], [-1.0, -1.0, -1.0]]], np.float32)
    np.testing.assert_array_equal(AlbedoPictures().files(PHOTO, albedo)["map"], [[[51, 255, 0], [0, 0, 0]]])


def test_joints_are_drawn_on_the_photo_in_the_colours_of_their_sides():
    names = MPII.joints
    pictures = PosePictures(names)
    assert dict(pictures.legend)["left knee"] == dict(pictures.legend)["left wrist"]
    assert len({colour for _, colour in pictures.legend}) == 3
    photo = np.full((60, 90, 3), 100, np.uint8)
    joints = np.zeros((16, 3), np.float32)
    joints[10], joints[11], joints[9] = (20, 30, 2), (50, 30, 1), (70, 10, 0.05)  # the head top is not seen
    drawn = pictures.picture(joints, joints, photo)
    assert (photo == 100).all()
    right = dict(pictures.legend)["right wrist"]
    for x in (20, 35, 50):
        assert np.abs(drawn[30, x].astype(int) - right).max() < 40  # lines are antialiased
    assert (drawn[:20] == 100).all()
    assert (drawn[:, 60:] == 100).all()
    with pytest.raises(ValueError, match="on a photo"):
        pictures.picture(joints, joints)
    with pytest.raises(ValueError, match="known skeleton"):
        pictures.picture(joints[:5], joints, photo)
    np.testing.assert_array_equal(pictures.files(photo, joints)["overlay"], drawn)
    assert pictures.numbers(joints)["right elbow"] == [50, 30, 1]


def test_joints_and_maps_of_resized_and_cropped_photos():
    """The outer corner of a photo stays its corner; a crop's matrix is undone."""
    pictures = PosePictures()
    joints = np.zeros((16, 3), np.float32)
    joints[0], joints[1] = (-0.5, -0.5, 1), (9.5, 4.5, 1)
    resized = pictures.resized(joints, (5, 10), (20, 30))
    np.testing.assert_allclose(resized[:2], [[-0.5, -0.5, 1], [29.5, 19.5, 1]], rtol=1e-6)
    matrix = np.array([[2.0, 0.0, -20.0], [0.0, 2.0, -10.0]])  # a crop of twice the size from (10, 5)
    back = pictures.uncropped(joints, matrix, (50, 50))
    np.testing.assert_allclose(back[1], [14.75, 7.25, 1])
    depth = DepthPictures()
    whole = depth.uncropped(np.full((8, 8), 3.0, np.float32), matrix, (12, 20))
    assert whole.shape == (12, 20)
    assert (whole[5:9, 10:14] == 3).all()
    assert (whole[:4] == 0).all()
    assert depth.resized(np.ones((4, 6), np.float32), (4, 6), (8, 12)).shape == (8, 12)
    labels = np.array([[1, 5]], np.int32)
    shifted = ClassPictures().uncropped(labels, np.array([[1.0, 0, -2], [0, 1.0, 0]]), (1, 4))
    np.testing.assert_array_equal(shifted, [[0, 0, 1, 5]])
    assert set(np.unique(ClassPictures().resized(labels, (1, 2), (4, 9)))) == {1, 5}
