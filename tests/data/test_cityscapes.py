"""Cityscapes: a few images in the official layout, with ids, disparities and instances worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.source import Source
from dynpix_jax.data.cityscapes import CLASSES, PALETTE
from dynpix_jax.data.sources import build_source
from tests.data.spec_check import check_source

# Label ids as the data set's own table has them: (id, train id or 255).
IDS = [(0, 255), (7, 0), (8, 1), (9, 255), (11, 2), (12, 3), (13, 4), (14, 255), (17, 5), (18, 255), (19, 6)]
IDS += [(20, 7), (21, 8), (22, 9), (23, 10), (24, 11), (25, 12), (26, 13), (27, 14), (28, 15), (29, 255)]
IDS += [(30, 255), (31, 16), (32, 17), (33, 18), (255, 255)]


def build(root: Path, split: str = "train", **options: object) -> Source:
    return build_source({"name": "cityscapes", "root": str(root), **options}, split)


def write(root: Path, split: str, city: str, name: str) -> None:
    width = len(IDS)
    files = {
        ("leftImg8bit", "leftImg8bit.png"): np.full((2, width, 3), (0, 10, 200), np.uint8),
        ("gtFine", "gtFine_labelIds.png"): np.array([[pair[0] for pair in IDS]] * 2, np.uint8),
        ("gtFine", "gtFine_instanceIds.png"): np.array(
            [[7, 26000, 26001, 24, 33002] + [0] * (width - 5)] * 2, np.uint16
        ),
        ("disparity", "disparity.png"): np.array([[0, 1, 257, 12801] + [2561] * (width - 4)] * 2, np.uint16),
    }
    for (package, suffix), picture in files.items():
        path = root / package / split / city / f"{name}_{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, "train", "zurich", "zurich_000001_000019")
    write(tmp_path, "train", "aachen", "aachen_000000_000019")
    return tmp_path


def test_elements(root: Path) -> None:
    source = build(root, fields=("segmentation", "depth", "instances"))
    assert [source.name(i) for i in range(len(source))] == ["aachen_000000_000019", "zurich_000001_000019"]
    check_source(source)
    element = source[1]
    np.testing.assert_array_equal(element["image"][0, 0], [200, 10, 0])
    np.testing.assert_array_equal(element["segmentation"][1], [pair[1] for pair in IDS])
    np.testing.assert_array_equal(element["instances"][0, :6], [0, 26000, 26001, 0, 33002, 0])
    # 0 is invalid, 1 infinitely far; a disparity of 1 pixel is baseline * f, 50 pixels a fiftieth of it.
    np.testing.assert_allclose(element["depth"][0, :4], [0, 0, 473.57484, 9.4714968], rtol=1e-6)
    assert element["index"] == 1
    assert {name: element[name].dtype for name in ("segmentation", "instances", "depth")} == {
        "segmentation": np.int32,
        "instances": np.int32,
        "depth": np.float32,
    }
    assert set(build(root)[0]) == {"image", "segmentation", "index"}
    assert len(CLASSES) == len(PALETTE) == 19
    assert (CLASSES[13], PALETTE[13]) == ("car", (0, 0, 142))


def test_camera_of_each_image(root: Path) -> None:
    path = root / "camera" / "train" / "aachen" / "aachen_000000_000019_camera.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"extrinsic": {"baseline": 0.5}, "intrinsic": {"fx": 2000.0}}))
    source = build(root, fields=("depth",))
    np.testing.assert_allclose(source[0]["depth"][0, :4], [0, 0, 1000, 20], rtol=1e-6)
    with pytest.raises(UserError, match=r"file not found: .*zurich_000001_000019_camera\.json"):
        source[1]
    path.write_text("{}")
    with pytest.raises(UserError, match=r"no extrinsic\.baseline and intrinsic\.fx in .*camera\.json"):
        source[0]


def test_missing_and_wrong_things_are_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"folder not found: .*nowhere.*cityscapes-dataset\.com"):
        build(tmp_path / "nowhere")
    with pytest.raises(
        UserError, match=r"folder not found: .*leftImg8bit.val.*leftImg8bit_trainvaltest\.zip"
    ):
        build(root, "val")
    with pytest.raises(UserError, match=r"fields: unknown label 'normals'; valid: depth, instances, segm"):
        build(root, fields=("normals",))
    labels = root / "gtFine" / "train" / "aachen" / "aachen_000000_000019_gtFine_labelIds.png"
    cv2.imwrite(str(labels), np.full((2, len(IDS)), 34, np.uint8))
    with pytest.raises(UserError, match=r"labelIds\.png has the id 34; expected 0 to 33"):
        build(root)[0]
    labels.unlink()
    with pytest.raises(UserError, match=r"file not found: .*labelIds\.png.*gtFine_trainvaltest\.zip"):
        build(root)[0]
    disparity = root / "disparity" / "train" / "aachen" / "aachen_000000_000019_disparity.png"
    cv2.imwrite(str(disparity), np.zeros((2, len(IDS)), np.uint8))
    with pytest.raises(UserError, match=r"cityscapes depth: .*disparity\.png has mode L"):
        build(root, fields=("depth",))[0]
    (root / "disparity").rename(root / "disp")
    with pytest.raises(
        UserError, match=r"folder not found: .*disparity.train; .*disparity_trainvaltest\.zip"
    ):
        build(root, fields=("depth",))
