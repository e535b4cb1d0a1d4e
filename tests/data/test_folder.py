"""Your own images: every kind of label in the form in which `predict` writes it, splits, each mistake."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.source import Source
from dynpix_jax.data.sources import build_source, declared_fields, read_source
from tests.data.spec_check import check_source

IDS = np.array([[0, 1, 2, 255], [2, 1, 0, 0]], np.uint8)
NAMES = [f"n{index}" for index in range(10)]


def write(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if picture.ndim == 3:
        picture = picture[..., ::-1]
    cv2.imwrite(str(path), picture)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for index, name in enumerate(NAMES):
        write(tmp_path / f"images/{name}.png", np.full((2, 4, 3), (200, 20, index), np.uint8))
        write(tmp_path / f"labels/{name}.png", IDS)
    return tmp_path


def build(root: Path, split: str = "train", **options: object) -> Source:
    return build_source({"name": "folder", "root": str(root), "classes": 3, **options}, split)


def names(source: Source) -> list[str]:
    return [source.name(index) for index in range(len(source))]


def test_elements(root: Path) -> None:
    source = build(root)
    check_source(source)
    element = source[0]
    assert tuple(element["image"][0, 0][:2]) == (200, 20)
    np.testing.assert_array_equal(element["segmentation"], IDS)


def test_a_share_is_val_and_stays_so(root: Path) -> None:
    train, val = names(build(root)), names(build(root, "val"))
    assert len(val) == 2
    assert sorted(train + val) == NAMES
    assert len(names(build(root, "val", val_share=0.5))) == 5
    write(root / "images/more.png", np.zeros((2, 4, 3), np.uint8))
    assert set(val) & set(names(build(root, "val", val_share=0.2)))
    with pytest.raises(UserError, match=r"has no split 'test'; expected a list test\.txt or a folder"):
        build(root, "test")


def test_lists_and_folders_of_splits(root: Path) -> None:
    (root / "train.txt").write_text("n3.png\nn1\n")
    assert names(build(root)) == ["n3", "n1"]
    with pytest.raises(UserError, match=r"file not found: .*val\.txt"):
        build(root, "val")
    (root / "val.txt").write_text("n77\n")
    with pytest.raises(UserError, match=r"val\.txt names 'n77', which is not in .*images"):
        build(root, "val")
    other = root / "other"
    for split, name in (("train", "a"), ("test", "b")):
        write(other / f"images/{split}/{name}.jpg", np.zeros((2, 4, 3), np.uint8))
        write(other / f"labels/{split}/{name}.png", IDS)
    assert (names(build(other)), names(build(other, "test"))) == (["a"], ["b"])
    np.testing.assert_array_equal(build(other, "test")[0]["segmentation"], IDS)
    with pytest.raises(UserError, match=r"folder not found: .*images/val"):
        build(other, "val")


def test_lists_of_other_encodings(root: Path) -> None:
    (root / "train.txt").write_bytes("n3\r\nn1\r\n".encode("utf-8-sig"))
    assert names(build(root)) == ["n3", "n1"]
    (root / "train.txt").write_bytes("n3\n".encode("utf-16"))
    with pytest.raises(UserError, match=r"train\.txt: invalid start byte; expected a text in UTF-8"):
        build(root)


def test_names_with_dots_in_lists(root: Path) -> None:
    """ "n1.5" in a list is an image of its own, not "n1" with a suffix."""
    for name in ("n1.5", "n1.6"):
        write(root / f"images/{name}.png", np.full((2, 4, 3), 7, np.uint8))
        write(root / f"labels/{name}.png", IDS)
    (root / "train.txt").write_text("n1.5\nn1.6.png\nn1\nimages/n2.png\n")
    source = build(root)
    assert names(source) == ["n1.5", "n1.6", "n1", "n2"]
    assert [int(source[index]["image"][0, 0, 0]) for index in range(4)] == [7, 7, 200, 200]
    (root / "train.txt").write_text("n1.7.png\n")
    with pytest.raises(UserError, match=r"train\.txt names 'n1\.7\.png', which is not in"):
        build(root)


def test_several_kinds_of_labels(root: Path) -> None:
    fields = ("segmentation", "boundaries", "depth", "normals", "saliency")
    towards_camera = np.full((2, 4, 3), (128, 128, 255), np.uint8)
    towards_camera[0, 0] = 0
    pictures = {
        "segmentation": IDS,
        "boundaries": np.array([[0, 255, 51, 0]] * 2, np.uint8),
        "depth": np.array([[0, 1500, 65535, 1]] * 2, np.uint16),
        "normals": towards_camera,
        "saliency": np.array([[0, 255, 127, 128]] * 2, np.uint8),
    }
    for name in NAMES:
        for kind, picture in pictures.items():
            write(root / f"labels/{kind}/{name}.png", picture)
    source = build(root, fields=fields)
    check_source(source)
    element = source[0]
    np.testing.assert_allclose(element["boundaries"][0], [0, 1, 0.2, 0])
    np.testing.assert_allclose(element["depth"][0], [0, 1.5, 65.535, 0.001], rtol=1e-6)
    np.testing.assert_allclose(element["normals"][1, 0], [0, 0, -1], atol=0.01)
    assert not element["normals"][0, 0].any()
    np.testing.assert_array_equal(element["saliency"][0], [0, 1, 0, 1])
    (root / "labels/depth").rename(root / "labels/depths")
    with pytest.raises(UserError, match=r"no folder .*labels/depth; of several kinds"):
        build(root, fields=fields)[0]


def test_names_and_colours_of_classes(root: Path) -> None:
    palette = [[128, 64, 128], [0, 0, 142], [70, 130, 180]]
    (root / "classes.json").write_text(
        json.dumps({"classes": ["road", "car", "sky"], "palette": palette, "ignore": 9})
    )
    write(root / "labels/n0.png", np.array([[0, 9, 2, 1]] * 2, np.uint8))
    colours = np.array([[*palette, [0, 0, 0]]] * 2, np.uint8)
    write(root / "labels/n1.png", colours)
    (root / "train.txt").write_text("n0\nn1\nn2")
    source = build(root, classes=0)
    field = source.spec.fields["segmentation"]
    assert (field.classes, field.palette[1]) == (("road", "car", "sky"), (0, 0, 142))
    assert declared_fields(read_source({"name": "folder", "root": str(root), "split": "train"}, "s")) == dict(
        source.spec.fields
    )
    np.testing.assert_array_equal(source[0]["segmentation"][0], [0, 255, 2, 1])
    np.testing.assert_array_equal(source[1]["segmentation"][0], [0, 1, 2, 255])
    with pytest.raises(UserError, match=r"n2\.png has the id 255; expected 0 to 2 or 9"):
        source[2]
    write(root / "labels/n1.png", colours + 1)
    with pytest.raises(UserError, match=r"n1\.png has the colour \(129, 65, 129\), which is not in the pal"):
        build(root, classes=0)[1]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (
            None,
            {"classes": 0},
            r"how many classes are there\? Give classes=N, or their names in .*classes\.json",
        ),
        ('{"classes": ["a", "b"]}', {}, r"classes\.json has 2 classes, and there are 3 classes"),
        ('{"names": []}', {}, r"classes\.json: unknown entry 'names'; expected classes, palette, ignore"),
        ('{"classes": ["a",', {}, r"classes\.json: .*expected \{\"classes\""),
        ('["a"]', {}, r"classes\.json: .*expected \{\"classes\""),
        ('{"classes": "abc"}', {}, r"classes\.json: classes is one text; expected \{\"classes\": \[NAMES\]"),
        (
            '{"palette": [[1, 2, 3], [300, 0, 0], [0, 0, 0]]}',
            {},
            r"classes\.json: the colour \(300, 0, 0\) is not of numbers from 0 to 255; expected",
        ),
        (
            '{"palette": [[1, 2, 3], [0, 0, 0], [1, 2, 3]]}',
            {},
            r"classes\.json: two classes have the colour \(1, 2, 3\); expected",
        ),
        ('{"ignore": -1}', {}, r"classes\.json: ignore is -1, not 0 to 255; expected"),
        ('{"palette": [[1, 2]]}', {}, r"classes\.json: not enough values.*expected"),
        (None, {"fields": ("depth",)}, "classes: nothing reads 3: no segmentation is read"),
        (None, {"fields": ("deep",)}, "unknown label 'deep'; did you mean 'depth'"),
        (None, {"val_share": 1.0}, "val_share: 1.0; expected a share between 0 and 1"),
    ],
)
def test_wrong_options(root: Path, content: str | None, options: dict[str, object], message: str) -> None:
    if content is not None:
        (root / "classes.json").write_text(content)
    with pytest.raises(UserError, match=message):
        build(root, **options)[0]


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("boundaries", 1, r"n0\.png has 1 as its largest value; expected 0 \(none\) to 255 \(boundary\)"),
        ("saliency", 1, r"n0\.png has 1 as its largest value.*expected 255 \(salient\) or 0 \(not\)"),
        ("saliency", 127, r"n0\.png has 127 as its largest value, and salient is from 128 on"),
    ],
)
def test_labels_of_zeros_and_ones(root: Path, kind: str, value: int, message: str) -> None:
    (root / "train.txt").write_text("n0\nn1\nn2")
    for name, largest in (("n0", value), ("n1", 0), ("n2", 128)):
        write(root / f"labels/{name}.png", np.array([[0, largest, 0, 0], [0, 0, 0, largest]], np.uint8))
    source = build_source({"name": "folder", "root": str(root), "fields": (kind,)}, "train")
    with pytest.raises(UserError, match=message):
        source[0]
    # An image may show nothing of it.
    assert not source[1][kind].any()
    np.testing.assert_allclose(source[2][kind].max(), 128 / 255 if kind == "boundaries" else 1)


def test_each_mistake_names_the_file(root: Path) -> None:
    (root / "train.txt").write_text("n0\nn1\nn2\nn3\nn4")
    (root / "labels/n0.png").unlink()
    write(root / "labels/n1.png", IDS[:1])
    write(root / "labels/n2.png", IDS + 1)
    write(root / "labels/n3.png", np.zeros((2, 4, 3), np.uint8))
    (root / "labels/n4.png").write_bytes((root / "labels/n5.png").read_bytes()[:40])
    source = build(root)
    for index, message in enumerate(
        (
            r"file not found: .*labels/n0\.png; expected images/NAME\.jpg",
            r"n1\.png has \(1, 4\) pixels, its image .*n1\.png \(2, 4\)",
            r"n2\.png has the id 3; expected 0 to 2 or 255",
            r"n3\.png has mode RGB; expected one channel of uint8",
            r"corrupt image .*n4\.png",
        )
    ):
        with pytest.raises(UserError, match=message):
            source[index]
    write(root / "images/n1.jpg", np.zeros((2, 4, 3), np.uint8))
    with pytest.raises(UserError, match=r"n1\.jpg and n1\.png have the same name"):
        build(root)
    (root / "empty/images").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no \.jpg, \.jpeg, \.png in .*empty/images; expected"):
        build(root / "empty")
    with pytest.raises(UserError, match=r"folder not found: .*nowhere"):
        build(root / "nowhere")
