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

from dynpix_jax.core.errors import UserError, suggest
from dynpix_jax.core.source import IMAGE, INDEX, Element, SourceSpec, check_index, segmentation
from dynpix_jax.data.files import need_file, need_folder, same_size
from dynpix_jax.data.images import read_image, read_map
from dynpix_jax.data.matlab import read_mat
from dynpix_jax.data.voc2012 import OBJECTS, find_root, palette, read_list

SPLITS = ("train", "val")
WHERE_TO_GET = "expected the folder VOC2010 of http://host.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar"
LABELS_WHERE = (
    "expected 59_context_labels, 33_context_labels, or trainval with labels.txt, as "
    "https://cs.stanford.edu/~roozbeh/pascal-context has them"
)
LICENCE = "images: terms of Flickr; cite Mottaghi et al., CVPR 2014"
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

    root: the folder VOC2010, or one of its two parents. label_root: the folder of the labels; "" is root.
    classes: 59 or 33.
    """

    root: str
    label_root: str = ""
    classes: int = 59

    def __post_init__(self) -> None:
        if self.classes not in CLASSES:
            raise ValueError(f"classes: {self.classes}; expected 59 or 33")


class PascalContext:
    """Elements: `image` uint8 (H, W, 3), `segmentation` int32 (H, W), classes from 0 or 255, `index`."""

    Config = PascalContextConfig
    splits = SPLITS

    def __init__(self, config: PascalContextConfig, split: str) -> None:
        if split not in SPLITS:
            raise UserError(f"pascal_context has no split {split!r}; {suggest(split, SPLITS)}")
        self._config = config
        self._root = find_root(Path(config.root), "VOC2010", "pascal_context", WHERE_TO_GET)
        lists = self._root / "ImageSets" / "Main"
        self._names = read_list(lists / f"{split}.txt", "pascal_context", WHERE_TO_GET)
        labels = need_folder(Path(config.label_root or config.root), "pascal_context", LABELS_WHERE)
        self._folder = labels / f"{config.classes}_context_labels"
        self._table: np.ndarray | None = None
        if not self._folder.is_dir():
            if config.classes != 59:
                raise UserError(
                    f"pascal_context: folder not found: {self._folder.absolute()}; {LABELS_WHERE} "
                    "(the 33 classes are not among the 459 names)"
                )
            self._folder = need_folder(labels / "trainval", "pascal_context", LABELS_WHERE)
            self._table = _table(labels / "labels.txt")

    @property
    def spec(self) -> SourceSpec:
        """Fields `image`, `segmentation`, `index`."""
        names = CLASSES[self._config.classes]
        # The background's black is none of theirs.
        field = segmentation(names, palette(len(names) + 1)[1:])
        return SourceSpec("pascal_context", {"image": IMAGE, "segmentation": field, "index": INDEX}, LICENCE)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """The id of the image, such as "2008_000008"."""
        return self._names[check_index(self, index)]

    def __getitem__(self, index: int) -> Element:
        name, classes = self.name(index), self._config.classes
        path = need_file(self._root / "JPEGImages" / f"{name}.jpg", "pascal_context", WHERE_TO_GET)
        image = read_image(path)
        if self._table is None:
            file = need_file(self._folder / f"{name}.png", "pascal_context", LABELS_WHERE)
            ids = read_map(file, "uint8", "pascal_context labels")
            if ids.max() > classes:
                raise UserError(f"pascal_context: {file} has the id {ids.max()}; expected 0 to {classes}")
        else:
            file = self._folder / f"{name}.mat"
            found = read_mat(file, ("LabelMap",), "pascal_context", LABELS_WHERE)["LabelMap"]
            if found.ndim != 2 or found.max() >= len(self._table):
                raise UserError(
                    f"pascal_context: the LabelMap of {file} is no map of ids up to {len(self._table) - 1}, "
                    "the last of labels.txt"
                )
            ids = self._table[found]
        same_size("pascal_context", path, image.shape, file, ids.shape)
        labels = np.where(ids == 0, 255, ids.astype(np.int32) - 1).astype(np.int32)
        return {"image": image, "segmentation": labels, "index": np.array(index, np.int64)}


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
