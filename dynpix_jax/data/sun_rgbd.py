"""SUN RGB-D: 37 classes and depth of 10335 indoor images, 5285 for training, read from the official layout.

Layout: ROOT/SUNRGBD/... (SUNRGBD.zip: folders with image, depth and depth_bfx) and ROOT/SUNRGBDtoolbox
(SUNRGBDtoolbox.zip), of which are read Metadata/SUNRGBDMeta.mat (rgbpath, rgbname, depthname), Metadata/
SUNRGBD2Dseg.mat (version 7.3; seglabel, 0 = unlabelled, 1 to 37) and traintestSUNRGBD/allsplit.mat (alltrain,
alltest).

Source: Song, Lichtenberg, Xiao, "SUN RGB-D: a RGB-D scene understanding benchmark suite", CVPR 2015.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.source import DEPTH, Element, segmentation
from dynpix_jax.data.base import FileSource, check_fields, ignore_zero
from dynpix_jax.data.files import same_size
from dynpix_jax.data.images import read_image, read_map
from dynpix_jax.data.matlab import open_v73, read_mat
from dynpix_jax.data.nyu_classes import NYU40, NYU40_PALETTE

CLASSES, PALETTE = NYU40[:37], NYU40_PALETTE[:37]
FIELDS = {"segmentation": segmentation(CLASSES, PALETTE), "depth": DEPTH}
SEGLABEL = "SUNRGBD2Dseg/seglabel"
# What stands before ROOT's folders in the paths of the .mat files.
PREFIX = "/n/fs/sun3d/data/"


@dataclasses.dataclass(frozen=True)
class SunRGBDConfig:
    """Options of the source.

    Attributes:
        root: The folder that holds `SUNRGBD` and `SUNRGBDtoolbox`.
        fields: The labels to read, of `segmentation` and `depth`.
        depth: `raw`, what the sensor measured, or `filled`, the authors' improved depth (depth_bfx).
    """

    root: str
    fields: tuple[str, ...] = ("segmentation", "depth")
    depth: Literal["raw", "filled"] = "raw"

    def __post_init__(self) -> None:
        check_fields(self.fields, FIELDS)

    def unread(self) -> Mapping[str, str]:
        """Options that nothing reads, and why."""
        return {} if "depth" in self.fields else {"depth": "'depth' is not among the fields"}


class SunRGBD(FileSource[SunRGBDConfig]):
    """Elements: `image` uint8 (H, W, 3), the labels asked for, `index` int64.

    `segmentation` int32 (H, W) in 0..36 or 255; `depth` float32 (H, W), metres, 0 = invalid.
    """

    Config = SunRGBDConfig
    splits = ("train", "test")
    data_set = "sun_rgbd"
    where_to_get = (
        "get SUNRGBD.zip and SUNRGBDtoolbox.zip from https://rgbd.cs.princeton.edu and unpack them into it"
    )
    licence = "SUN RGB-D: research use; cite Song et al., CVPR 2015, and the sets it was made from"
    labels = FIELDS

    def find(self) -> list[str]:
        self.folder(self.root / "SUNRGBD")
        toolbox = self.folder(self.root / "SUNRGBDtoolbox")
        key = {"train": "alltrain", "test": "alltest"}[self.split]
        allsplit = toolbox / "traintestSUNRGBD" / "allsplit.mat"
        folders = self._mat(allsplit, key).ravel()
        wanted = {_below_root(_text(folder)) for folder in folders}
        meta_path = toolbox / "Metadata" / "SUNRGBDMeta.mat"
        meta = self._mat(meta_path, "SUNRGBDMeta").ravel()
        try:
            rows = list(zip(*(meta[name] for name in ("rgbpath", "rgbname", "depthname")), strict=True))
        except (ValueError, IndexError):
            raise UserError(
                f"sun_rgbd: no rgbpath, rgbname, depthname in SUNRGBDMeta of {meta_path}"
            ) from None
        # The order of the .mat file, which SUNRGBD2Dseg.mat shares.
        self._items = [
            _Item(number, folder, _text(image), _text(depth))
            for number, (path, image, depth) in enumerate(rows)
            if (folder := _below_root(_text(path)).parent.parent) in wanted
        ]
        if not self._items:
            raise UserError(f"sun_rgbd: no image of {meta_path} is in {key} of {allsplit}")
        self._labels = toolbox / "Metadata" / "SUNRGBD2Dseg.mat"
        if "segmentation" in self.config.fields:
            with self._open_labels() as file:
                count = file[SEGLABEL].size
            if count != len(rows):
                raise UserError(
                    f"sun_rgbd: {self._labels} has {count} labels, {meta_path} {len(rows)} images"
                )

        return [str(item.folder) for item in self._items]

    def element_files(self, index: int) -> tuple[Path]:
        item = self._items[index]
        return (self.root / item.folder / "image" / item.image,)

    def read(self, index: int) -> Element:
        item = self._items[index]
        folder = self.root / item.folder
        (path,) = self.element_files(index)
        element = {"image": read_image(path)}
        if "segmentation" in self.config.fields:
            with self._open_labels() as file:
                reference = file[SEGLABEL][:].ravel()[item.number]
                labels = np.asarray(file[reference]).T.astype(np.int32)
            same_size("sun_rgbd", path, element["image"].shape, self._labels, labels.shape)
            if labels.max() > len(CLASSES):
                raise UserError(
                    f"sun_rgbd: label {labels.max()} of {item.folder} in {self._labels}; expected 0 to 37"
                )
            element["segmentation"] = ignore_zero(labels)
        if "depth" in self.config.fields:
            depth_path = folder / {"raw": "depth", "filled": "depth_bfx"}[self.config.depth] / item.depth
            stored = read_map(depth_path, "uint16", "sun_rgbd depth")
            same_size("sun_rgbd", path, element["image"].shape, depth_path, stored.shape)
            element["depth"] = unshift_depth(stored)
        return element

    def _mat(self, path: Path, variable: str) -> np.ndarray:
        return read_mat(path, (variable,), self.data_set, self.where_to_get)[variable]

    def _open_labels(self) -> AbstractContextManager[Any]:
        return open_v73(self._labels, (SEGLABEL,), self.data_set, self.where_to_get)


@dataclasses.dataclass(frozen=True)
class _Item:
    """One image: its place in the .mat files, its folder below the root, the names of its files."""

    number: int
    folder: PurePosixPath
    image: str
    depth: str


def unshift_depth(stored: np.ndarray) -> np.ndarray:
    """Depth float32 (H, W) in metres of stored uint16: millimetres, whose bits are rotated left by three."""
    return ((stored >> 3) | (stored << 13)).astype(np.float32) / np.float32(1000)


def _text(cell: Any) -> str:
    """The string in a MATLAB cell, which SciPy wraps in arrays."""
    while isinstance(cell, np.ndarray):
        cell = cell.item() if cell.size == 1 else ""
    return str(cell)


def _below_root(path: str) -> PurePosixPath:
    return PurePosixPath(path.removeprefix(PREFIX))
