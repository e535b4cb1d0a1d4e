"""7-Scenes: both layouts in small, and real frames where they are."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.source import Source
from dynpix_jax.data.seven_scenes import align_depth
from dynpix_jax.data.sources import build_source
from tests.data.spec_check import check_source

CAMERA = np.array([[585.0, 0, 320], [0, 585, 240], [0, 0, 1]])


def write_frame(folder: Path, number: int, depth: np.ndarray, suffix: str = "png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    image = np.full((*depth.shape, 3), number, np.uint8)
    cv2.imwrite(str(folder / f"frame-{number:06d}.color.{suffix}"), image)
    cv2.imwrite(str(folder / f"frame-{number:06d}.depth.png"), depth.astype(np.uint16))


def flat(value: int = 1500) -> np.ndarray:
    depth = np.full((24, 32), value)
    depth[0, 0], depth[0, 1] = 65535, 0
    return depth


def build(root: Path, split: str = "train", **options: object) -> Source:
    options = {"align": False, **options}
    return build_source({"name": "seven_scenes", "root": str(root), **options}, split)


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """Two scenes with two sequences, three frames each."""
    for scene, depth in (("chess", 1500), ("fire", 2500)):
        for sequence in ("seq-01", "seq-03"):
            for frame in range(3):
                write_frame(tmp_path / scene / sequence, frame, flat(depth))
        (tmp_path / scene / "TrainSplit.txt").write_text("sequence3\n")
        (tmp_path / scene / "TestSplit.txt").write_text("sequence1\r\n\n")
    return tmp_path


def test_published_layout(official: Path) -> None:
    train, test = build(official), build(official, "test")
    assert [train.name(i) for i in (0, 2, 3)] == [
        "chess/seq-03/frame-000000",
        "chess/seq-03/frame-000002",
        "fire/seq-03/frame-000000",
    ]
    assert (len(train), len(test)) == (6, 6)
    check_source(train)
    assert test.name(0) == "chess/seq-01/frame-000000"
    assert build(official / "fire").name(1) == "seq-03/frame-000001"
    assert [build(official, every=2).name(i)[-1] for i in range(4)] == ["0", "2", "0", "2"]
    element = train[4]
    assert element["image"][0, 0, 0] == 1
    assert element["index"] == 4
    depth = element["depth"]
    assert (depth.dtype, depth[0, 0], depth[0, 1], depth[5, 5]) == (np.float32, 0, 0, np.float32(2.5))
    np.testing.assert_allclose(element["normals"][5, 5], [0, 0, -1], atol=1e-6)
    assert not element["normals"][0, :2].any()
    assert set(build(official, fields=("depth",))[0]) == {"image", "depth", "index"}


def test_split_folders_and_camera(tmp_path: Path) -> None:
    """A floor 1 m below a camera of f = 300 that looks up, of which the file tells: z = 300 / (v + 80)."""
    v = np.arange(24)[:, None]
    depth = np.where(v > 14, 300_000 / (v + 80), 0).repeat(32, axis=1)
    for split in ("train", "val"):
        write_frame(tmp_path / split, 7, np.round(depth), "jpg")
    (tmp_path / "camera-intrinsics.txt").write_text("300 0 16\n0 300 -80\n0 0 1\n")
    source = build(tmp_path, "val")
    assert source.name(0) == "val/frame-000007"
    normals = source[0]["normals"]
    assert (normals[15:, :, 1] < -0.99).all()
    assert not normals[:15].any()


def test_missing_and_wrong_things_are_named(official: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"folder not found: .*nowhere.*microsoft\.com"):
        build(tmp_path / "nowhere")
    with pytest.raises(
        UserError, match=r"neither a folder train nor a scene with TrainSplit.*microsoft\.com"
    ):
        build(official / "chess" / "seq-01")
    with pytest.raises(UserError, match=r"published splits, train and test, and no folder val"):
        build(official, "val")
    with pytest.raises(UserError, match=r"source\.fields: unknown label 'dpeth'; did you mean 'depth'"):
        build(official, fields=("dpeth",))
    with pytest.raises(UserError, match=r"source\.every: 0; expected at least 1"):
        build(official, every=0)
    sequence = official / "chess" / "seq-03"
    (sequence / "frame-000000.depth.png").unlink()
    with pytest.raises(UserError, match=r"file not found: .*seq-03.frame-000000\.depth\.png"):
        build(official)[0]
    cv2.imwrite(str(sequence / "frame-000001.depth.png"), np.zeros((24, 32), np.uint8))
    with pytest.raises(
        UserError, match=r"frame-000001\.depth\.png has mode L; expected one channel of uint16"
    ):
        build(official)[1]
    (official / "chess" / "camera-intrinsics.txt").write_text("585 0 320")
    with pytest.raises(UserError, match=r"intrinsics\.txt holds no 3 x 3 camera matrix"):
        build(official)[2]
    (official / "chess" / "TrainSplit.txt").write_text("sequence9\n")
    with pytest.raises(UserError, match=r"folder not found: .*seq-09"):
        build(official)
    (official / "chess" / "TrainSplit.txt").write_text("all\n")
    with pytest.raises(UserError, match=r"TrainSplit\.txt has the line 'all'; expected sequence1"):
        build(official)


def test_align_depth_moves_a_wall_by_its_parallax() -> None:
    """A camera 10 cm to the right sees a wall at 2 m, f = 100, five pixels to the left."""
    camera = np.array([[100.0, 0, 20], [0, 100, 15], [0, 0, 1]])
    motion = np.hstack([np.eye(3), [[-0.1], [0], [0]]])
    depth = np.zeros((30, 40), np.float32)
    depth[:, 20:30] = 2.0
    moved = align_depth(depth, camera, camera, motion)
    expected = np.zeros_like(depth)
    expected[:, 15:25] = 2.0
    np.testing.assert_array_equal(moved, expected)
    depth[:, 30:33] = 1.0  # moves by ten, to 20..22, before the wall
    expected[:, 20:23] = 1.0
    np.testing.assert_array_equal(align_depth(depth, camera, camera, motion), expected)
    identity = np.eye(3, 4)
    np.testing.assert_array_equal(align_depth(depth, camera, camera, identity), depth)


def edge_contrast(image: np.ndarray, depth: np.ndarray) -> float:
    """Mean brightness gradient at the jumps of the depth: greater when depth and picture are aligned."""
    grey = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (0, 0), 1.0).astype(np.float32)
    gradient = np.minimum(np.hypot(cv2.Sobel(grey, 5, 1, 0), cv2.Sobel(grey, 5, 0, 1)), 100)
    square = np.ones((3, 3), np.uint8)
    nearest = cv2.erode(np.where(depth > 0, depth, 99).astype(np.float32), square)
    jumps = (cv2.dilate(depth, square) - nearest > 0.1) & (depth > 0)
    return float(gradient[jumps].mean())


def test_real_frames(shared: Path) -> None:
    folder = shared / "data" / "7scenes_kitchen"
    if not folder.is_dir():
        pytest.skip(f"7-Scenes not found at {folder}")
    train, val = build(folder, align=True), build(folder, "val", align=True)
    assert (len(train), len(val)) == (60, 18)
    np.testing.assert_array_equal(train.intrinsics(0), [[519, 0, 320], [0, 519, 240], [0, 0, 1]])
    np.testing.assert_array_equal(build(folder).intrinsics(0), CAMERA)
    element = val[3]
    assert element["image"].shape == (480, 640, 3)
    length = np.linalg.norm(element["normals"], axis=-1)
    np.testing.assert_allclose(length[length > 0], 1, atol=1e-5)
    assert (length > 0).mean() > 0.6
    # A kitchen: everything between half a metre and six.
    depth = element["depth"][element["depth"] > 0]
    assert depth.min() > 0.3
    assert depth.max() < 7
    moved, stored = (
        np.mean([edge_contrast(e["image"], e["depth"]) for e in (source[i] for i in range(0, 18, 6))])
        for source in (
            build(folder, "val", align=True, fields=("depth",)),
            build(folder, "val", fields=("depth",)),
        )
    )
    assert moved > 1.15 * stored
