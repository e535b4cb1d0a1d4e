"""PASCAL-Context: all pixels of the images of VOC 2010's trainval, in 59 or 33 classes.

Images and lists: ROOT/JPEGImages/ID.jpg and ROOT/ImageSets/Main/{train,val}.txt of VOC 2010 (4998 and 5105
images); ROOT may also be one of the parents of the folder VOC2010. Labels: the folder of option `label_root`
holds

- {59,33}_context_labels/ID.png, 8-bit, 1 to 59 (or 33) in the order of the classes here, 0 = none of them; or
- for 59 classes trainval/ID.mat with the variable LabelMap (ids of all 459 names) and labels.txt ("ID: name"
  lines), whose names are looked up.

Pixels of none of the classes are ignored. Source: Mottaghi et al., "The Role of Context for Object Detection
and Semantic Segmentation in the Wild", CVPR 2014, and its page.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.source import PLACE, FieldSpec, segmentation
from dynpix_jax.data.base import LabelledImages, ignore_zero
from dynpix_jax.data.files import need_file, need_folder
from dynpix_jax.data.matlab import read_mat
from dynpix_jax.data.voc2012 import OBJECTS, find_root, palette, read_list

LABELS_WHERE = (
    "expected 59_context_labels, 33_context_labels, or trainval with labels.txt, as "
    "https://cs.stanford.edu/~roozbeh/pascal-context has them"
)
# The table of the objects is VOC's "diningtable"; the 459 names, and the list of 59, call it so.
CLASSES_59 = (
    *("table" if name == "diningtable" else name for name in OBJECTS),
    *("bag", "bed", "bench", "book", "building", "cabinet", "ceiling", "cloth", "computer", "cup", "door"),
    *("fence", "floor", "flower", "food", "grass", "ground", "keyboard", "light", "mountain", "mouse"),
    *("curtain", "platform", "sign", "plate", "road", "rock", "shelves", "sidewalk", "sky", "snow"),
    *("bedclothes", "track", "tree", "truck", "wall", "water", "window", "wood"),
)
CLASSES_33 = (
    *OBJECTS,
    *("sky", "grass", "ground", "road", "building", "tree", "water", "mountain", "wall", "floor", "track"),
    *("keyboard", "ceiling"),
)
CLASSES = {59: CLASSES_59, 33: CLASSES_33}


@dataclasses.dataclass(frozen=True)
class PascalContextConfig:
    """Options of the source.

    Attributes:
        root: The folder VOC2010, or one of its two parents.
        label_root: The folder of the labels; "" is root.
        classes: 59 or 33.
    """

    root: str
    label_root: str = dataclasses.field(default="", metadata=PLACE)
    classes: int = 59

    def __post_init__(self) -> None:
        if self.classes not in CLASSES:
            raise ValueError(f"classes: {self.classes}; expected 59 or 33")


class PascalContext(LabelledImages[PascalContextConfig]):
    """Elements: `image` uint8 (H, W, 3), `segmentation` int32 (H, W), classes from 0 or 255, `index`."""

    Config = PascalContextConfig
    splits = ("train", "val")
    data_set = "pascal_context"
    where_to_get = "expected the folder VOC2010 of http://host.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar"
    licence = "images: terms of Flickr; cite Mottaghi et al., CVPR 2014"

    @property
    def labels(self) -> dict[str, FieldSpec]:
        names = CLASSES[self.config.classes]
        # The background's black is none of their colours.
        return {"segmentation": segmentation(names, palette(len(names) + 1)[1:])}

    def find(self) -> list[str]:
        classes = self.config.classes
        self.root = find_root(self.root, "VOC2010", self.data_set, self.where_to_get)
        lists = self.root / "ImageSets" / "Main"
        names = read_list(lists / f"{self.split}.txt", self.data_set, self.where_to_get)
        label_root = Path(self.config.label_root or self.config.root)
        labels = need_folder(label_root, self.data_set, LABELS_WHERE)
        self._folder = labels / f"{classes}_context_labels"
        self._table: np.ndarray | None = None
        if not self._folder.is_dir():
            if classes != 59:
                raise UserError(
                    f"pascal_context: folder not found: {self._folder.absolute()}; {LABELS_WHERE} "
                    "(the 33 classes are not among the 459 names)"
                )
            self._folder = need_folder(labels / "trainval", self.data_set, LABELS_WHERE)
            self._table = _table(labels / "labels.txt")
        return names

    def image_file(self, index: int) -> Path:
        return self.root / "JPEGImages" / f"{self.names[index]}.jpg"

    def label_file(self, index: int, field: str) -> Path:
        return self._folder / f"{self.names[index]}{'.png' if self._table is None else '.mat'}"

    def decode(self, field: str, path: Path) -> np.ndarray:
        if self._table is None:
            need_file(path, self.data_set, LABELS_WHERE)
            return ignore_zero(self.read_ids(path, self.config.classes))
        found = read_mat(path, ("LabelMap",), self.data_set, LABELS_WHERE)["LabelMap"]
        if found.ndim != 2 or found.max() >= len(self._table):
            raise UserError(
                f"pascal_context: the LabelMap of {path} is no map of ids up to {len(self._table) - 1}, "
                "the last of labels.txt"
            )
        return ignore_zero(self._table[found])


def _table(path: Path) -> np.ndarray:
    """Id of labels.txt -> 1 to 59, 0 for the names that are none of the classes."""
    need_file(path, "pascal_context", LABELS_WHERE)
    ids: dict[str, int] = {}
    for line in filter(str.strip, path.read_text(encoding="utf-8").splitlines()):
        number, colon, name = line.partition(":")
        if not colon or not number.strip().isdigit():
            raise UserError(f"pascal_context: {path} has the line {line!r}; expected 'ID: name'")
        ids[name.strip()] = int(number)
    if missing := [name for name in CLASSES_59 if name not in ids]:
        raise UserError(f"pascal_context: {path} has no {missing[0]!r}; {LABELS_WHERE}")
    table = np.zeros(max(ids.values()) + 1, np.uint8)
    for index, name in enumerate(CLASSES_59, 1):
        table[ids[name]] = index
    return table
