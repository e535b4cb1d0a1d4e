"""Heatmaps, their loss and decoding, and PCKh: against loops, values worked out by hand, and mirrors."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from dynpix_jax.core.errors import UserError
from dynpix_jax.data import figure
from dynpix_jax.tasks.pose import Pose, find_joints, heatmap_loss, heatmaps, pck_counts, pck_scores
from dynpix_jax.tasks.skeletons import COCO, MPII, SKELETONS


def heatmap_by_hand(x: float, y: float, size: tuple[int, int], sigma: float) -> np.ndarray:
    """Patches of 13 cells (at sigma 2) around int(x / 4 + .5), cut at the borders."""
    height, width = size
    out = np.zeros(size)
    column, row = int(x / 4 + 0.5), int(y / 4 + 0.5)
    reach = int(3 * sigma)
    for i in range(row - reach, row + reach + 1):
        for j in range(column - reach, column + reach + 1):
            if 0 <= i < height and 0 <= j < width:
                out[i, j] = np.exp(-((i - row) ** 2 + (j - column) ** 2) / (2 * sigma**2))
    return out


def test_heatmaps_are_patches_around_the_nearest_cell():
    joints = [(9.9, 22.0, 2), (0.0, 0.0, 1), (61.9, 35.0, 2), (-20.0, 10.0, 2), (30.0, 30.0, 0)]
    # Patches wholly outside: to the left, and below.
    joints += [(-34.0, 10.0, 2), (10.0, 40 + 24, 2)]
    size = (10, 16)
    maps, weights = jax.jit(lambda k: heatmaps(k, size, stride=4, sigma=2.0))(np.float32([joints]))
    assert maps.shape == (1, *size, len(joints))
    for index, (x, y, _) in enumerate(joints):
        expected = heatmap_by_hand(x, y, size, 2.0)
        np.testing.assert_allclose(maps[0, ..., index], expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(weights, [[1, 1, 1, 1, 0, 0, 0]])
    # 22 / 4 + .5 is 6: halves go up.
    assert maps[0, 6, 2, 0] == 1


def test_loss_is_half_the_mean_square_of_visible_joints():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 6, 8, 4)).astype(np.float32)
    keypoints = np.concatenate([rng.uniform(0, 24, (3, 4, 2)), rng.integers(0, 3, (3, 4, 1))], 2)
    valid = np.array([True, True, False])
    expected = 0.0
    for image in range(2):
        for joint, (x, y, visible) in enumerate(keypoints[image]):
            if visible:
                error = logits[image, ..., joint] - heatmap_by_hand(x, y, (6, 8), 1.0)
                expected += 0.5 * (error**2).mean() / (2 * 4)
    loss = jax.jit(jax.value_and_grad(lambda x, v: heatmap_loss(x, keypoints, v, stride=4, sigma=1.0)))
    value, gradient = loss(logits, valid)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    assert not np.asarray(gradient)[2].any()
    assert not np.asarray(gradient)[:2][
        np.broadcast_to(keypoints[:2, None, None, :, 2] == 0, (2, 6, 8, 4))
    ].any()
    nothing, gradient = loss(logits, np.zeros(3, bool))
    assert float(nothing) == 0
    assert not np.asarray(gradient).any()


def test_joints_are_found_a_quarter_towards_the_greater_neighbour():
    maps = np.zeros((1, 8, 10, 5), np.float32)
    maps[0, 3, 5, 0], maps[0, 3, 6, 0], maps[0, 2, 5, 0] = 1.0, 0.5, 0.2  # right and up
    maps[0, 4, 4, 1], maps[0, 5, 4, 1] = 0.9, 0.1  # x even, y down
    maps[0, 4, 1, 2], maps[0, 4, 2, 2] = 0.8, 0.7  # 1 is not above 1: no offset at all
    maps[0, 4, 9, 3], maps[0, 3, 9, 3] = 0.7, 0.6  # on the border
    maps[0, 6, 8, 4], maps[0, 7, 8, 4], maps[0, 6, 9, 4] = 0.6, 0.5, 0.4  # next to it: 8 < 9, 6 < 7
    found = jax.jit(lambda x: find_joints(x, stride=4))(maps)
    expected = [
        [5.25 * 4, 2.75 * 4, 1.0],
        [4 * 4, 4.25 * 4, 0.9],
        [4, 16, 0.8],
        [36, 16, 0.7],
        [8.25 * 4, 6.25 * 4, 0.6],
    ]
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)


def test_maps_without_a_positive_value_have_their_joint_at_the_origin():
    """As get_max_preds of HRNet's code decodes: the peak of 0 or less is reported as it is."""
    maps = np.full((1, 8, 10, 3), -1.0, np.float32)
    maps[0, 4, 5, 0], maps[0, 4, 5, 1], maps[0, 4, 5, 2] = -0.1, 0.0, 1e-6
    found = np.asarray(find_joints(maps, stride=4))
    np.testing.assert_allclose(found[0, :, 2], [-0.1, 0.0, 1e-6])
    np.testing.assert_array_equal(found[0, :2, :2], np.zeros((2, 2)))
    np.testing.assert_array_equal(found[0, 2, :2], [20, 16])


@pytest.mark.parametrize(("sigma", "reach"), [(2.0, 6), (1.0, 3)])
def test_weights_are_one_where_hrnets_code_has_one(sigma, reach):
    """In HRNet: ul = mu - reach and br = mu + reach + 1; the weight is 0 if ul >= size or br < 0."""
    cells = np.arange(-12, 22)
    joints = np.stack([4.0 * cells, np.full(len(cells), 8.0), np.full(len(cells), 2.0)], -1)
    maps, weights = heatmaps(joints[None].astype(np.float32), (5, 10), stride=4, sigma=sigma)
    middles = [int(cell + 0.5) for cell in cells]
    expected = [not (mu - reach >= 10 or mu + reach + 1 < 0) for mu in middles]
    np.testing.assert_array_equal(weights[0], expected)
    last = middles.index(-reach - 1)
    assert weights[0, last] == 1
    assert not np.asarray(maps)[..., last].any()


def test_targets_are_found_where_the_joints_are():
    """Within half a cell: what rounding to cells leaves."""
    task = Pose(sigma=1.5)
    rng = np.random.default_rng(1)
    truth = np.concatenate([rng.uniform(8, 54, (2, 16, 2)), np.full((2, 16, 1), 2)], 2).astype(np.float32)
    found = np.asarray(task.decode(heatmaps(truth, task.logits_size((64, 64)), stride=4, sigma=1.5)[0]))
    assert np.abs(found[..., :2] - truth[..., :2]).max() <= 2.0 + 1e-4
    np.testing.assert_allclose(found[..., 2], 1)


def test_mirror_finds_the_joints_of_the_image_itself():
    """A network that predicts the targets of what it sees says the same of an image and its mirror image."""
    task = Pose()
    rng = np.random.default_rng(2)
    width = 64
    # On pixels of cells, and all the patches inside: the two heatmaps are then the same but for the border.
    truth = np.concatenate([4.0 * rng.integers(7, 9, (1, 16, 2)), np.full((1, 16, 1), 2)], 2)
    seen = truth.copy()
    seen[..., 0] = width - 1 - truth[..., 0]
    for left, right in MPII.pairs:
        seen[:, [left, right]] = seen[:, [right, left]]
    maps, mirrored = (np.asarray(heatmaps(k, (16, 16), stride=4, sigma=2.0)[0]) for k in (truth, seen))
    np.testing.assert_allclose(task.mirror(mirrored[:, :, ::-1])[:, :, 1:], maps[:, :, 1:], atol=1e-6)
    # Without the shift all is a cell too far to the left.
    plain = Pose(shift_flipped=False).mirror(mirrored[:, :, ::-1])
    np.testing.assert_allclose(plain[:, :, :-1], maps[:, :, 1:], atol=1e-6)


def test_pckh_by_hand():
    """A head box of a diagonal of 100 px makes a head size of 60 and a threshold of 30 px."""
    truth = np.zeros((3, 16, 3))
    truth[..., 2] = 2
    truth[1, :8, 2] = 0  # not labelled
    prediction = np.zeros((3, 16, 3))
    prediction[0, 9, 0] = 30.0  # just right
    prediction[0, 12, 1] = 30.1  # just too far
    prediction[1, 0, 0] = 999.0  # not labelled: does not count
    prediction[:2, 6, 0] = 999.0  # pelvis: in no score
    prediction[2, :, 0] = 999.0  # no head size: does not count
    size = np.array([0.6 * 100, 0.6 * 100, 0.0])
    (hits,), joints = pck_counts(prediction, truth, size, (0.5,))
    np.testing.assert_array_equal(joints, [1] * 8 + [2] * 8)
    scores = pck_scores(hits, joints, MPII)
    # 6 + 8 * 2 joints count (6 and 7 excluded), all but one are found.
    assert scores["mean"] == pytest.approx(21 / 22)
    assert scores["shoulder"] == pytest.approx((1 / 2 + 1) / 2)
    assert all(scores[name] == 1 for name in ("head", "elbow", "wrist", "hip", "knee", "ankle"))

    task = Pose()
    valid = np.array([True, True, True])
    batch = {"keypoints": truth.astype(np.float32), "head_size": size.astype(np.float32), "valid": valid}
    measure = jax.jit(task.measure)
    state = measure(prediction.astype(np.float32), batch)
    merged = task.merge(state, measure(prediction.astype(np.float32), batch | {"valid": np.zeros(3, bool)}))
    for one in (state, merged):
        found = task.compute(one)
        assert list(found) == [score.name for score in task.scores]
        assert found["pckh"] == pytest.approx(21 / 22)
        assert found["pckh_10"] == pytest.approx(20 / 22)  # 30 px are too far as well
    # What HRNet's code calls "Mean@0.1" has a name of its own.
    (released,) = (score for score in task.scores if "Mean@0.1" in score.meaning)
    assert (released.name, released.label) == ("pckh_11", "PCKh@0.11")
    for one in (state, merged):
        found = task.compute(one)
        assert found["shoulder"] == pytest.approx(0.75)
    assert task.per_class(state)["pckh"][12] == pytest.approx(0.5)
    nobody = measure(prediction.astype(np.float32), batch | {"valid": np.zeros(3, bool)})
    assert task.per_class(nobody)["pckh"] == [None] * 16
    with pytest.raises(UserError, match="no joint of a known head size"):
        task.compute(nobody)


def test_skeletons():
    assert (MPII.joints, MPII.pairs) == (figure.JOINTS, figure.JOINT_PAIRS)
    assert (Pose().channels, Pose(skeleton="coco").channels) == (16, 17)
    for skeleton in SKELETONS.values():
        names = [name.replace("left", "right") for name in skeleton.joints]
        assert [names[joint] for joint in skeleton.mirrored] == names
        swapped = {joint for pair in skeleton.pairs for joint in pair}
        assert {skeleton.joints[joint].split()[0] for joint in swapped} == {"left", "right"}
        assert not any(
            name.startswith(("left", "right")) for i, name in enumerate(skeleton.joints) if i not in swapped
        )
        # One piece, each bone once.
        reached = {skeleton.bones[0][0]}
        for _ in skeleton.bones:
            reached |= {joint for bone in skeleton.bones if reached & set(bone) for joint in bone}
        assert len(reached) == len(skeleton.joints)
    assert COCO.joints[COCO.mirrored[5]] == "right shoulder"


@pytest.mark.parametrize(
    ("options", "message"),
    [({"sigma": 0.0}, "sigma: 0"), ({"cell": 0}, "cell: 0"), ({"thresholds": ()}, "thresholds: ")],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        Pose(**options)
