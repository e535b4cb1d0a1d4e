"""VOC 2012: tiny folders in the layouts of its archive, of trainaug, and of SBD's archive."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from dynpix_jax.cli.main import main
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.source import Source
from dynpix_jax.data.sources import build_source
from dynpix_jax.data.voc2012 import CLASSES, palette
from tests.data.spec_check import check_source

IDS = np.array([[0, 1, 20], [255, 15, 0]], np.uint8)
NAMES = {"train": ["b", "a"], "val": ["v"], "trainval": ["a", "b", "v"]}


def write_labels(path: Path, ids: np.ndarray) -> None:
    """As VOC publishes them: indices into a palette."""
    picture = Image.fromarray(ids, mode="P")
    picture.putpalette([*range(256), *range(256), *range(256)])
    picture.save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder above VOCdevkit."""
    voc = tmp_path / "VOCdevkit" / "VOC2012"
    lists = voc / "ImageSets" / "Segmentation"
    for folder in (lists, voc / "JPEGImages", voc / "SegmentationClass"):
        folder.mkdir(parents=True)
    for split, names in NAMES.items():
        (lists / f"{split}.txt").write_text("\n".join(names) + "\n")
    for name in ("a", "b", "v", "extra"):
        cv2.imwrite(str(voc / "JPEGImages" / f"{name}.jpg"), np.full((2, 3, 3), 100, np.uint8))
    for name in NAMES["trainval"]:
        write_labels(voc / "SegmentationClass" / f"{name}.png", IDS)
    return tmp_path


def build(root: Path, split: str, **options: str) -> Source:
    return build_source({"name": "voc2012", "root": str(root), **options}, split)


def names(source: Source) -> list[str]:
    return [source.name(index) for index in range(len(source))]


def test_elements(root: Path) -> None:
    source = build(root, "train")
    check_source(source)
    assert names(source) == ["b", "a"]
    np.testing.assert_array_equal(source[0]["segmentation"], IDS)
    assert names(build(root / "VOCdevkit", "val")) == ["v"]
    assert names(build(root / "VOCdevkit" / "VOC2012", "trainval")) == ["a", "b", "v"]
    assert len(CLASSES) == 21


def test_palette_is_the_development_kits() -> None:
    """Some of VOClabelcolormap: person, sofa, tvmonitor."""
    colours = palette(21)
    assert colours[0] == (0, 0, 0)
    assert colours[1] == (128, 0, 0)
    assert colours[15] == (192, 128, 128)
    assert colours[18] == (0, 192, 0)
    assert colours[20] == (0, 64, 128)


def test_trainaug_as_passed_on(root: Path, tmp_path: Path) -> None:
    voc = root / "VOCdevkit" / "VOC2012"
    with pytest.raises(UserError, match=r"file not found: .*trainaug\.txt"):
        build(root, "trainaug")
    lines = "/JPEGImages/a.jpg /SegmentationClassAug/a.png\n/JPEGImages/extra.jpg /x/extra.png\n"
    (voc / "ImageSets" / "Segmentation" / "trainaug.txt").write_text(lines)
    with pytest.raises(UserError, match=r"folder not found: .*SegmentationClassAug"):
        build(root, "trainaug")
    (voc / "SegmentationClassAug").mkdir()
    for name in ("a", "extra"):
        cv2.imwrite(str(voc / "SegmentationClassAug" / f"{name}.png"), IDS)
    source = build(root, "trainaug")
    check_source(source)
    assert names(source) == ["a", "extra"]
    # Packed, too: the shards of a split have its name.
    out = tmp_path / "packed"
    call = ["prepare", "voc2012", "--source", str(root), "--out", str(out), "--workers", "0", "--split"]
    assert main([*call, "trainaug", "trainval"]) == 0
    packed = build_source({"name": "packed", "root": str(out)}, "trainaug")
    assert names(packed) == names(source)
    np.testing.assert_array_equal(packed[1]["segmentation"], source[1]["segmentation"])
    assert len(build_source({"name": "packed", "root": str(out)}, "trainval")) == 3
    assert main([*call[:6], "--verify"]) == 0


def test_trainaug_from_sbd(root: Path, tmp_path: Path) -> None:
    """All that has labels and is not in val; VOC's own labels where there are any."""
    sbd = tmp_path / "sbd"
    (sbd / "cls").mkdir(parents=True)
    (sbd / "train.txt").write_text("a\nextra\n")
    (sbd / "val.txt").write_text("v\n")
    savemat(sbd / "cls" / "extra.mat", {"GTcls": {"Segmentation": np.full((2, 3), 7, np.uint8)}})
    source = build(root, "trainaug", sbd=str(sbd))
    check_source(source)
    assert names(source) == ["a", "b", "extra"]
    np.testing.assert_array_equal(source[0]["segmentation"], IDS)
    np.testing.assert_array_equal(source[2]["segmentation"], np.full((2, 3), 7))
    with pytest.raises(UserError, match=r"sbd: nothing reads .*'trainaug'"):
        build(root, "val", sbd=str(sbd))
    savemat(sbd / "cls" / "extra.mat", {"GTcls": {"Boundaries": 1}})
    with pytest.raises(UserError, match=r"no GTcls\.Segmentation map in .*extra\.mat"):
        source[2]


def test_missing_and_wrong_things_are_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"folder not found: .*nowhere"):
        build(tmp_path / "nowhere", "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no folder JPEGImages in .*empty; expected.*VOC2012"):
        build(tmp_path / "empty", "train")
    with pytest.raises(UserError, match="did you mean 'trainaug'"):
        build(root, "train_aug")
    labels = root / "VOCdevkit" / "VOC2012" / "SegmentationClass"
    write_labels(labels / "b.png", IDS + 1)
    with pytest.raises(UserError, match=r"b\.png has the id 21; expected 0 to 20 or 255"):
        build(root, "train")[0]
    (labels / "b.png").unlink()
    with pytest.raises(UserError, match=r"file not found: .*b\.png"):
        build(root, "train")[0]
    (root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation" / "val.txt").write_text("\n")
    with pytest.raises(UserError, match=r"val\.txt is empty"):
        build(root, "val")
