"""FSV, "Free supervision from video games": street scenes of GTA V with classes, albedo and disparity.

Layout: ROOT/gt_sets/gta_{train,test}.txt, one NAME a line, and in ROOT/gta_{train,test}/
  NAME_final.webp      the image
  NAME_object_id.png   colours; red is the kind of thing
  NAME_albedo.webp     colours before lighting
  NAME_disparity.webp  24 bits in red (lowest), green and blue (highest)
As ASTMT reads it: rare kinds of things are background, of the test images about 5000 are taken, and the
"depth" of its tables is the disparity divided by 8192.

Source: Krahenbuhl, CVPR 2018.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dynpix_jax.core.source import ALBEDO, FieldSpec, segmentation
from dynpix_jax.data.base import LabelledImages, check_fields
from dynpix_jax.data.files import read_names
from dynpix_jax.data.images import read_image

CLASSES = ("background", "vehicle", "object")
# Stored kind -> class; all others are rare, and background (ASTMT).
KINDS = {2: 1, 3: 2}
FIELDS = {
    "segmentation": segmentation(CLASSES, ((0, 0, 0), (0, 0, 142), (220, 220, 0))),
    # A disparity grows where a depth shrinks, so it is not of the kind `depth`, which follows the scale.
    "depth": FieldSpec("dense", (None, None), "float32", units="disparity / 8192", ignore=0),
    "albedo": ALBEDO,
}
FILES = {"segmentation": "object_id.png", "depth": "disparity.webp", "albedo": "albedo.webp"}
DISPARITY_UNIT = 8192
TEST_IMAGES = 5000


@dataclasses.dataclass(frozen=True)
class FsvConfig:
    """Options of the source.

    Attributes:
        root: The folder that holds gt_sets, gta_train and gta_test.
        fields: The labels to read, names of `FIELDS`.
        every_test_image: All of them; else every n-th, n such that about 5000 are left.
    """

    root: str
    fields: tuple[str, ...] = tuple(FIELDS)
    every_test_image: bool = False

    def __post_init__(self) -> None:
        check_fields(self.fields, FIELDS)

    def unread_in(self, split: str) -> Mapping[str, str]:
        """Options that are not read in a split, and why."""
        return {"every_test_image": "it is of split 'test'"} if split == "train" else {}


class Fsv(LabelledImages[FsvConfig]):
    """Elements: `image` uint8 (H, W, 3), the labels asked for, `index` int64.

    `segmentation` int32 (H, W) in 0..2; `depth` float32 (H, W): disparity / 8192, 0 = unknown; `albedo`
    float32 (H, W, 3) in [0, 1].
    """

    Config = FsvConfig
    splits = ("train", "test")
    data_set = "fsv"
    where_to_get = (
        "get the GTA V part of FSV (gta_train, gta_test, gt_sets) by way of "
        "https://www.philkr.net/papers/kraehenbuehl2018free and unpack it there"
    )
    licence = "FSV: research use; cite Krahenbuhl, CVPR 2018"
    labels = FIELDS

    fits = True

    def find(self) -> list[str]:
        self._folder = self.folder(self.root / f"gta_{self.split}")
        names = read_names(self.root / "gt_sets" / f"gta_{self.split}.txt", self.data_set, self.where_to_get)
        every = self.split == "train" or self.config.every_test_image
        return names[:: 1 if every else max(len(names) // TEST_IMAGES, 1)]

    def image_file(self, index: int) -> Path:
        return self._folder / f"{self.names[index]}_final.webp"

    def label_file(self, index: int, field: str) -> Path:
        return self._folder / f"{self.names[index]}_{FILES[field]}"

    def decode(self, field: str, path: Path) -> np.ndarray:
        stored = read_image(self.file(path))
        return {"segmentation": _classes, "depth": _disparity, "albedo": _albedo}[field](stored)


def _classes(stored: np.ndarray) -> np.ndarray:
    table = np.zeros(256, np.int32)
    for kind, class_id in KINDS.items():
        table[kind] = class_id
    return table[stored[..., 0]]


def _disparity(stored: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(stored.astype(np.uint32), -1, 0)
    return ((blue << 16 | green << 8 | red) / DISPARITY_UNIT).astype(np.float32)


def _albedo(stored: np.ndarray) -> np.ndarray:
    return stored.astype(np.float32) / np.float32(255)
