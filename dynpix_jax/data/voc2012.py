"""PASCAL VOC 2012 segmentation, 20 classes and background, with the labels that SBD adds for training.

Layout of the archive: ROOT/JPEGImages/ID.jpg, ROOT/SegmentationClass/ID.png (8-bit with a palette, 255 =
border) and ROOT/ImageSets/Segmentation/{train,val,trainval}.txt; ROOT may also be its parents `VOCdevkit` or
the folder above. 1464 and 1449 images.

Split `trainaug` (10,582 images): those of train and of SBD that are not in val. Either as it is commonly
passed on, ROOT/SegmentationClassAug/ID.png (8-bit) with ROOT/ImageSets/Segmentation/trainaug.txt; or from
SBD's own archive (option `sbd`), SBD/{train,val}.txt and SBD/cls/ID.mat, variable GTcls.Segmentation.

Source: Everingham et al., "The PASCAL Visual Object Classes Challenge: A Retrospective", IJCV 2015;
Hariharan et al., "Semantic Contours from Inverse Detectors", ICCV 2011 (SBD).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.source import PLACE, segmentation
from dynpix_jax.data.base import LabelledImages
from dynpix_jax.data.files import need_folder, read_names
from dynpix_jax.data.matlab import read_mat

SBD_WHERE = (
    "expected the folder dataset of "
    "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz"
)
OBJECTS = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable"),
    *("dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
CLASSES = ("background", *OBJECTS)
BORDER = 255


def palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """The first colours of VOC's map: the bits of an id spread over red, green and blue, high ones first."""
    colours = []
    for label in range(count):
        red, green, blue = (
            sum((label >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)
        )
        colours.append((red, green, blue))
    return tuple(colours)


FIELDS = {"segmentation": segmentation(CLASSES, palette(len(CLASSES)))}


@dataclasses.dataclass(frozen=True)
class VOC2012Config:
    """Options of the source.

    Attributes:
        root: The folder VOC2012, or one of its two parents.
        sbd: The folder `dataset` of SBD's archive, for split `trainaug`; "" reads SegmentationClassAug.
    """

    root: str
    sbd: str = dataclasses.field(default="", metadata=PLACE)

    def unread_in(self, split: str) -> Mapping[str, str]:
        """Options that are not read in a split, and why."""
        return {} if split == "trainaug" else {"sbd": "it is of split 'trainaug'"}


class VOC2012(LabelledImages[VOC2012Config]):
    """Elements: `image` uint8 (H, W, 3), `segmentation` int32 (H, W) in 0..20 or 255, `index` int64."""

    Config = VOC2012Config
    splits = ("train", "trainaug", "val", "trainval")
    data_set = "voc2012"
    where_to_get = "expected the folder VOC2012 of http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
    licence = (
        "images: terms of Flickr; cite Everingham et al., IJCV 2015, for trainaug Hariharan et al., ICCV 2011"
    )
    labels = FIELDS

    def find(self) -> list[str]:
        self.root = find_root(self.root, "VOC2012", self.data_set, self.where_to_get)
        self._sbd = need_folder(Path(self.config.sbd), self.data_set, SBD_WHERE) if self.config.sbd else None
        self._from_sbd: frozenset[str] = frozenset()
        if self._sbd is None:
            names = self._list(self.split)
            self._folder = "SegmentationClassAug" if self.split == "trainaug" else "SegmentationClass"
            self.folder(self.root / self._folder)
            return names
        self._folder = "SegmentationClass"
        train, val = self._list("train"), self._list("val")
        lists = (self._sbd / "train.txt", self._sbd / "val.txt")
        added = [name for path in lists for name in read_list(path, self.data_set, SBD_WHERE)]
        # VOC's own labels where there are any: SBD's are coarser.
        self._from_sbd = frozenset(added) - frozenset(train)
        return sorted({*train, *added} - set(val))

    def _list(self, split: str) -> list[str]:
        path = self.root / "ImageSets" / "Segmentation" / f"{split}.txt"
        return read_list(path, self.data_set, self.where_to_get)

    def image_file(self, index: int) -> Path:
        return self.root / "JPEGImages" / f"{self.names[index]}.jpg"

    def label_file(self, index: int, field: str) -> Path:
        name = self.names[index]
        if self._sbd is not None and name in self._from_sbd:
            return self._sbd / "cls" / f"{name}.mat"
        return self.root / self._folder / f"{name}.png"

    def decode(self, field: str, path: Path) -> np.ndarray:
        if path.suffix == ".png":
            return self.read_ids(path, len(CLASSES) - 1, ignored=BORDER)
        ids = _read_sbd(path).astype(np.int32)
        self.check_ids(ids, path, len(CLASSES) - 1, ignored=BORDER)
        return ids


def find_root(root: Path, folder: str, source: str, where_to_get: str) -> Path:
    """The folder of one year's VOC: `root` itself, or below it as the archive unpacks."""
    need_folder(root, source, where_to_get)
    for path in (root, root / folder, root / "VOCdevkit" / folder):
        if (path / "JPEGImages").is_dir():
            return path
    raise UserError(f"{source}: no folder JPEGImages in {root.absolute()}; {where_to_get}")


def read_list(path: Path, source: str, where_to_get: str) -> list[str]:
    """The ids of a list, the first word of each line.

    Lists of `trainaug` with "/JPEGImages/ID.jpg ..." lines give the id, too.
    """
    return [Path(line.split()[0]).stem for line in read_names(path, source, where_to_get)]


def _read_sbd(path: Path) -> np.ndarray:
    """(H, W) ids of SBD's GTcls.Segmentation."""
    content = read_mat(path, ("GTcls",), "voc2012", SBD_WHERE)["GTcls"]
    try:
        ids = np.asarray(content["Segmentation"][0, 0])
    except (IndexError, ValueError):
        ids = np.zeros(0)
    if ids.ndim != 2:
        raise UserError(f"voc2012: no GTcls.Segmentation map in {path}; {SBD_WHERE}")
    return ids
