"""NYUv2: 40 classes, depth and surface normals of 1449 indoor images, split into 795 and 654.

Layout, one of
  ROOT/nyu_depth_v2_labeled.mat (version 7.3), ROOT/splits.mat (trainNdxs, testNdxs) and, for `segmentation`,
    ROOT/classMapping40.mat (mapClass: the class, 1 to 40, of each of the 894 labels): as published.
  ROOT/{train,test}.txt, one name a line, and ROOT/images/NAME.{png,jpg}, ROOT/labels/NAME.png (or .mat with
    `segmentation`; 0 = unlabelled, 1 to 40) and ROOT/depth/NAME.png (16 bits, millimetres): extracted by
    somebody. The folders may also be called by the names in `FOLDERS`. They hold one depth, which is read
    whatever is asked for, unless there is one of ROOT/depth_raw and ROOT/depth_filled.
Images have 480 x 640 pixels with a white border, or 425 x 560 if it was cut off before.

Source: Silberman, Hoiem, Kohli, Fergus, "Indoor segmentation and support inference from RGBD images", ECCV
2012; 40 classes: Gupta, Arbelaez, Malik, CVPR 2013.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.source import DEPTH, NORMALS, Element, segmentation
from dynpix_jax.data.base import FileSource, check_fields, ignore_zero
from dynpix_jax.data.files import need_file
from dynpix_jax.data.images import read_image, read_map
from dynpix_jax.data.matlab import open_v73, read_mat
from dynpix_jax.data.normals import normals_from_depth
from dynpix_jax.data.nyu_classes import NYU40, NYU40_PALETTE

FIELDS = {"segmentation": segmentation(NYU40, NYU40_PALETTE), "depth": DEPTH, "normals": NORMALS}
WHERE_TO_GET = (
    "get nyu_depth_v2_labeled.mat from https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html, "
    "splits.mat from http://horatio.cs.nyu.edu/mit/silberman/indoor_seg_sup/splits.mat "
    "and classMapping40.mat from "
    "https://github.com/ankurhanda/nyuv2-meta-data"
)
LABELLED = "nyu_depth_v2_labeled.mat"
FOLDERS = {
    "images": ("images", "image", "rgb", "RGB"),
    "labels": ("labels", "label", "label40", "labels40", "Label", "segmentation"),
    "depth": ("depth", "Depth"),
}
# Rows and columns of the picture without its white border: 425 x 560, MATLAB's 46:470 and 41:600.
FULL, CROPPED = (480, 640), (425, 560)
CROP = (slice(45, 470), slice(40, 600))
# The toolbox's colour camera, less one: MATLAB counts pixels from 1.
INTRINSICS = np.array([[518.8579, 0, 324.58245], [0, 519.46961, 252.73617], [0, 0, 1]])


@dataclasses.dataclass(frozen=True)
class NYUv2Config:
    """Options of the source.

    Attributes:
        root: The folder with the .mat files, or that of the extracted images.
        fields: The labels to make, of `segmentation`, `depth` and `normals`.
        crop: Cut the white border off: 425 x 560 pixels instead of 480 x 640.
        depth: `raw`, what the sensor measured, 0 where it did not, or `filled` in by the authors. Normals are
            fitted to the same.
    """

    root: str
    fields: tuple[str, ...] = ("segmentation", "depth", "normals")
    crop: bool = True
    depth: Literal["raw", "filled"] = "raw"

    def __post_init__(self) -> None:
        check_fields(self.fields, FIELDS)

    def unread(self) -> Mapping[str, str]:
        """Options that nothing reads, and why."""
        reads = {"depth", "normals"} & set(self.fields)
        return {} if reads else {"depth": "neither 'depth' nor 'normals' is among the fields"}


class NYUv2(FileSource[NYUv2Config]):
    """Elements: `image` uint8 (H, W, 3), the labels asked for, `index` int64.

    `segmentation` int32 (H, W) in 0..39 or 255; `depth` float32 (H, W), metres, 0 = invalid; `normals`
    float32 (H, W, 3), unit vectors of planes fitted to the depth (`normals_from_depth`), zero = invalid.
    """

    Config = NYUv2Config
    splits = ("train", "test")
    data_set = "nyuv2"
    where_to_get = WHERE_TO_GET
    licence = "NYU Depth V2: research use; cite Silberman et al., ECCV 2012"
    labels = FIELDS

    def find(self) -> list[str]:
        needed = frozenset("depth" if field == "normals" else field for field in self.config.fields)
        self._reader: _Reader
        if (self.root / LABELLED).is_file():
            self._reader = _Published(self.root, self.split, needed, self.config.depth)
        elif (self.root / f"{self.split}.txt").is_file():
            self._reader = _Extracted(self.root, self.split, needed, self.config.depth)
        else:
            raise UserError(
                f"nyuv2: neither {LABELLED} nor {self.split}.txt in {self.root.absolute()}; {WHERE_TO_GET}"
            )
        return self._reader.names

    def element_files(self, index: int) -> tuple[Path]:
        return (self._reader.file(index),)

    def read(self, index: int) -> Element:
        raw, fields = self._reader.read(index), self.config.fields
        shape = raw["image"].shape[:2]
        for name, value in raw.items():
            if value.shape[:2] != shape or shape not in (FULL, CROPPED):
                raise UserError(
                    f"nyuv2: {name} of {self.name(index)} has {value.shape[:2]} pixels; expected {FULL}, or "
                    f"{CROPPED} without the border, as its image"
                )
        camera = INTRINSICS
        if shape == CROPPED:
            camera = INTRINSICS - [[0, 0, CROP[1].start], [0, 0, CROP[0].start], [0, 0, 0]]
        element = {"image": raw["image"]}
        if "segmentation" in fields:
            element["segmentation"] = ignore_zero(raw["segmentation"])
        if "depth" in fields:
            element["depth"] = raw["depth"]
        if "normals" in fields:
            # Before the border is cut off: the planes at the rim see what is beyond it.
            element["normals"] = normals_from_depth(raw["depth"], camera)
        if self.config.crop and shape == FULL:
            element = {name: np.ascontiguousarray(value[CROP]) for name, value in element.items()}
        return {name: element[name] for name in ("image", *fields)}


class _Reader(Protocol):
    """Reads `image` uint8 (H, W, 3), `segmentation` int32 (H, W) 0 to 40, `depth` float32 (H, W) metres."""

    names: list[str]

    def file(self, index: int) -> Path:
        """The one that holds the image."""

    def read(self, index: int) -> dict[str, np.ndarray]: ...


class _Published:
    """The labelled .mat file with its split and its class mapping."""

    def __init__(self, root: Path, split: str, needed: frozenset[str], depth: str) -> None:
        self._path = root / LABELLED
        self._variables = {"image": "images"}
        if "depth" in needed:
            self._variables["depth"] = "rawDepths" if depth == "raw" else "depths"
        if "segmentation" in needed:
            self._variables["segmentation"] = "labels"
            self._classes = _read_mapping(root / "classMapping40.mat")
        key = {"train": "trainNdxs", "test": "testNdxs"}[split]
        numbers = read_mat(root / "splits.mat", (key,), "nyuv2", WHERE_TO_GET)[key].ravel().astype(np.int64)
        with open_v73(self._path, tuple(self._variables.values()), "nyuv2", WHERE_TO_GET) as file:
            count = file["images"].shape[0]
        if not numbers.size or numbers.min() < 1 or numbers.max() > count:
            raise UserError(f"nyuv2: {root / 'splits.mat'} has numbers outside of the {count} images")
        self._numbers = numbers
        self.names = [f"{number:04d}" for number in numbers]

    def file(self, index: int) -> Path:
        return self._path

    def read(self, index: int) -> dict[str, np.ndarray]:
        # Opened for each element: an open HDF5 file cannot be handed to another process.
        place = int(self._numbers[index]) - 1
        with open_v73(self._path, tuple(self._variables.values()), "nyuv2", WHERE_TO_GET) as file:
            raw = {name: file[variable][place] for name, variable in self._variables.items()}
        # HDF5 has MATLAB's axes in reverse: (3, W, H) and (W, H).
        raw = {name: np.ascontiguousarray(value.T) for name, value in raw.items()}
        if "segmentation" in raw:
            greatest, known = raw["segmentation"].max(), len(self._classes) - 1
            if greatest > known:
                raise UserError(
                    f"nyuv2: label {greatest} of image {place + 1} in {self._path} is not in "
                    f"classMapping40.mat, which has {known}"
                )
            raw["segmentation"] = self._classes[raw["segmentation"]]
        if "depth" in raw:
            raw["depth"] = raw["depth"].astype(np.float32)
        return raw


class _Extracted:
    """Folders of pictures, labels and depth."""

    def __init__(self, root: Path, split: str, needed: frozenset[str], depth: str) -> None:
        lines = (root / f"{split}.txt").read_text().splitlines()
        # A line may be a path, or several, of the image first.
        self.names = [Path(line.split()[0]).stem for line in lines if line.strip()]
        if not self.names:
            raise UserError(f"nyuv2: no names in {root / f'{split}.txt'}")
        self._images = _one_of(root, FOLDERS["images"])
        self._labels = _one_of(root, FOLDERS["labels"]) if "segmentation" in needed else None
        depths = (f"depth_{depth}", *FOLDERS["depth"])
        self._depth = _one_of(root, depths) if "depth" in needed else None

    def file(self, index: int) -> Path:
        path = self._images / f"{self.names[index]}.jpg"
        return path if path.is_file() else need_file(path.with_suffix(".png"), "nyuv2", WHERE_TO_GET)

    def read(self, index: int) -> dict[str, np.ndarray]:
        name = self.names[index]
        raw = {"image": read_image(self.file(index))}
        if self._labels is not None:
            raw["segmentation"] = _read_labels(self._labels, name)
        if self._depth is not None:
            depth_path = need_file(self._depth / f"{name}.png", "nyuv2", WHERE_TO_GET)
            millimetres = read_map(depth_path, "uint16", "nyuv2 depth")
            raw["depth"] = millimetres.astype(np.float32) / np.float32(1000)
        return raw


def _one_of(root: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise UserError(f"nyuv2: none of the folders {', '.join(names)} in {root.absolute()}; {WHERE_TO_GET}")


def _read_labels(folder: Path, name: str) -> np.ndarray:
    path = folder / f"{name}.mat"
    if path.is_file():
        labels = read_mat(path, ("segmentation",), "nyuv2", WHERE_TO_GET)["segmentation"]
    else:
        path = need_file(path.with_suffix(".png"), "nyuv2", WHERE_TO_GET)
        labels = read_map(path, "uint8", "nyuv2 labels")
    if labels.max() > len(NYU40):
        raise UserError(f"nyuv2: {path} has the id {labels.max()}; expected 0 (unlabelled) to {len(NYU40)}")
    return labels.astype(np.int32)


def _read_mapping(path: Path) -> np.ndarray:
    """int32 (895,): the class, 1 to 40, of each label; 0 of label 0."""
    classes = read_mat(path, ("mapClass",), "nyuv2", WHERE_TO_GET)["mapClass"].ravel()
    found = (classes.min(), classes.max()) if classes.size else (0, 0)
    if found[0] < 1 or found[1] != len(NYU40):
        raise UserError(f"nyuv2: mapClass in {path} has {found[0]} to {found[1]}; expected 1 to {len(NYU40)}")
    return np.concatenate([[0], classes]).astype(np.int32)
