"""PASCAL_MT, NYUD_MT and FSV: small folders in their official layouts."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from dynpix_jax.cli.main import main
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.sections import unread
from dynpix_jax.core.source import Source
from dynpix_jax.data import pascal_multitask
from dynpix_jax.data.multitask import boundaries_between, unit_normals
from dynpix_jax.data.nyud_multitask import NyudMultitaskConfig
from dynpix_jax.data.sources import build_source
from tests.data.multitask_files import SHAPE, write_fsv, write_nyud, write_pascal
from tests.data.spec_check import check_source

WRITE = {"pascal_multitask": write_pascal, "nyud_multitask": write_nyud, "fsv": write_fsv}


def build(name: str, root: Path, split: str = "train", **options: object) -> Source:
    return build_source({"name": name, "root": str(root), **options}, split)


def test_pascal(tmp_path: Path) -> None:
    source = build("pascal_multitask", write_pascal(tmp_path))
    check_source(source)
    assert [source.name(i) for i in range(len(source))] == ["a", "b"]
    person, other = source[0], source[1]
    np.testing.assert_array_equal(person["segmentation"], [[255] * 8, *[[15] * 4 + [0] * 4] * 5])
    np.testing.assert_array_equal(other["segmentation"], person["segmentation"])
    # Rows: an eyebrow, a neck, a forearm, a foot; the horse's muzzle is no part of a person.
    np.testing.assert_array_equal(person["parts"][:, 0], [1, 2, 4, 6, 0, 0])
    assert (other["parts"] == 255).all()
    np.testing.assert_array_equal(person["saliency"].sum(0), [0, 0, 2, 2, 0, 0, 0, 0])
    # Of unit length, towards the camera, on the person alone, and not where none is stored.
    np.testing.assert_allclose(person["normals"][3, 2], [0.6, 0.0, -0.8], atol=0.01)
    assert not person["normals"][:, 4:].any()
    assert not person["normals"][1, 1].any()
    # Two columns have a Laplacian; thinning leaves one of them.
    np.testing.assert_array_equal(person["boundaries"].sum(1)[1:-1], [1, 1, 1, 1])
    assert not person["boundaries"][:, [0, 1, 2, 5, 6, 7]].any()
    few = build("pascal_multitask", tmp_path, fields=("parts",))[0]
    assert set(few) == {"image", "parts", "index"}


def test_pascal_labels_of_another_size(tmp_path: Path) -> None:
    root = write_pascal(tmp_path)
    cv2.imwrite(str(root / "sal_distill" / "a.png"), np.array([[0, 255]], np.uint8))
    np.testing.assert_array_equal(build("pascal_multitask", root)[0]["saliency"], [[0] * 4 + [1] * 4] * 6)


def test_every_part_of_people_has_a_place() -> None:
    """PASCAL-Part's 24 names, as they are in its files."""
    single = ("hair", "head", "mouth", "neck", "nose", "torso")
    pairs = ("ear", "ebrow", "eye", "foot", "hand", "larm", "lleg", "uarm", "uleg")
    assert {*single, *pairs} == set(pascal_multitask.PART_OF)
    assert len(single) + 2 * len(pairs) == 24
    ids = pascal_multitask.CLASSES_WITH_NORMALS
    assert tuple(sorted(set(ids))) == ids
    # Person, wall, sofa and TV monitor are among them; sky, grass, horse and "unknown" are not.
    assert {284, 440, 368, 427} < set(ids)
    assert not {360, 187, 207, 431} & set(ids)


@pytest.mark.parametrize("later", [False, True])
def test_nyud(tmp_path: Path, later: bool) -> None:
    root = write_nyud(tmp_path, later=later)
    source = build("nyud_multitask", root)
    check_source(source)
    assert (source.name(0), build("nyud_multitask", root, "val").name(0)) == ("0001", "0002")
    element = source[0]
    np.testing.assert_array_equal(element["segmentation"][0, :3], [0, 1, 40])
    assert len(source.spec.fields["segmentation"].classes) == 41
    np.testing.assert_array_equal(element["boundaries"].sum(0), [0, 0, 0, 6, 0, 0, 0, 0])
    np.testing.assert_allclose(element["depth"][0, :2], [0, 2.5])
    np.testing.assert_allclose(element["normals"][2, 2], [0.0, -0.6, -0.8], atol=0.02)
    without = build("nyud_multitask", root, classes=40)
    check_source(without)
    np.testing.assert_array_equal(without[0]["segmentation"][0, :3], [255, 0, 39])
    assert without.spec.fields["segmentation"].classes[0] == "wall"


def test_fsv(tmp_path: Path) -> None:
    root = write_fsv(tmp_path)
    source = build("fsv", root)
    check_source(source)
    assert [source.name(i) for i in range(len(source))] == ["001/0000", "001/0001"]
    element = source[1]
    np.testing.assert_array_equal(element["segmentation"][0], [0, 0, 1, 2, 0, 0, 0, 0])
    # 1, 32 x 256 and 65536 in units of 1 / 8192.
    np.testing.assert_allclose(element["depth"][1, :4], [1 / 8192, 1, 8, 0])
    np.testing.assert_allclose(element["albedo"][3, 3], [1, 0.2, 0], rtol=1e-6)
    assert len(build("fsv", root, "test")) == 3
    names = root / "gt_sets" / "gta_test.txt"
    names.write_text("".join(f"{i:05d}\n" for i in range(12000)))
    test = build("fsv", root, "test")
    assert (len(test), test.name(1)) == (6000, "00002")  # every second: 12000 // 5000
    assert len(build("fsv", root, "test", every_test_image=True)) == 12000


def test_normals_face_the_camera() -> None:
    stored = np.array([[[0.0, 0.0, 2.0], [1.2, 0.0, 1.6], [0.1, 0.1, 0.1]]])
    np.testing.assert_allclose(unit_normals(stored), [[[0, 0, -1], [0.6, 0, -0.8], [0, 0, 0]]], atol=1e-6)
    np.testing.assert_allclose(unit_normals(-stored)[0, 1], [-0.6, 0, -0.8], atol=1e-6)
    # As released: any length but 0 is a direction.
    released = unit_normals(np.concatenate([stored, 0 * stored]), 0.0)
    np.testing.assert_allclose(released[0, 2], np.array([1, 1, -1]) / 3**0.5, atol=1e-6)
    assert not released[1].any()


def test_valid_normals_of_nyud_as_released(tmp_path: Path) -> None:
    root = write_nyud(tmp_path)
    picture = np.full((*SHAPE, 3), 128, np.uint8)
    picture[:, 4:] = (128, 51, 26)
    Image.fromarray(picture).save(root / "normals" / "0001.jpg", quality=95)
    counted = []
    for valid_normals in ("long", "astmt"):
        source = build("nyud_multitask", root, fields=("normals",), valid_normals=valid_normals)
        counted.append((np.linalg.norm(source[0]["normals"], axis=-1) > 0.5).mean())
    assert counted[0] < 0.8
    assert counted[1] == 1.0
    options = NyudMultitaskConfig("x", ("depth",), valid_normals="astmt")
    assert [path for path, _, _ in unread(options)] == ["valid_normals"]


def test_boundaries_of_nothing_and_of_a_corner() -> None:
    assert not boundaries_between(np.full((5, 7), 3)).any()
    ids = np.zeros((9, 9), int)
    ids[4:, 4:] = 300
    lines = boundaries_between(ids)
    # Thin, and nowhere more than a pixel from the change.
    assert not (lines[1:, 1:] * lines[1:, :-1] * lines[:-1, 1:] * lines[:-1, :-1]).any()
    assert not lines[:3].any()
    assert not lines[:, :3].any()
    assert not lines[6:, 6:].any()
    assert lines.sum() >= 8


@pytest.mark.parametrize(
    ("name", "gone", "message"),
    [
        ("pascal_multitask", "ImageSets/Context/train.txt", r"Context.train\.txt; get PASCAL_MT\.tgz"),
        ("pascal_multitask", "JPEGImages/a.jpg", r"JPEGImages.a\.jpg; get PASCAL_MT"),
        ("pascal_multitask", "semseg/VOC12/a.png", r"pascal-context.a\.png; get"),
        ("pascal_multitask", "human_parts/a.mat", r"human_parts.a\.mat; get"),
        ("nyud_multitask", "gt_sets/train.txt", r"gt_sets.train\.txt; get NYUD_MT\.tgz"),
        ("nyud_multitask", "depth/0001.mat", r"depth.0001\.mat, nor 0001\.npy; get"),
        ("fsv", "gt_sets/gta_train.txt", r"gta_train\.txt; get the GTA V part"),
        ("fsv", "gta_train/001/0000_albedo.webp", r"0000_albedo\.webp; get"),
    ],
)
def test_missing_files_are_named(name: str, gone: str, message: str, tmp_path: Path) -> None:
    root = WRITE[name](tmp_path)
    (root / gone).unlink()
    with pytest.raises(UserError, match=rf"{name}: file not found: .*{message}"):
        build(name, root)[0]


def test_wrong_things_are_named(tmp_path: Path) -> None:
    for name in WRITE:
        with pytest.raises(UserError, match=rf"{name}: folder not found: .*none; get"):
            build(name, tmp_path / "none")
        with pytest.raises(UserError, match=r"no split 'tain'; did you mean 'train'"):
            build(name, tmp_path, "tain")
        with pytest.raises(UserError, match=r"fields: unknown label 'segmentaton'; did you mean"):
            build(name, tmp_path, fields=("segmentaton",))
    pascal = write_pascal(tmp_path / "pascal")
    cv2.imwrite(str(pascal / "semseg" / "VOC12" / "a.png"), np.full(SHAPE, 21, np.uint8))
    with pytest.raises(UserError, match=r"a\.png has the id 21; expected 0 to 20 or 255"):
        build("pascal_multitask", pascal)[0]
    savemat(pascal / "human_parts" / "a.mat", {"anno": {"objects": {"class": "x"}}})
    with pytest.raises(UserError, match=r"anno in .*a\.mat is not what PASCAL-Part has"):
        build("pascal_multitask", pascal, fields=("parts",))[0]
    nyud = write_nyud(tmp_path / "nyud", later=True)
    np.save(nyud / "depth" / "0001.npy", np.zeros(3))
    with pytest.raises(UserError, match=r"0001\.npy has shape \(3,\); expected 2 dimensions"):
        build("nyud_multitask", nyud)[0]
    cv2.imwrite(str(nyud / "segmentation" / "0001.png"), np.full(SHAPE, 41, np.uint8))
    with pytest.raises(UserError, match=r"0001\.png has the id 41; expected 0 to 40"):
        build("nyud_multitask", nyud)[0]
    (nyud / "gt_sets" / "train.txt").write_text("\n")
    with pytest.raises(UserError, match=r"train\.txt is empty"):
        build("nyud_multitask", nyud)


@pytest.mark.parametrize("name", WRITE)
def test_prepare(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Packed and read again: the same elements."""
    root, out = WRITE[name](tmp_path / "data"), tmp_path / "packed"
    call = ["prepare", name, "--source", str(root), "--out", str(out), "--split", "train", "--workers", "0"]
    assert main(call) == 0
    assert "train: " in capsys.readouterr().out
    source = build(name, root)
    shutil.move(root, tmp_path / "elsewhere")
    packed = build_source({"name": "packed", "root": str(out)}, "train")
    source = build(name, tmp_path / "elsewhere")
    assert packed.spec == source.spec
    for index in range(len(source)):
        assert packed.name(index) == source.name(index)
        for field, value in source[index].items():
            np.testing.assert_array_equal(packed[index][field], value)
