"""Scenes: labels that agree with each other, checked by independent geometry."""

from __future__ import annotations

import numpy as np
import pytest

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.source import Element, Source
from dynpix_jax.data.figure import JOINT_PAIRS, JOINTS, PARTS
from dynpix_jax.data.scene_layout import CLASSES
from dynpix_jax.data.scenes import LABELS, Scenes, ScenesConfig
from dynpix_jax.data.sources import build_source

SIZE = (128, 160)
FOCAL = 0.85 * SIZE[1]


@pytest.fixture(scope="module")
def scenes() -> list[Element]:
    source = Scenes(ScenesConfig(fields=tuple(LABELS)), "train")
    return [source[i] for i in range(12)]


def points(depth: np.ndarray) -> np.ndarray:
    """Camera coordinates of all pixels, from depth alone."""
    y, x = np.indices(depth.shape)
    return np.stack([(x - 79.5) / FOCAL * depth, (y - 63.5) / FOCAL * depth, depth], axis=-1).astype(
        np.float64
    )


def changes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a pixel differs from the one below, and from the one to the right."""
    return values[1:] != values[:-1], values[:, 1:] != values[:, :-1]


def test_deterministic_and_different(scenes: list[Element]) -> None:
    source = Scenes(ScenesConfig(fields=tuple(LABELS)), "train")
    for name, value in source[3].items():
        np.testing.assert_array_equal(value, scenes[3][name], err_msg=name)
    for other in (source[4], Scenes(ScenesConfig(), "val")[3], Scenes(ScenesConfig(seed=1), "train")[3]):
        assert not np.array_equal(other["image"], scenes[3]["image"])
    # Fewer labels, same scene.
    few = Scenes(ScenesConfig(fields=("depth",)), "train")[3]
    assert set(few) == {"image", "depth", "index"}
    np.testing.assert_array_equal(few["image"], scenes[3]["image"])


def test_elements_are_as_declared(scenes: list[Element]) -> None:
    source = build_source({"name": "scenes", "fields": tuple(LABELS)}, "train")
    assert isinstance(source, Source)
    assert source.name(7) == "train_00007"
    for element in scenes:
        assert set(element) == set(source.spec.fields)
        for name, field in source.spec.fields.items():
            value = element[name]
            assert value.dtype == field.dtype, name
            assert value.ndim == len(field.shape), name
            if field.range is not None:
                assert value.min() >= field.range[0] - 1e-5, name
                assert value.max() <= field.range[1] + 1e-5, name
            if field.classes and field.kind == "label":
                assert value.max() < len(field.classes), name
    seen = np.unique([np.bincount(e["segmentation"].ravel(), minlength=8) > 0 for e in scenes], axis=0).any(
        axis=0
    )
    assert seen.all(), [name for name, there in zip(CLASSES, seen, strict=True) if not there]


def test_normals_agree_with_depth(scenes: list[Element]) -> None:
    """Inside of flat surfaces, the cross product of differences of the points is the normal, exactly."""
    for element in scenes:
        place = points(element["depth"])
        normal = np.cross(place[2:, 1:-1] - place[:-2, 1:-1], place[1:-1, 2:] - place[1:-1, :-2])
        normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
        given = element["normals"]
        assert np.abs(np.linalg.norm(given, axis=-1) - 1).max() < 1e-5
        # Visible surfaces face the camera.
        assert (np.sum(given * place, axis=-1) < 1e-5).all()
        same = np.ones((126, 158), bool)
        for dy in (0, 1, 2):
            for dx in (0, 1, 2):
                shifted = np.s_[dy : dy + 126, dx : dx + 158]
                same &= element["instances"][shifted] == element["instances"][1:-1, 1:-1]
                same &= np.abs(given[shifted] - given[1:-1, 1:-1]).max(axis=-1) < 1e-6
        assert same.mean() > 0.3
        assert np.abs(normal - given[1:-1, 1:-1])[same].max() < 2e-3
        curved = element["segmentation"] == CLASSES.index("ball")
        both = curved[1:-1, 1:-1] & (np.abs(normal - given[1:-1, 1:-1]).max(axis=-1) < 0.2)
        if curved.sum() > 200:
            assert both.sum() > 0.5 * curved.sum()


def test_boundaries_are_where_labels_change(scenes: list[Element]) -> None:
    for element in scenes:
        marked = element["boundaries"] == 1
        below, right = np.zeros((127, 160), bool), np.zeros((128, 159), bool)
        for name in ("segmentation", "instances", "parts"):
            vertical, horizontal = changes(element[name])
            below |= vertical
            right |= horizontal
        # Of two pixels with different labels, one is on the boundary, or both where lines meet.
        assert (marked[1:] | marked[:-1])[below].all()
        assert (marked[:, 1:] | marked[:, :-1])[right].all()
        # No boundary without a change: of labels, or of the normal (creases), or of the limb of a person.
        crease_below = np.abs(np.diff(element["normals"], axis=0)).max(axis=-1) > 1e-3
        crease_right = np.abs(np.diff(element["normals"], axis=1)).max(axis=-1) > 1e-3
        near = np.zeros(SIZE, bool)
        for vertical in (below | crease_below,):
            near[1:] |= vertical
            near[:-1] |= vertical
        for horizontal in (right | crease_right,):
            near[:, 1:] |= horizontal
            near[:, :-1] |= horizontal
        assert near[marked].all()
        # One pixel wide: few pixels of lines are covered by full 2 x 2 blocks.
        block = marked[1:, 1:] & marked[1:, :-1] & marked[:-1, 1:] & marked[:-1, :-1]
        assert block.sum() < 0.1 * marked.sum()
        assert 0.02 < marked.mean() < 0.2


def test_creases_of_the_room_are_boundaries() -> None:
    """Where two walls meet, the normal jumps although the class stays."""
    found = 0
    for i in range(12):
        element = Scenes(ScenesConfig(fields=("segmentation", "normals", "boundaries")), "train")[i]
        wall = element["segmentation"] == CLASSES.index("wall")
        both = wall[:, 1:] & wall[:, :-1]
        crease = both & (np.abs(np.diff(element["normals"], axis=1)).max(axis=-1) > 0.5)
        marked = element["boundaries"] == 1
        assert (marked[:, 1:] | marked[:, :-1])[crease].all()
        found += crease.sum()
    assert found > 50


def test_visible_joints_lie_in_their_parts(scenes: list[Element]) -> None:
    allowed = {
        "ankle": {"lower leg"},
        "knee": {"upper leg", "lower leg"},
        "hip": {"torso", "upper leg"},
        "pelvis": {"torso", "upper leg"},
        "thorax": {"torso", "head"},
        "upper neck": {"head", "torso"},
        "head top": {"head"},
        "wrist": {"lower arm"},
        "elbow": {"upper arm", "lower arm"},
        "shoulder": {"torso", "upper arm"},
    }
    right = wrong = 0
    for element in scenes:
        person = element["segmentation"] == CLASSES.index("person")
        np.testing.assert_array_equal(person, element["parts"] > 0)
        for name, (x, y, visible) in zip(JOINTS, element["keypoints"], strict=True):
            assert visible in (0, 1, 2)
            if visible == 2:
                part = PARTS[element["parts"][round(float(y)), round(float(x))]]
                kind = name.removeprefix("left ").removeprefix("right ")
                right, wrong = right + (part in allowed[kind]), wrong + (part not in allowed[kind])
    # A limb close before another may show instead of it.
    assert right > 100
    assert wrong < 0.05 * right


def test_joints_come_in_pairs() -> None:
    for left, right in JOINT_PAIRS:
        assert {JOINTS[left].split()[0], JOINTS[right].split()[0]} == {"left", "right"}
        assert JOINTS[left].split()[1] == JOINTS[right].split()[1]
    assert len(set(JOINTS)) == 16


def test_salient_is_one_object(scenes: list[Element]) -> None:
    for element in scenes:
        salient = element["saliency"] == 1
        assert salient.any()
        instances = np.unique(element["instances"][salient])
        assert len(instances) == 1
        assert (element["instances"] == instances[0]).sum() == salient.sum()
        assert (element["segmentation"][salient] >= CLASSES.index("box")).all()


def test_albedo_is_free_of_light(scenes: list[Element]) -> None:
    """The ceiling is nearly always plain: one colour in albedo, many in the image."""
    plain = 0
    for element in scenes:
        ceiling = element["segmentation"] == CLASSES.index("ceiling")
        if ceiling.sum() > 100 and np.ptp(element["albedo"][ceiling], axis=0).max() < 1e-6:
            plain += 1
            assert np.ptp(element["image"][ceiling].astype(int), axis=0).max() > 5
    assert plain > 0


def test_other_sizes_and_mistakes() -> None:
    element = Scenes(ScenesConfig(size=(33, 47), length=2), "test")[1]
    assert element["image"].shape == (33, 47, 3)
    with pytest.raises(IndexError):
        Scenes(ScenesConfig(length=2), "test")[2]
    with pytest.raises(ValueError, match=r"^fields: .*did you mean 'normals'"):
        Scenes(ScenesConfig(fields=("normal",)), "train")
    with pytest.raises(UserError, match="did you mean 'train'"):
        Scenes(ScenesConfig(), "trainn")
    with pytest.raises(ValueError, match=r"^length: 0"):
        Scenes(ScenesConfig(length=0), "train")


def test_head_size_and_box_fit_the_figure(scenes: list[Element]) -> None:
    """The head's widest row is as wide as its ball, and the head size 0.6 of the diagonal around that."""
    heads = boxes = 0
    for element in scenes:
        head = element["parts"] == PARTS.index("head")
        if head.any():
            widest = head.sum(1).max()
            assert widest < element["head_size"] / (0.6 * np.sqrt(2)) + 1.5
            heads += widest > element["head_size"] / (0.6 * np.sqrt(2)) - 1.5
        joints = element["keypoints"]
        if joints[:, 2].all():
            low, high = joints[:, :2].min(0), joints[:, :2].max(0)
            np.testing.assert_allclose(element["box"][:2], (low + high) / 2, atol=1e-3)
            np.testing.assert_allclose(element["box"][2:], 1.25 * (high - low).max(), rtol=1e-5)
            boxes += 1
    assert heads >= 6  # the others are partly hidden
    assert boxes >= 6


def test_crops_show_the_figure() -> None:
    """Every joint is in the crop, at the place that the box says."""
    fields = ("keypoints", "head_size", "box")
    whole, crops = (
        Scenes(ScenesConfig(fields=fields, length=4, crop=crop), "val") for crop in (None, (64, 48))
    )
    for index in range(4):
        element, crop = whole[index], crops[index]
        scale = 48 / element["box"][2]
        assert crop["image"].shape == (64, 48, 3)
        labelled = element["keypoints"][:, 2] > 0
        expected = (element["keypoints"][:, :2] - element["box"][:2]) * scale + [24, 32]
        np.testing.assert_allclose(crop["keypoints"][labelled, :2], expected[labelled], atol=1e-3)
        np.testing.assert_array_equal(crop["keypoints"][:, 2], element["keypoints"][:, 2])
        assert crop["head_size"] == pytest.approx(element["head_size"] * scale, rel=1e-5)
    with pytest.raises(ValueError, match=r"^crop: .*the field 'box'"):
        ScenesConfig(crop=(64, 64))
