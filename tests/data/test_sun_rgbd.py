"""SUN RGB-D: folders and .mat files as they are published, with depths and labels worked out by hand."""

from __future__ import annotations

from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from scipy.io import savemat

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.source import Source
from dynpix_jax.data.sources import build_source
from dynpix_jax.data.sun_rgbd import CLASSES
from tests.data.matlab_v73 import new_v73
from tests.data.spec_check import check_source

PREFIX = "/n/fs/sun3d/data/"
FOLDERS = ("SUNRGBD/kv1/NYUdata/NYU0001", "SUNRGBD/xtion/sun3ddata/hotel/0001", "SUNRGBD/kv2/align/0003")


def build(root: Path, split: str = "train", **options: object) -> Source:
    return build_source({"name": "sun_rgbd", "root": str(root), **options}, split)


def cells(values: list[object]) -> np.ndarray:
    out = np.empty((1, len(values)), object)
    out[0] = values
    return out


def write_labels(path: Path, labels: list[np.ndarray]) -> None:
    """A struct array of version 7.3: a group whose field holds a reference for each element."""
    with new_v73(path) as file:
        references = []
        for number, label in enumerate(labels):
            file[f"#refs#/{number}"] = label.T
            references.append([file[f"#refs#/{number}"].ref])
        file["SUNRGBD2Dseg/seglabel"] = np.array(references, dtype=h5py.ref_dtype)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    meta = []
    for number, folder in enumerate(FOLDERS):
        image = np.full((3, 4, 3), number, np.uint8)
        # 1234 mm is 9872 as stored; 9000 mm needs the bits above: 72000 - 65536 + 1 = 6465.
        depth = np.full((3, 4), 9872, np.uint16)
        depth[0, :2] = 0, 6465
        for kind, picture in (("image", image), ("depth", depth), ("depth_bfx", depth + 8)):
            (tmp_path / folder / kind).mkdir(parents=True)
            cv2.imwrite(str(tmp_path / folder / kind / f"{kind[:5]}_{number}.png"), picture)
        meta.append(
            (f"{PREFIX}{folder}/image/image_{number}.png", f"image_{number}.png", f"depth_{number}.png")
        )
    toolbox = tmp_path / "SUNRGBDtoolbox"
    for folder in ("Metadata", "traintestSUNRGBD"):
        (toolbox / folder).mkdir(parents=True)
    structs = np.array(meta, [(name, object) for name in ("rgbpath", "rgbname", "depthname")])
    savemat(toolbox / "Metadata" / "SUNRGBDMeta.mat", {"SUNRGBDMeta": structs})
    splits = {
        "alltrain": cells([f"{PREFIX}{FOLDERS[2]}", f"{PREFIX}{FOLDERS[0]}/"]),
        "alltest": cells([PREFIX + FOLDERS[1]]),
    }
    savemat(toolbox / "traintestSUNRGBD" / "allsplit.mat", splits)
    labels = [np.array([[0, 1, 37, number + 1]] * 3, np.uint8) for number in range(3)]
    write_labels(toolbox / "Metadata" / "SUNRGBD2Dseg.mat", labels)
    return tmp_path


def test_elements(root: Path) -> None:
    train, test = build(root), build(root, "test")
    assert [train.name(i) for i in range(len(train))] == [FOLDERS[0], FOLDERS[2]]
    assert [test.name(i) for i in range(len(test))] == [FOLDERS[1]]
    check_source(train)
    element = train[1]
    assert (element["image"] == 2).all()
    np.testing.assert_array_equal(element["segmentation"], [[255, 0, 36, 2]] * 3)
    assert element["segmentation"].dtype == np.int32
    np.testing.assert_allclose(element["depth"][0], [0, 9, 1.234, 1.234], rtol=1e-6)
    assert element["depth"].dtype == np.float32
    assert element["index"] == 1
    filled = build(root, depth="filled", fields=("depth",))[0]
    np.testing.assert_allclose(filled["depth"][1], 1.235, rtol=1e-6)
    assert set(filled) == {"image", "depth", "index"}
    assert (CLASSES[0], CLASSES[36]) == ("wall", "bag")


def test_missing_and_wrong_things_are_named(root: Path) -> None:
    toolbox = root / "SUNRGBDtoolbox"
    with pytest.raises(UserError, match=r"folder not found: .*SUNRGBD; get SUNRGBD\.zip"):
        build(toolbox)
    with pytest.raises(UserError, match=r"no split 'val'"):
        build(root, "val")
    labels = toolbox / "Metadata" / "SUNRGBD2Dseg.mat"
    write_labels(labels, [np.full((3, 4), 38, np.uint8)] * 3)
    with pytest.raises(UserError, match=r"label 38 of SUNRGBD/kv1/NYUdata/NYU0001 in .*expected 0 to 37"):
        build(root)[0]
    write_labels(labels, [np.zeros((4, 4), np.uint8)] * 3)
    with pytest.raises(UserError, match=r"SUNRGBD2Dseg\.mat has \(4, 4\) pixels, its image .*\(3, 4\)"):
        build(root)[0]
    write_labels(labels, [np.zeros((3, 4), np.uint8)] * 2)
    with pytest.raises(UserError, match=r"SUNRGBD2Dseg\.mat has 2 labels, .*SUNRGBDMeta\.mat 3 images"):
        build(root)
    labels.unlink()
    assert len(build(root, fields=("depth",))) == 2
    with pytest.raises(UserError, match=r"file not found: .*SUNRGBD2Dseg\.mat.*rgbd\.cs\.princeton\.edu"):
        build(root)
    (root / FOLDERS[0] / "depth" / "depth_0.png").unlink()
    with pytest.raises(UserError, match=r"not found: .*depth_0\.png"):
        build(root, fields=("depth",))[0]
    savemat(toolbox / "Metadata" / "SUNRGBDMeta.mat", {"SUNRGBDMeta": {"a": 1}})
    with pytest.raises(UserError, match=r"no rgbpath, rgbname, depthname in SUNRGBDMeta of"):
        build(root, fields=("depth",))
