"""7-Scenes: depth and surface normals of RGB-D videos, read from its folders.

Layout, one of
  ROOT/SCENE/{TrainSplit,TestSplit}.txt and ROOT/SCENE/seq-01/frame-000000.{color,depth}.png: as published,
    each sequence unpacked; ROOT may also be one SCENE. It has the splits `train` and `test`.
  ROOT/{train,val,test}/frame-000000.{color,depth}.png: frames chosen by somebody.
Pictures may be .jpg. Depth is 16-bit, millimetres, 0 and 65535 invalid. A file camera-intrinsics.txt (3 x 3)
in ROOT or SCENE is that of the depth camera; without one it is the published f = 585, centre (320, 240).

Source: Shotton, Glocker, Zach, Izadi, Criminisi, Fitzgibbon, "Scene coordinate regression forests for camera
relocalization in RGB-D images", CVPR 2013.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.source import DEPTH, NORMALS, Element
from dynpix_jax.data.base import FileSource, check_fields
from dynpix_jax.data.files import need_file, need_folder, same_size
from dynpix_jax.data.images import read_image, read_map
from dynpix_jax.data.normals import backproject, normals_from_depth

WHERE_TO_GET = (
    "get the scenes from https://www.microsoft.com/en-us/research/project/rgb-d-dataset-7-scenes/ and unpack "
    "the sequences in them (expected SCENE/TrainSplit.txt and SCENE/seq-01/frame-000000.color.png), or put "
    "frames into folders train, val and test"
)
INTRINSICS = np.array([[585.0, 0, 320], [0, 585, 240], [0, 0, 1]])
# The colour camera, f = 519, and the map of points to it. The data set gives neither. The rotation is that of
# another camera of the kind, which relocalization benchmarks use (LIRIS, Kinect calibration). Half of its
# offset, and f, are fitted here: so the jumps of the depth lie best on the edges of the kitchen's pictures.
COLOUR_INTRINSICS = np.array([[519.0, 0, 320], [0, 519, 240], [0, 0, 1]])
DEPTH_TO_COLOUR = np.array(
    [
        [0.99996518, 0.00267651, -0.00790410, -0.0127795],
        [-0.00274093, 0.99996303, -0.00815045, 0.0000505],
        [0.00788199, 0.00817183, 0.99993555, 0.0010159],
    ]
)
FIELDS = {"depth": DEPTH, "normals": NORMALS}
_LISTS = {"train": "TrainSplit.txt", "test": "TestSplit.txt"}
_COLOURS = ("frame-*.color.png", "frame-*.color.jpg")


@dataclasses.dataclass(frozen=True)
class SevenScenesConfig:
    """Options of the source.

    Attributes:
        root: The folder of all scenes, of one scene, or of frames in split folders.
        fields: The labels to make, of `depth` and `normals`.
        every: Take each `every`-th frame of a sequence; neighbouring frames of a video are nearly the same.
        align: Move the depth from its own camera to that of the picture, or leave it as it is stored, which
            is up to 30 pixels off.
    """

    root: str
    fields: tuple[str, ...] = ("depth", "normals")
    every: int = 1
    align: bool = True

    def __post_init__(self) -> None:
        check_fields(self.fields, FIELDS)
        if self.every < 1:
            raise ValueError(f"every: {self.every}; expected at least 1")


class SevenScenes(FileSource[SevenScenesConfig]):
    """Elements: `image` uint8 (H, W, 3), the labels asked for, `index` int64.

    `depth` float32 (H, W), metres, 0 = invalid; `normals` float32 (H, W, 3), unit vectors of planes fitted to
    it (`normals_from_depth`), zero = invalid.
    """

    Config = SevenScenesConfig
    splits = ("train", "val", "test")
    data_set = "seven_scenes"
    where_to_get = WHERE_TO_GET
    licence = "7-Scenes data terms (Microsoft, non-commercial use); cite Shotton et al., CVPR 2013"
    labels = FIELDS

    def find(self) -> list[str]:
        self._images = [
            path
            for sequence in _sequences(self.root, self.split)
            for path in self.files(sequence, *_COLOURS)[:: self.config.every]
        ]
        # Such as "chess/seq-01/frame-000012" or "val/frame-000012".
        places = (path.relative_to(self.root).as_posix() for path in self._images)
        return [place.rsplit(".color.", 1)[0] for place in places]

    def intrinsics(self, index: int) -> np.ndarray:
        """The camera of the labels of element `index`, (3, 3), pixels."""
        return COLOUR_INTRINSICS if self.config.align else self._depth_intrinsics(index)

    def _depth_intrinsics(self, index: int) -> np.ndarray:
        folder = self._images[index].parent
        for place in (folder.parent, self.root):
            if (place / "camera-intrinsics.txt").is_file():
                return _read_intrinsics(place / "camera-intrinsics.txt")
        return INTRINSICS

    def element_files(self, index: int) -> tuple[Path, Path]:
        return self._images[index], self._depth_file(index)

    def _depth_file(self, index: int) -> Path:
        path = self._images[index]
        return path.with_name(path.name.rsplit(".color.", 1)[0] + ".depth.png")

    def read(self, index: int) -> Element:
        path, depth_path = self._images[index], self._depth_file(index)
        image, raw = read_image(path), read_map(self.file(depth_path), "uint16", "seven_scenes depth")
        same_size("seven_scenes", path, image.shape, depth_path, raw.shape)
        depth = np.where(raw == 65535, 0, raw).astype(np.float32) / np.float32(1000)
        if self.config.align:
            depth = align_depth(depth, self._depth_intrinsics(index), COLOUR_INTRINSICS, DEPTH_TO_COLOUR)
        element = {"image": image}
        if "depth" in self.config.fields:
            element["depth"] = depth
        if "normals" in self.config.fields:
            element["normals"] = normals_from_depth(depth, self.intrinsics(index))
        return element


def align_depth(
    depth: np.ndarray, intrinsics: np.ndarray, target: np.ndarray, motion: np.ndarray
) -> np.ndarray:
    """Depth as another camera at another place sees it: float32 (H, W), metres, 0 where it sees nothing.

    Args:
        depth: float32 (H, W), metres, 0 = invalid.
        intrinsics: (3, 3), of its camera.
        target: (3, 3), the other camera.
        motion: (3, 4), the map from points of the one to points of the other.
    """
    height, width = depth.shape
    points = backproject(depth.astype(np.float64), intrinsics)[depth > 0] @ motion[:, :3].T + motion[:, 3]
    points = points[points[:, 2] > 0]
    pixels = points @ target.T
    column, row = np.floor(pixels[:, :2] / pixels[:, 2:] + 0.5).astype(np.int64).T
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    # The nearest surface hides the others: it is written last.
    order = np.argsort(-points[inside, 2], kind="stable")
    out = np.zeros_like(depth)
    out[row[inside][order], column[inside][order]] = points[inside, 2][order]
    return out


def _sequences(root: Path, split: str) -> list[Path]:
    """The folders of frames of a split."""
    if (root / split).is_dir():
        return [root / split]
    scenes = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
    scenes = [scene for scene in scenes if any((scene / name).is_file() for name in _LISTS.values())]
    if not scenes:
        raise UserError(
            f"seven_scenes: neither a folder {split} nor a scene with {' or '.join(_LISTS.values())} in "
            f"{root.absolute()}; {WHERE_TO_GET}"
        )
    if split not in _LISTS:
        raise UserError(
            f"seven_scenes: {root.absolute()} has the published splits, train and test, and no folder {split}"
        )
    found = []
    for scene in scenes:
        listing = need_file(scene / _LISTS[split], "seven_scenes", WHERE_TO_GET)
        for line in filter(None, map(str.strip, listing.read_text().splitlines())):
            number = re.fullmatch(r"(?:sequence|seq-)(\d+)", line)
            if number is None:
                raise UserError(
                    f"seven_scenes: {listing} has the line {line!r}; expected sequence1, sequence2, ..."
                )
            found.append(need_folder(scene / f"seq-{int(number[1]):02d}", "seven_scenes", WHERE_TO_GET))
    return found


def _read_intrinsics(path: Path) -> np.ndarray:
    try:
        matrix = np.loadtxt(path)
    except ValueError:
        matrix = np.zeros(0)
    if matrix.shape != (3, 3) or matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
        raise UserError(f"seven_scenes: {path} holds no 3 x 3 camera matrix")
    return matrix
