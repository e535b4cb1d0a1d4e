"""MPII: a tiny folder in the published layout, its crops, and the joint augmentation around people."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from dynpix_jax.core.augmentation import BoxRanges, GeometryRanges
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.sections import unread
from dynpix_jax.core.source import IMAGE, Source, SourceSpec
from dynpix_jax.data.geometry import Geometry, augment
from dynpix_jax.data.loader import make_loader
from dynpix_jax.data.sources import build_source
from tests.data.spec_check import check_source

HEIGHT, WIDTH = 120, 160
JOINTS = np.stack([np.linspace(40, 100, 16), np.linspace(30, 90, 16)], 1)
"""From 1, as in the files."""


def person(image: str = "0123.jpg", **changes: object) -> dict:
    record = {"image": image, "center": [71.0, 61.0], "scale": 0.4}
    record |= {"joints": JOINTS.tolist(), "joints_vis": [1] * 15 + [0]}
    return record | changes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write(tmp_path)


def write(root: Path) -> Path:
    """Two people in one image, one in another that has no centre; pixels hold their coordinates."""
    for folder in ("images", "annot"):
        (root / folder).mkdir(parents=True)
    y, x = np.indices((HEIGHT, WIDTH))
    for name in ("0123.jpg", "0456.jpg"):
        picture = np.stack([0 * x, 2 * y, x], -1).astype(np.uint8)  # OpenCV's order: red is x
        cv2.imwrite(str(root / "images" / name), picture, [cv2.IMWRITE_JPEG_QUALITY, 100])
    people = [person(), person(center=[101.0, 61.0]), person("0456.jpg", center=[-1.0, -1.0])]
    for name in ("train", "valid"):
        (root / "annot" / f"{name}.json").write_text(json.dumps(people))
    test = [{key: people[0][key] for key in ("image", "center", "scale")}]
    (root / "annot" / "test.json").write_text(json.dumps(test))
    boxes = np.zeros((2, 2, 3))
    boxes[1, :, 0], boxes[1, :, 1], boxes[1, :, 2] = (60, 80), (3, 4), (0, 100)
    savemat(root / "annot" / "gt_valid.mat", {"headboxes_src": boxes})
    return root


def build(root: Path, split: str = "train", **options: object) -> Source:
    return build_source({"name": "mpii", "root": str(root), **options}, split)


def test_elements(root: Path) -> None:
    for options in ({}, {"crop": (64, 48)}):
        for split in ("train", "val", "test"):
            check_source(build(root, split, **options))
    source = build(root, "val")
    assert [source.name(index) for index in range(3)] == ["0123_0", "0123_1", "0456_0"]
    element = source[0]
    np.testing.assert_allclose(element["keypoints"][:15, :2], JOINTS[:15] - 1, rtol=1e-6)
    np.testing.assert_array_equal(element["keypoints"][:, 2], [2] * 15 + [0])
    # The centre 15 scales lower, less one; the side 200 px times 1.25 scales.
    np.testing.assert_allclose(element["box"], [70, 61 + 15 * 0.4 - 1, 100, 100], rtol=1e-6)
    # Without a centre nothing is corrected.
    np.testing.assert_allclose(source[2]["box"], [-2, -2, 80, 80])
    # 0.6 of the diagonals; known for validation alone.
    np.testing.assert_allclose([source[index]["head_size"] for index in range(3)], [60, 3, 60])
    assert build(root)[0]["head_size"] == 0
    assert not build(root, "test")[0]["keypoints"].any()


def test_crops_show_the_box_and_keep_joints_outside(root: Path) -> None:
    """x' = (x - box's x) * 256 / side + 128, and so for y."""
    whole, crop = build(root, "val")[1], build(root, "val", crop=(256, 256))[1]
    scale = 256 / 100
    expected = (whole["keypoints"][:, :2] - whole["box"][:2]) * scale + 128
    np.testing.assert_allclose(crop["keypoints"][:15, :2], expected[:15], rtol=1e-5)
    np.testing.assert_allclose(crop["box"], [128, 128, 256, 256])
    assert crop["head_size"] == pytest.approx(3 * scale)
    outside = (crop["keypoints"][:15, :2] < -0.5).any(1)
    assert outside.any()
    assert (crop["keypoints"][:15, 2] == 2).all()
    # The picture tells the same: red is x of the source, green twice its y. Only inside of the source.
    for x, y in ((128, 128), (60, 200), (200.0, 40)):
        place = (np.array([x, y]) - 128) / scale + whole["box"][:2]
        red, green, _ = crop["image"][int(y), int(x)].astype(float)
        assert abs(red - place[0]) < 4
        assert abs(green / 2 - place[1]) < 3


def hrnets_crop(image: np.ndarray, box: np.ndarray, degrees: float, size: tuple[int, int]) -> np.ndarray:
    """get_affine_transform and warpAffine as HRNet's code calls them: a map through three points."""

    def three(centre: np.ndarray, side: float, angle: float) -> np.ndarray:
        up = centre + side / 2 * np.array([np.sin(angle), -np.cos(angle)])
        away = centre - up
        return np.float32([centre, up, up + np.array([-away[1], away[0]])])

    height, width = size
    source = three(box[:2].astype(float), float(box[2]), np.radians(degrees))
    target = three(np.array([width / 2, height / 2]), width, 0.0)
    return cv2.warpAffine(image, cv2.getAffineTransform(source, target), (width, height))


@pytest.mark.parametrize(("side", "degrees"), [(500.0, 0.0), (300.0, 25.0), (40.0, -10.0)])
def test_crops_are_those_of_hrnets_code(side: float, degrees: float) -> None:
    """Interpolated without a blur, black outside; blurred, boxes of 500 px lost most of their detail."""
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (160, 120, 3), np.uint8), (240, 320))
    box = np.array([110, 150, side, side], np.float32)
    geometry = Geometry.around(box, (64, 64))
    changed = dataclasses.replace(geometry, rotation=degrees, resampling="linear", outside="black")
    spec = SourceSpec("one", {"image": IMAGE})
    ours = changed.apply({"image": image}, spec)["image"]
    # Our angles turn the crop's content, HRNet's the box.
    expected = hrnets_crop(image, box, degrees, (64, 64))
    assert np.abs(ours.astype(int) - expected).max() <= 2  # positions are rounded to 1/32 pixel
    blurred = dataclasses.replace(geometry, rotation=degrees).apply({"image": image}, spec)["image"]
    if side == 500:
        assert np.abs(blurred.astype(int) - expected).mean() > 20
        assert (expected[:, 0] == 0).all()


def test_a_source_crops_as_hrnets_code_unless_told_otherwise(root: Path) -> None:
    plain = build(root, "val", crop=(32, 32))[0]["image"]
    path = str(root / "images" / "0123.jpg")
    image = np.asarray(cv2.imread(path)[..., ::-1])
    box = build(root, "val")[0]["box"]
    assert np.abs(plain.astype(int) - hrnets_crop(image, box, 0.0, (32, 32))).max() <= 2
    smooth = build(root, "val", crop=(32, 32), resampling="antialiased", outside="mean")[2]["image"]
    black = build(root, "val", crop=(32, 32))[2]["image"]
    assert (smooth[0] == (124, 116, 104)).all()
    assert not black[0].any()


def test_what_is_wrong_is_named(root: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'val'"):
        build(root, "valid")
    with pytest.raises(UserError, match=r"mpii: file not found: .*trainval.json; expected images/"):
        build(root, "trainval")
    (root / "images" / "0456.jpg").unlink()
    with pytest.raises(UserError, match=r"mpii: file not found: .*0456.jpg"):
        build(root)[2]
    annotations = root / "annot" / "train.json"
    for text, message in (
        ("{", "train.json is no JSON file"),
        ("[]", "holds no list of people"),
        (json.dumps([person(), {"image": "a.jpg"}]), "record 1 of .*KeyError: 'center'"),
        (json.dumps([person(joints=[[1, 2]])]), "record 0 of .*ValueError"),
        (json.dumps([person(scale=0)]), "expected two numbers and a positive one"),
    ):
        annotations.write_text(text)
        with pytest.raises(UserError, match=message):
            build(root)
    savemat(root / "annot" / "gt_valid.mat", {"headboxes_src": np.zeros((2, 2, 4))})
    with pytest.raises(UserError, match=r"gt_valid.mat has 4 people, .*valid.json 3"):
        build(root, "val")
    (root / "annot" / "gt_valid.mat").unlink()
    with pytest.raises(UserError, match=r"file not found: .*gt_valid.mat"):
        build(root, "val")
    with pytest.raises(UserError, match=r"source\.crop: \(0, 5\)"):
        build(root, crop=(0, 5))


def test_augmentation_moves_joints_with_the_picture(root: Path) -> None:
    """Where a joint comes to lie, the picture shows the place in the source that it had."""
    source = build(root)
    element, spec = source[0], source.spec
    ranges = GeometryRanges(
        flip=True, crop=(64, 96), box=BoxRanges("box", scale=0.25, rotation=30.0, rotated=0.6)
    )
    checked, flips, turned = 0, 0, 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        out = augment(rng, ranges, element, spec)
        assert out["image"].shape == (64, 96, 3)
        geometry = Geometry.sample_around(np.random.default_rng(seed), ranges, element["box"])
        # The box of 100 px fits into 64 rows, and its middle is in the middle.
        assert 0.64 / 1.2501 <= geometry.scale <= 0.64 / 0.7499
        assert abs(geometry.rotation) <= 60
        flips, turned = flips + geometry.flip, turned + (geometry.rotation != 0)
        np.testing.assert_allclose(
            out["box"], [48, 32, 100 * geometry.scale, 100 * geometry.scale], rtol=1e-5
        )
        order = list(range(16))
        if geometry.flip:
            for left, right in spec.fields["keypoints"].pairs:
                order[left], order[right] = right, left
        for joint in range(16):
            x, y, visible = out["keypoints"][joint]
            before = element["keypoints"][order[joint]]
            assert visible == before[2]
            if visible and 1 < x < 94 and 1 < y < 62:
                red, green, _ = out["image"][round(float(y)), round(float(x))].astype(float)
                assert abs(red - before[0]) < 4
                assert abs(green / 2 - before[1]) < 4
                checked += 1
    assert checked > 300
    assert 10 <= flips <= 30
    assert 14 <= turned <= 34


def test_crops_are_loaded_in_batches(root: Path) -> None:
    ranges = GeometryRanges(flip=True, crop=(32, 32), box=BoxRanges("box", scale=0.25))
    batch = next(iter(make_loader(build(root), batch_size=2, train=True, augment=ranges)))
    assert batch["image"].shape == (2, 32, 32, 3)
    assert batch["keypoints"].shape == (2, 16, 3)
    batches = list(make_loader(build(root, crop=(32, 32)), batch_size=2, train=False))
    assert [batch["valid"].tolist() for batch in batches] == [[True, True], [True, False]]
    assert not batches[1]["keypoints"][1].any()


def test_ranges_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="crop: a size is needed with box"):
        GeometryRanges(box=BoxRanges("box"))
    around = GeometryRanges(box=BoxRanges("box"), crop=(8, 8), scales=(0.5,))
    assert [path for path, _, _ in unread(around)] == ["scales"]
    for wrong in ({"scale": 1.0}, {"rotation": -1.0}, {"rotated": 2.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            BoxRanges("box", **wrong)
