"""NYUv2: a v7.3 .mat file and extracted folders, written here, with values worked out by hand."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.source import Source
from dynpix_jax.data.nyu_classes import NYU40, NYU40_PALETTE
from dynpix_jax.data.sources import build_source
from tests.data.matlab_v73 import new_v73
from tests.data.spec_check import check_source

HEIGHT, WIDTH = 480, 640


def build(root: Path, split: str = "train", **options: object) -> Source:
    return build_source({"name": "nyuv2", "root": str(root), **options}, split)


def write_labelled(path: Path, count: int = 3) -> None:
    """Pixel (y, x) of image n is (n, y % 256, x % 256), its label x % 5, its depth n + 1, in column 100 0."""
    y, x = np.indices((HEIGHT, WIDTH))
    with new_v73(path) as file:
        images = np.stack([np.stack([np.full_like(x, n), y % 256, x % 256]) for n in range(count)])
        # MATLAB's (y, x, channel, n) is (n, channel, x, y) in HDF5.
        file["images"] = images.astype(np.uint8).transpose(0, 1, 3, 2)
        file["labels"] = np.broadcast_to((x % 5).T, (count, WIDTH, HEIGHT)).astype(np.uint16)
        depths = np.ones((count, WIDTH, HEIGHT), np.float32) * np.arange(1, count + 1)[:, None, None]
        file["depths"] = depths.astype(np.float32)
        raw = depths.copy()
        raw[:, 100] = 0
        file["rawDepths"] = raw.astype(np.float32)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("nyu")
    write_labelled(root / "nyu_depth_v2_labeled.mat")
    savemat(root / "splits.mat", {"trainNdxs": [[3], [1]], "testNdxs": [[2]]})
    # Label 1 is class 40, 2 is 3, 3 is 1, 4 is 12.
    savemat(root / "classMapping40.mat", {"mapClass": np.array([[40, 3, 1, 12]], np.uint8)})
    return root


def test_published_file(published: Path) -> None:
    train, test = build(published), build(published, "test")
    assert [train.name(0), train.name(1), test.name(0)] == ["0003", "0001", "0002"]
    check_source(train)
    element = train[0]
    # Row 45 and column 40 of the full picture are the first that are left.
    assert element["image"].shape == (425, 560, 3)
    np.testing.assert_array_equal(element["image"][0, 0], [2, 45, 40])
    np.testing.assert_array_equal(element["image"][-1, -1], [2, 469 % 256, 599 % 256])
    np.testing.assert_array_equal(element["segmentation"][7, :5], [255, 39, 2, 0, 11])
    assert element["segmentation"].dtype == np.int32
    depth = element["depth"]
    assert depth.dtype == np.float32
    assert depth.shape == (425, 560)
    assert (depth[:, 60] == 0).all()
    assert (depth[:, 61] == 3).all()
    # A wall, of which the gap is invalid.
    np.testing.assert_allclose(element["normals"][100, 61], [0, 0, -1], atol=1e-6)
    assert not element["normals"][:, 60].any()
    assert (build(published, fields=("depth",), depth="filled")[0]["depth"] == 3).all()
    assert test[0]["index"] == 0
    assert (test[0]["image"][..., 0] == 1).all()


def test_options(published: Path) -> None:
    whole = build(published, crop=False, fields=("normals",))[1]
    assert set(whole) == {"image", "normals", "index"}
    np.testing.assert_array_equal(whole["image"][479, 639], [0, 479 % 256, 639 % 256])
    assert whole["normals"].shape == (480, 640, 3)
    with pytest.raises(UserError, match=r"fields: unknown label 'normal'; did you mean 'normals'"):
        build(published, fields=("normal",))
    assert build(published).spec.fields["segmentation"].classes == NYU40
    assert len(NYU40) == len(set(NYU40)) == len(set(NYU40_PALETTE)) == 40
    assert NYU40_PALETTE[:3] == ((128, 0, 0), (0, 128, 0), (128, 128, 0))


def test_camera_moves_with_the_crop(tmp_path: Path) -> None:
    """A floor that rises to the horizon has one normal everywhere only about the right centre."""
    v = np.arange(HEIGHT)[:, None] - 252.73617
    depth = np.where(v > 20, 1000 * 1.4 * 519.46961 / np.maximum(v, 1), 0).repeat(WIDTH, axis=1)
    crop = np.round(depth).astype(np.uint16)[45:470, 40:600]
    for folder in ("rgb", "depth"):
        (tmp_path / folder).mkdir()
    cv2.imwrite(str(tmp_path / "rgb" / "a.png"), np.zeros((425, 560, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "depth" / "a.png"), crop)
    (tmp_path / "test.txt").write_text("a\n")
    normals = build(tmp_path, "test", fields=("normals",))[0]["normals"]
    assert (normals[300:, :, 1] < -0.9999).all()


def test_extracted_folders(tmp_path: Path) -> None:
    for folder in ("images", "labels", "depth"):
        (tmp_path / folder).mkdir()
    labels = np.zeros((425, 560), np.uint8)
    labels[0, :3] = 1, 40, 0
    for name, suffix in (("img_5001", "png"), ("img_5002", "jpg")):
        cv2.imwrite(str(tmp_path / "images" / f"{name}.{suffix}"), np.full((425, 560, 3), 9, np.uint8))
        cv2.imwrite(str(tmp_path / "depth" / f"{name}.png"), np.full((425, 560), 2345, np.uint16))
    cv2.imwrite(str(tmp_path / "labels" / "img_5001.png"), labels)
    savemat(tmp_path / "labels" / "img_5002.mat", {"segmentation": labels})
    (tmp_path / "train.txt").write_text("images/img_5001.png labels/img_5001.png\nimg_5002\n\n")
    source = build(tmp_path)
    assert [source.name(i) for i in range(len(source))] == ["img_5001", "img_5002"]
    for element in (source[0], source[1]):
        np.testing.assert_array_equal(element["segmentation"][0, :4], [0, 39, 255, 255])
        assert element["image"].shape == (425, 560, 3)
        assert element["depth"][3, 3] == np.float32(2.345)
        np.testing.assert_allclose(element["normals"][200, 300], [0, 0, -1], atol=1e-5)
    (tmp_path / "depth_filled").mkdir()
    cv2.imwrite(str(tmp_path / "depth_filled" / "img_5001.png"), np.full((425, 560), 3000, np.uint16))
    depths = [build(tmp_path, fields=("depth",), depth=kind)[0]["depth"][3, 3] for kind in ("raw", "filled")]
    assert depths == [np.float32(2.345), 3]
    labels[5, 5] = 41
    cv2.imwrite(str(tmp_path / "labels" / "img_5001.png"), labels)
    with pytest.raises(UserError, match=r"img_5001\.png has the id 41; expected 0 \(unlabelled\) to 40"):
        source[0]
    cv2.imwrite(str(tmp_path / "labels" / "img_5001.png"), np.zeros((100, 560), np.uint8))
    with pytest.raises(UserError, match=r"segmentation of img_5001 has \(100, 560\) pixels; expected"):
        source[0]
    (tmp_path / "images" / "img_5002.jpg").unlink()
    with pytest.raises(UserError, match=r"file not found: .*img_5002\.png.*nyu_depth_v2"):
        source[1]
    (tmp_path / "depth").rename(tmp_path / "tiefe")
    with pytest.raises(UserError, match=r"none of the folders depth_raw, depth, Depth in "):
        build(tmp_path)


def test_missing_and_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"neither nyu_depth_v2_labeled\.mat nor train\.txt in .*cs\.nyu\.edu"
    ):
        build(tmp_path)
    with pytest.raises(UserError, match=r"no split 'val'; valid: test, train"):
        build(tmp_path, "val")
    labelled = tmp_path / "nyu_depth_v2_labeled.mat"
    labelled.write_bytes(b"MATLAB 5.0 MAT-file")
    with pytest.raises(UserError, match=r"file not found: .*classMapping40\.mat.*nyuv2-meta-data"):
        build(tmp_path)
    savemat(tmp_path / "classMapping40.mat", {"mapClass": [[1, 2, 41]]})
    with pytest.raises(UserError, match=r"mapClass in .*classMapping40\.mat has 1 to 41; expected 1 to 40"):
        build(tmp_path)
    savemat(tmp_path / "classMapping40.mat", {"mapClass": [[1, 40]]})
    with pytest.raises(UserError, match=r"file not found: .*splits\.mat.*indoor_seg_sup"):
        build(tmp_path)
    savemat(tmp_path / "splits.mat", {"train": [[1]]})
    with pytest.raises(UserError, match=r"no variable 'trainNdxs' in .*splits\.mat"):
        build(tmp_path)
    savemat(tmp_path / "splits.mat", {"trainNdxs": [[4]]})
    with pytest.raises(UserError, match=r"labeled\.mat cannot be read as a \.mat file of version 7\.3"):
        build(tmp_path)
    labelled.unlink()
    write_labelled(labelled, 1)
    with pytest.raises(UserError, match=r"splits\.mat has numbers outside of the 1 images"):
        build(tmp_path)
    savemat(tmp_path / "splits.mat", {"trainNdxs": [[1]]})
    with pytest.raises(UserError, match=r"label 4 of image 1 .* is not in classMapping40\.mat, which has 2"):
        build(tmp_path)[0]
    labelled.unlink()
    with new_v73(labelled) as file:
        file["images"] = np.zeros((1, 3, 4, 4), np.uint8)
    with pytest.raises(UserError, match=r"no variable 'rawDepths' in .*labeled\.mat"):
        build(tmp_path)
