"""BSDS500: the real images where they are, and a tiny folder in the official layout for the rest."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.source import Source
from dynpix_jax.data.bsds500 import read_boundaries
from dynpix_jax.data.images import read_image
from dynpix_jax.data.sources import build_source
from tests.data.spec_check import check_source

# Three annotators of a 4 x 5 image. Row 0: 3, 2, 1, 0, 0 votes.
VOTES = (
    np.array([[1, 1, 1, 0, 0]] + [[0] * 5] * 3, np.uint8),
    np.array([[1, 1, 0, 0, 0]] + [[0] * 5] * 3, np.uint8),
    np.array([[1, 0, 0, 0, 0]] + [[0] * 5] * 3, np.uint8),
)


def write_truth(path: Path, maps: tuple[np.ndarray, ...]) -> None:
    cells = np.empty((1, len(maps)), object)
    for k, boundaries in enumerate(maps):
        cells[0, k] = {"Segmentation": boundaries.astype(np.uint16) + 1, "Boundaries": boundaries}
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"groundTruth": cells})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    images = tmp_path / "data" / "images" / "train"
    images.mkdir(parents=True)
    for name in ("12", "3"):
        cv2.imwrite(str(images / f"{name}.jpg"), np.full((4, 5, 3), (10, 20, 200), np.uint8))
        write_truth(tmp_path / "data" / "groundTruth" / "train" / f"{name}.mat", VOTES)
    return tmp_path


def build(root: Path, split: str = "train", **options: object) -> Source:
    return build_source({"name": "bsds500", "root": str(root), **options}, split)


@pytest.mark.parametrize(
    ("options", "row"),
    [
        ({"consensus": 0.3}, [1, 1, 1, 0, 0]),
        ({"consensus": 0.5}, [1, 1, -1, 0, 0]),
        ({"consensus": 1.0}, [1, -1, -1, 0, 0]),
        ({"consensus": 2}, [1, 1, -1, 0, 0]),
        ({"consensus": 7}, [1, -1, -1, 0, 0]),
        ({"label": "soft"}, [1, 2 / 3, 1 / 3, 0, 0]),
    ],
)
def test_labels_of_three_annotators(root: Path, options: dict[str, object], row: list[float]) -> None:
    element = build(root, **options)[0]
    np.testing.assert_allclose(element["boundaries"][0], row, atol=1e-7)
    assert not element["boundaries"][1:].any()
    assert element["boundaries"].dtype == np.float32


def test_its_licence_is_stated(root: Path) -> None:
    check_source(build(root))
    assert "non-commercial" in build(root).spec.licence


def test_elements_of_the_official_layout(root: Path) -> None:
    source = build(root)
    assert isinstance(source, Source)
    assert [source.name(i) for i in range(len(source))] == ["12", "3"]
    element = source[1]
    assert element["index"] == 1
    # Red, written by OpenCV as BGR.
    assert element["image"].shape == (4, 5, 3)
    assert element["image"][2, 2].argmax() == 0
    for maps, votes in zip(source.annotators(1), VOTES, strict=True):
        np.testing.assert_array_equal(maps, votes == 1)
    for nested in ("BSDS500", "BSR"):
        outer = root.parent / f"outer_{nested}"
        (outer / nested).parent.mkdir(exist_ok=True)
        inner = outer / "BSDS500" if nested == "BSDS500" else outer / "BSR" / "BSDS500"
        inner.parent.mkdir(parents=True, exist_ok=True)
        inner.symlink_to(root)
        assert len(build(outer)) == 2


def test_missing_things_are_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.*BSR_bsds500.tgz"):
        build(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"images.val.*BSR_bsds500.tgz"):
        build(root, "val")
    with pytest.raises(UserError, match=r"holds neither"):
        build(root / "data" / "groundTruth")
    with pytest.raises(UserError, match=r"did you mean 'train'"):
        build(root, "trian")
    with pytest.raises(UserError, match=r"did you mean 'bsds500'"):
        build_source({"name": "bsd500", "root": str(root)}, "train")
    with pytest.raises(UserError, match=r"config\.data\.source\.consensus: 2\.5; expected"):
        build(root, consensus=2.5)
    with pytest.raises(UserError, match=r"config\.data\.source\.rot: unknown key"):
        build_source({"name": "bsds500", "rot": str(root)}, "train")
    with pytest.raises(UserError, match=r"config\.data\.source\.split: bsds500 has no split None"):
        build_source({"name": "bsds500", "root": str(root)})
    (root / "data" / "groundTruth" / "train" / "12.mat").unlink()
    with pytest.raises(UserError, match=r"bsds500: file not found.*12\.mat"):
        build(root)[0]


def test_trainval_is_train_and_val(root: Path) -> None:
    with pytest.raises(UserError, match=r"folder not found: .*val"):
        build(root, "trainval")
    (root / "data" / "images" / "val").mkdir()
    cv2.imwrite(str(root / "data" / "images" / "val" / "1.jpg"), np.zeros((4, 5, 3), np.uint8))
    write_truth(root / "data" / "groundTruth" / "val" / "1.mat", tuple(np.flipud(map_) for map_ in VOTES))
    source = build(root, "trainval")
    assert [source.name(i) for i in range(len(source))] == ["12", "3", "1"]
    np.testing.assert_array_equal(source[1]["boundaries"][::-1], source[2]["boundaries"])
    assert source[2]["image"].max() == 0
    assert source[2]["index"] == 2


@pytest.mark.parametrize("harm", ["truncated", "garbage", "empty"])
def test_corrupt_jpeg_is_named(root: Path, harm: str) -> None:
    path = root / "data" / "images" / "train" / "12.jpg"
    rng = np.random.default_rng(0)
    cv2.imwrite(str(path), rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))
    content = path.read_bytes()
    path.write_bytes(
        {"truncated": content[: len(content) * 2 // 3], "garbage": b"no picture", "empty": b""}[harm]
    )
    with pytest.raises(UserError, match=r"corrupt image.*12\.jpg"):
        build(root)[0]


def test_broken_truth_is_named(root: Path) -> None:
    path = root / "data" / "groundTruth" / "train" / "12.mat"
    content = path.read_bytes()
    for broken in (content[: len(content) // 2], b"", b"no mat"):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"12\.mat"):
            read_boundaries(path)
    savemat(path, {"other": np.zeros(3)})
    with pytest.raises(UserError, match=r"no variable 'groundTruth' in .*12\.mat"):
        read_boundaries(path)
    write_truth(path, (np.zeros((5, 4), np.uint8),))
    with pytest.raises(UserError, match=r"12\.mat has \(5, 4\) pixels"):
        build(root)[0]


def test_read_image_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not found.*none\.png"):
        read_image(tmp_path / "none.png")
    with pytest.raises(UserError, match=r"folder"):
        read_image(tmp_path)
    cv2.imwrite(str(tmp_path / "grey.png"), np.array([[0, 9]], np.uint8))
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), [[[0, 0, 0], [9, 9, 9]]])


def test_real_images(shared: Path) -> None:
    folder = shared / "data" / "BSDS500"
    if not folder.is_dir():
        pytest.skip(f"BSDS500 not found at {folder}")
    train, val = build(folder), build(folder / "data", "val")
    assert (len(train), len(val)) == (200, 100)
    counts = set()
    for source in (train, val):
        for i in range(0, len(source), 7):
            element = source[i]
            assert element["image"].shape[:2] in {(321, 481), (481, 321)}
            assert element["boundaries"].shape == element["image"].shape[:2]
            assert set(np.unique(element["boundaries"])) == {-1.0, 0.0, 1.0}
            annotators = source.annotators(i)
            counts.add(len(annotators))
            votes = sum(a.astype(int) for a in annotators)
            np.testing.assert_array_equal(element["boundaries"] == 0, votes == 0)
    assert counts <= set(range(4, 10))
    soft = build(folder, label="soft")[0]["boundaries"]
    assert soft.min() == 0
    assert soft.max() <= 1
