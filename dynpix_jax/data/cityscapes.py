"""Cityscapes: 19 classes, depth from disparity, and instances, read from the official layout.

Layout: ROOT/leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png; for `segmentation`
ROOT/gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png; for `instances` ..._gtFine_instanceIds.png; for `depth`
ROOT/disparity/SPLIT/CITY/NAME_disparity.png (16 bits) and, if unpacked, ROOT/camera/.../NAME_camera.json.
Images have 1024 x 2048 pixels; 2975, 500 and 1525 of them. The labels of `test` are not public.

Source: Cordts et al., "The Cityscapes dataset for semantic urban scene understanding", CVPR 2016.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.source import DEPTH, FieldSpec, segmentation
from dynpix_jax.core.text import parse_json
from dynpix_jax.data.base import LabelledImages, check_fields
from dynpix_jax.data.images import read_map

CLASSES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign"),
    *("vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train"),
    *("motorcycle", "bicycle"),
)
PALETTE = (
    *((128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153)),
    *((153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152)),
    *((70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100)),
    *((0, 80, 100), (0, 0, 230), (119, 11, 32)),
)
# The label id of each class, in the order of the classes; all other ids up to 33 are ignored.
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
LAST_LABEL_ID = 33
FIELDS = {
    "segmentation": segmentation(CLASSES, PALETTE),
    "depth": DEPTH,
    "instances": FieldSpec("label", (None, None), "int32", units="label id * 1000 + number", ignore=0),
}
# Package, end of the file's name, and type of each label.
FILES = {
    "segmentation": ("gtFine", "gtFine_labelIds.png", "uint8"),
    "instances": ("gtFine", "gtFine_instanceIds.png", "uint16"),
    "depth": ("disparity", "disparity.png", "uint16"),
}
# Metres and pixels: those of nearly all images, for when the camera package is not there.
BASELINE, FOCAL = 0.209313, 2262.52


@dataclasses.dataclass(frozen=True)
class CityscapesConfig:
    """Options of the source.

    Attributes:
        root: The folder that holds `leftImg8bit` and the others.
        fields: The labels to read, of `segmentation`, `depth` and `instances`.
    """

    root: str
    fields: tuple[str, ...] = ("segmentation",)

    def __post_init__(self) -> None:
        check_fields(self.fields, FIELDS)


class Cityscapes(LabelledImages[CityscapesConfig]):
    """Elements: `image` uint8 (H, W, 3), the labels asked for, `index` int64.

    `segmentation` int32 (H, W) in 0..18 or 255; `instances` int32 (H, W), 0 where no single instance is
    labelled (groups too), else label id * 1000 + number; `depth` float32 (H, W), metres, 0 = invalid:
    baseline * focal length / disparity.
    """

    Config = CityscapesConfig
    splits = ("train", "val", "test")
    data_set = "cityscapes"
    where_to_get = (
        "get leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip and, for depth, "
        "disparity_trainvaltest.zip and camera_trainvaltest.zip from https://www.cityscapes-dataset.com and "
        "unpack them into one folder"
    )
    licence = "Cityscapes terms of use (non-commercial); cite Cordts et al., CVPR 2016"
    labels = FIELDS
    label_ids = LABEL_IDS

    def find(self) -> list[str]:
        self._images = self.files(self.root / "leftImg8bit" / self.split, "*/*_leftImg8bit.png")
        for field in self.config.fields:
            self.folder(self.root / FILES[field][0] / self.split)
        return [path.stem.removesuffix("_leftImg8bit") for path in self._images]

    def image_file(self, index: int) -> Path:
        return self._images[index]

    def label_file(self, index: int, field: str) -> Path:
        package, suffix, _ = FILES[field]
        city = self._images[index].parent.name
        return self.file(self.root / package / self.split / city / f"{self.names[index]}_{suffix}")

    def decode(self, field: str, path: Path) -> np.ndarray:
        values = read_map(path, FILES[field][2], f"cityscapes {field}")
        if field == "segmentation":
            return label_to_train_ids(values, f"cityscapes: {path}")
        if field == "instances":
            # Below 1000 it is a label id: stuff, or a group that cannot be told apart.
            return np.where(values >= 1000, values, 0).astype(np.int32)
        return disparity_to_depth(values, *self._camera(path))

    def _camera(self, disparity: Path) -> tuple[float, float]:
        """Baseline in metres and focal length in pixels."""
        if not (self.root / "camera").is_dir():
            return BASELINE, FOCAL
        name = disparity.name.replace("disparity.png", "camera.json")
        path = self.file(self.root / "camera" / self.split / disparity.parent.name / name)
        try:
            camera = parse_json(path.read_text())
            return float(camera["extrinsic"]["baseline"]), float(camera["intrinsic"]["fx"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"cityscapes: no extrinsic.baseline and intrinsic.fx in {path}") from None


def disparity_to_depth(disparity: np.ndarray, baseline: float, focal: float) -> np.ndarray:
    """Depth float32 (H, W) in metres, 0 = invalid, of the stored disparity uint16 p = 256 d + 1.

    p = 0 is invalid, and so is d = 0, a point at infinity.
    """
    pixels = (disparity.astype(np.float32) - 1) / 256
    return np.where(pixels > 0, baseline * focal / np.maximum(pixels, 1 / 256), 0).astype(np.float32)


def label_to_train_ids(labels: np.ndarray, where: str) -> np.ndarray:
    """Ids of the 19 classes int32 (H, W), 255 = ignore, of label ids uint8; UserError for an unknown id."""
    # The licence plate is -1, stored as 255.
    greatest = labels[labels != 255].max(initial=0)
    if greatest > LAST_LABEL_ID:
        raise UserError(f"{where} has the id {greatest}; expected 0 to {LAST_LABEL_ID}")
    table = np.full(256, 255, np.int32)
    table[list(LABEL_IDS)] = np.arange(len(LABEL_IDS))
    return table[labels]
