"""Stanford 2D-3D-S: a few small panoramas in the official layout."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.source import Source
from dynpix_jax.data.panorama import Axes
from dynpix_jax.data.sources import build_source
from dynpix_jax.data.stanford2d3d import CLASSES, PALETTE
from tests.data import panorama_room as room
from tests.data.spec_check import check_source

LABELS = ["<UNK>_0_<UNK>_0_0", "beam_10_hallway_6_1"]
LABELS += [f"chair_{number}_office_1_1" for number in range(300)] + ["wall_1_WC_2_3"]
NAME = "camera_0a1b2c_office_4"


def build(root: Path, split: str = "val", **options: object) -> Source:
    return build_source({"name": "stanford2d3d", "root": str(root), **options}, split)


def write_panorama(root: Path, area: str, name: str = NAME, north: float = 0.7) -> None:
    """The room at twice its size; in the left half of the picture walls, in the right one chairs."""
    distances, normals = room.room(north)
    picture = room.stored(normals, Axes(), 33.0)
    height, width = distances.shape
    labels = np.full((height, width), 302)
    labels[:, width // 2 :] = 257
    labels[:, :4] = 0
    semantic = np.stack([labels >> 16, labels >> 8 & 255, labels & 255], axis=-1).astype(np.uint8)
    semantic[:, 4:6] = 13
    depth = np.round(distances * 512).astype(np.uint16)
    depth[:, 9], depth[:, 10], depth[:, 11] = 65535, 1, 0
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.arange(height)[:, None]
    for folder, suffix, values in (
        ("rgb", "rgb", image),
        ("semantic", "semantic", semantic),
        ("depth", "depth", depth),
        ("normal", "normals", picture),
    ):
        path = root / f"area_{area}" / "pano" / folder
        path.mkdir(parents=True, exist_ok=True)
        values = values.repeat(2, axis=0).repeat(2, axis=1)
        file = path / f"{name}_frame_equirectangular_domain_{suffix}.png"
        cv2.imwrite(str(file), values[..., ::-1] if values.ndim == 3 else values)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for area in ("3", "4"):
        write_panorama(tmp_path, area)
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "semantic_labels.json").write_text(json.dumps(LABELS))
    return tmp_path


def test_elements(root: Path) -> None:
    source = build(root)
    assert [source.name(i) for i in range(len(source))] == [f"area_3/{NAME}", f"area_4/{NAME}"]
    check_source(source)
    element = source[1]
    # Of the 64 rows of half a panorama 10 to 53, as 160 to 863 of 1024.
    assert element["image"].shape == (44, 128, 3)
    np.testing.assert_array_equal(element["image"][:, 5, 0], np.arange(10, 54))
    labels = element["segmentation"]
    assert (labels[:, :6] == 255).all()
    assert (labels[:, 6:64] == CLASSES.index("wall")).all()
    assert (labels[:, 64:] == CLASSES.index("chair")).all()
    distances, normals = room.room(0.7)
    assert (element["depth"][:, 9:12] == 0).all()
    valid = (np.arange(128) < 9) | (np.arange(128) > 11)
    np.testing.assert_allclose(element["depth"][:, valid], distances[10:54, valid], atol=1 / 512)
    assert room.angles(element["normals"], room.seen(normals, 0.7)[10:54]).max() < 1
    assert {name: value.dtype for name, value in element.items()} == {
        "image": np.uint8,
        "segmentation": np.int32,
        "depth": np.float32,
        "normals": np.float32,
        "index": np.int64,
    }
    assert len(CLASSES) == len(set(PALETTE)) == 13


def test_annotated_points(root: Path, tmp_path: Path) -> None:
    # The north wall is ahead at column -0.7 / 2 pi * 128 = 113.74 of half the panorama.
    points = tmp_path / "points.json"
    points.write_text(json.dumps({"points": {f"area_3/{NAME}": [227, 64]}}))
    source = build(root, fields=("normals",), points=str(points))
    _, normals = room.room(0.7)
    assert room.angles(source[0]["normals"], room.seen(normals, 0.7)[10:54]).max() < 3
    with pytest.raises(
        UserError, match=r"points\.json has no point of area_4/camera_0a1b2c_office_4; set it"
    ):
        source[1]
    points.write_text(json.dumps({"points": {f"area_3/{NAME}": [227, 126]}}))
    with pytest.raises(UserError, match=r"normals of area_3/.* cannot be turned: no upright surface there"):
        build(root, fields=("normals",), points=str(points))[0]
    for wrong in ('{"points": {"a": 3}}', "[]", "{"):
        points.write_text(wrong)
        with pytest.raises(UserError, match=r"points\.json"):
            build(root, points=str(points))
    with pytest.raises(
        UserError, match=r"annotation file not found: .*none\.json; make it with python -m tools"
    ):
        build(root, points=str(tmp_path / "none.json"))


def test_missing_and_wrong_things_are_named(root: Path) -> None:
    with pytest.raises(UserError, match=r"folder not found: .*area_1.pano.rgb; .*alexsax/2D-3D-Semantics"):
        build(root, "train")
    with pytest.raises(UserError, match=r"no split 'test'; valid: train, val"):
        build(root, "test")
    rgb = root / "area_3" / "pano" / "rgb" / f"{NAME}_frame_equirectangular_domain_rgb.png"
    cv2.imwrite(str(rgb), np.zeros((64, 100, 3), np.uint8))
    with pytest.raises(
        UserError, match=r"_rgb\.png has 64 x 100 pixels; expected a panorama, as 2048 x 4096"
    ):
        build(root)[0]
    rgb.with_name("x").write_text("")
    (root / "area_4" / "pano" / "semantic" / f"{NAME}_frame_equirectangular_domain_semantic.png").unlink()
    with pytest.raises(UserError, match=r"file not found: .*_semantic\.png"):
        build(root)[1]
    labels = root / "assets" / "semantic_labels.json"
    labels.write_text('["sofa_1_a_1_1", "chiar_1_a_1_1"]')
    with pytest.raises(UserError, match=r"semantic_labels\.json has the class 'chiar'; did you mean 'chair'"):
        build(root)
    labels.write_text("{")
    with pytest.raises(UserError, match=r"semantic_labels\.json is no JSON file"):
        build(root)
    labels.unlink()
    with pytest.raises(UserError, match=r"file not found: .*semantic_labels\.json"):
        build(root)
    assert len(build(root, fields=("depth",))) == 2
    rgb.unlink()
    with pytest.raises(UserError, match=r"no \*_rgb\.png in .*area_3"):
        build(root)
