"""PASCAL-Context: tiny folders in both of its published layouts."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.source import Source
from dynpix_jax.data.pascal_context import CLASSES_33, CLASSES_59
from dynpix_jax.data.sources import build_source
from tests.data.spec_check import check_source

IDS = np.array([[0, 1, 33], [2, 0, 5]], np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    voc = tmp_path / "VOC2010"
    lists = voc / "ImageSets" / "Main"
    for folder in (lists, voc / "JPEGImages"):
        folder.mkdir(parents=True)
    (lists / "train.txt").write_text("2008_000008\n2008_000015\n")
    (lists / "val.txt").write_text("2008_000002\n")
    for name in ("2008_000008", "2008_000015", "2008_000002"):
        cv2.imwrite(str(voc / "JPEGImages" / f"{name}.jpg"), np.full((2, 3, 3), 100, np.uint8))
        for count in (59, 33):
            folder = tmp_path / f"{count}_context_labels"
            folder.mkdir(exist_ok=True)
            cv2.imwrite(str(folder / f"{name}.png"), IDS)
    return tmp_path


def build(root: Path, split: str = "train", **options: object) -> Source:
    return build_source({"name": "pascal_context", "root": str(root), **options}, split)


def test_classes_are_those_of_the_published_lists():
    assert len(CLASSES_59) == len(set(CLASSES_59)) == 59
    assert len(CLASSES_33) == len(set(CLASSES_33)) == 33
    # Ids of 59_labels.txt and 33_labels.txt, which count from 1.
    assert [CLASSES_59[i - 1] for i in (1, 11, 21, 34, 37, 59)] == [
        *("aeroplane", "table", "bag", "flower", "ground", "wood")
    ]
    assert [CLASSES_33[i - 1] for i in (11, 21, 25, 33)] == ["diningtable", "sky", "building", "ceiling"]


@pytest.mark.parametrize("classes", [59, 33])
def test_elements(root: Path, classes: int) -> None:
    source = build(root, classes=classes)
    check_source(source)
    assert [source.name(i) for i in range(2)] == ["2008_000008", "2008_000015"]
    np.testing.assert_array_equal(source[0]["segmentation"], [[255, 0, 32], [1, 255, 4]])
    assert len(source.spec.fields["segmentation"].classes) == classes
    assert len(build(root, "val", classes=classes)) == 1


def test_the_459_names(root: Path) -> None:
    """Looked up by name, in any order; what is none of the 59 is ignored."""
    labels = root / "all"
    (labels / "trainval").mkdir(parents=True)
    names = ["accordion", *sorted(CLASSES_59), "zebra crossing"]
    (labels / "labels.txt").write_text("".join(f"{i}: {name}\n" for i, name in enumerate(names, 1)))
    found = np.array([[0, 1, 61], [names.index("wood") + 1, names.index("table") + 1, 2]], np.uint16)
    savemat(labels / "trainval" / "2008_000008.mat", {"LabelMap": found})
    source = build(root, label_root=str(labels))
    expected = [[255, 255, 255], [58, CLASSES_59.index("table"), CLASSES_59.index("aeroplane")]]
    np.testing.assert_array_equal(source[0]["segmentation"], expected)
    with pytest.raises(UserError, match=r"33_context_labels; .*not among the 459"):
        build(root, label_root=str(labels), classes=33)
    savemat(labels / "trainval" / "2008_000008.mat", {"LabelMap": found + 1})
    with pytest.raises(UserError, match="no map of ids up to 61"):
        source[0]
    (labels / "labels.txt").write_text("1: accordion\n")
    with pytest.raises(UserError, match=r"labels\.txt has no 'aeroplane'"):
        build(root, label_root=str(labels))
    (labels / "labels.txt").write_text("accordion\n")
    with pytest.raises(UserError, match="has the line 'accordion'"):
        build(root, label_root=str(labels))


def test_missing_and_wrong_things_are_named(root: Path) -> None:
    with pytest.raises(UserError, match="expected 59 or 33"):
        build(root, classes=60)
    with pytest.raises(UserError, match=r"folder not found: .*nowhere"):
        build(root, label_root=str(root / "nowhere"))
    with pytest.raises(UserError, match="has no split 'trainaug'"):
        build(root, "trainaug")
    with pytest.raises(UserError, match=r"no folder JPEGImages"):
        build(root / "59_context_labels")
    file = root / "33_context_labels" / "2008_000002.png"
    cv2.imwrite(str(file), IDS + 1)
    with pytest.raises(UserError, match=r"2008_000002\.png has the id 34; expected 0 to 33"):
        build(root, "val", classes=33)[0]
    cv2.imwrite(str(file), IDS[:1])
    with pytest.raises(UserError, match=r"has \(1, 3\) pixels"):
        build(root, "val", classes=33)[0]
