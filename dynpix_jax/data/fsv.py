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
from pathlib import Path

import numpy as np

from dynpix_jax.core.errors import UserError, suggest
from dynpix_jax.core.source import IMAGE, INDEX, Element, FieldSpec, SourceSpec, check_index, segmentation
from dynpix_jax.data.files import need_file, need_folder
from dynpix_jax.data.images import read_image
from dynpix_jax.data.multitask import ALBEDO, fit, read_names

SPLITS = ("train", "test")
WHERE_TO_GET = (
    "get the GTA V part of FSV (gta_train, gta_test, gt_sets) by way of "
    "https://www.philkr.net/papers/kraehenbuehl2018free and unpack it there"
)
LICENCE = "FSV: research use; cite Krahenbuhl, CVPR 2018"
CLASSES = ("background", "vehicle", "object")
# Stored kind -> class; all others are rare, and background (ASTMT).
KINDS = {2: 1, 3: 2}
FIELDS = {
    "segmentation": segmentation(CLASSES, ((0, 0, 0), (0, 0, 142), (220, 220, 0))),
    # A disparity grows where a depth shrinks, so it is not of the kind `depth`, which follows the scale.
    "depth": FieldSpec("dense", (None, None), "float32", units="disparity / 8192", ignore=0),
    "albedo": ALBEDO,
}
DISPARITY_UNIT = 8192
TEST_IMAGES = 5000


@dataclasses.dataclass(frozen=True)
class FsvConfig:
    """Options of the source.

    root: the folder that holds gt_sets, gta_train and gta_test.
    fields: the labels to read, names of `FIELDS`.
    every_test_image: all of them; else every n-th, n such that about 5000 are left.
    """

    root: str
    fields: tuple[str, ...] = tuple(FIELDS)
    every_test_image: bool = False

    def __post_init__(self) -> None:
        for field in self.fields:
            if field not in FIELDS:
                raise ValueError(f"fields: unknown label {field!r}; {suggest(field, FIELDS)}")


class Fsv:
    """Elements: `image` uint8 (H, W, 3), the labels asked for, `index` int64.

    `segmentation` int32 (H, W) in 0..2; `depth` float32 (H, W): disparity / 8192, 0 = unknown; `albedo`
    float32 (H, W, 3) in [0, 1].
    """

    Config = FsvConfig
    splits = SPLITS

    def __init__(self, config: FsvConfig, split: str) -> None:
        if split not in SPLITS:
            raise UserError(f"fsv has no split {split!r}; {suggest(split, SPLITS)}")
        self._config = config
        root = need_folder(Path(config.root), "fsv", WHERE_TO_GET)
        self._folder = need_folder(root / f"gta_{split}", "fsv", WHERE_TO_GET)
        names = read_names(root / "gt_sets" / f"gta_{split}.txt", "fsv", WHERE_TO_GET)
        step = max(len(names) // TEST_IMAGES, 1) if split == "test" and not config.every_test_image else 1
        self._names = names[::step]

    @property
    def spec(self) -> SourceSpec:
        """Fields `image`, the labels asked for, `index`."""
        labels = {name: FIELDS[name] for name in self._config.fields}
        return SourceSpec("fsv", {"image": IMAGE, **labels, "index": INDEX}, LICENCE)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """The name of the frame, as the lists have it."""
        return self._names[check_index(self, index)]

    def __getitem__(self, index: int) -> Element:
        index = check_index(self, index)
        element = {"image": self._read(index, "final.webp")}
        files = {"segmentation": "object_id.png", "depth": "disparity.webp", "albedo": "albedo.webp"}
        for field in self._config.fields:
            stored = fit(self._read(index, files[field]), element["image"].shape)
            element[field] = {"segmentation": _classes, "depth": _disparity, "albedo": _albedo}[field](stored)
        return element | {"index": np.array(index, np.int64)}

    def _read(self, index: int, end: str) -> np.ndarray:
        return read_image(need_file(self._folder / f"{self._names[index]}_{end}", "fsv", WHERE_TO_GET))


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
