"""PASCAL with five tasks, read from the archive of "Attentive Single-Tasking of Multiple Tasks" (PASCAL_MT).

Layout: ROOT/ImageSets/Context/{train,val}.txt, one ID a line; ROOT/JPEGImages/ID.jpg; and
  segmentation  ROOT/semseg/VOC12/ID.png or, without, ROOT/semseg/pascal-context/ID.png: 0 to 20, 255 = void
  boundaries    ROOT/pascal-context/trainval/ID.mat, `LabelMap`: where the classes of PASCAL-Context change
  parts         ROOT/human_parts/ID.mat, `anno`: PASCAL-Part, its 24 parts of people merged into 6
  normals       ROOT/normals_distill/ID.png, of a network; only where the LabelMap has a class that NYUv2, on
                which that network was trained, has too
  saliency      ROOT/sal_distill/ID.png, of a network; salient above one half
4998 and 5105 images. Pixels of void (255), of images without people, and without a normal are ignored.

Source: Maninis, Radosavovic, Kokkinos, CVPR 2019; from PASCAL VOC 2012, PASCAL-Context (Mottaghi et al., CVPR
2014) and PASCAL-Part (Chen et al., CVPR 2014).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.source import BOUNDARIES, NORMALS, Element, segmentation
from dynpix_jax.data.base import FileSource, check_fields, fit
from dynpix_jax.data.figure import PARTS as PART_NAMES
from dynpix_jax.data.files import read_names
from dynpix_jax.data.images import read_image, read_map
from dynpix_jax.data.matlab import read_mat
from dynpix_jax.data.multitask import PARTS, SALIENCY, boundaries_between, picture_normals, unit_normals
from dynpix_jax.data.voc2012 import CLASSES, palette

FIELDS = {
    "segmentation": segmentation(CLASSES, palette(len(CLASSES))),
    "boundaries": BOUNDARIES,
    "parts": PARTS,
    "normals": NORMALS,
    "saliency": SALIENCY,
}
PERSON = 15
# PASCAL-Part's names, less the l or r before those that come in pairs.
PART_OF = {
    **dict.fromkeys(("hair", "head", "ear", "ebrow", "eye", "mouth", "nose"), "head"),
    **dict.fromkeys(("neck", "torso"), "torso"),
    "uarm": "upper arm",
    **dict.fromkeys(("larm", "hand"), "lower arm"),
    "uleg": "upper leg",
    **dict.fromkeys(("lleg", "foot"), "lower leg"),
}
# Ids of PASCAL-Context whose names are names of NYUv2's 894 classes as well, and the TV monitor.
CLASSES_WITH_NORMALS = (
    *(3, 4, 6, 9, 10, 11, 13, 15, 17, 18, 22, 23, 29, 30, 33, 34, 36, 37, 38, 39, 41, 43, 46, 49, 50, 51),
    *(53, 55, 56, 59, 61, 62, 65, 66, 68, 69, 72, 73, 78, 83, 84, 85, 87, 88, 95, 96, 101, 104, 105, 107),
    *(111, 113, 115, 122, 124, 135, 141, 142, 143, 146, 150, 154, 157, 158, 159, 165, 172, 174, 181, 183),
    *(184, 191, 193, 195, 197, 199, 202, 213, 215, 216, 219, 220, 223, 225, 228, 230, 232, 233, 238, 239),
    *(242, 243, 246, 250, 251, 252, 255, 260, 261, 263, 269, 272, 273, 275, 281, 283, 284, 285, 286, 287),
    *(288, 290, 291, 292, 293, 295, 304, 307, 309, 310, 314, 315, 319, 323, 329, 330, 331, 336, 342, 345),
    *(349, 350, 351, 352, 355, 357, 368, 370, 371, 374, 379, 380, 383, 384, 397, 401, 403, 405, 407, 408),
    *(411, 412, 413, 414, 417, 419, 421, 423, 427, 429, 430, 432, 440, 441, 442, 443, 444, 446, 454, 456),
)


@dataclasses.dataclass(frozen=True)
class PascalMultitaskConfig:
    """Options of the source. root: the folder PASCAL_MT. fields: the labels to read, names of `FIELDS`."""

    root: str
    fields: tuple[str, ...] = tuple(FIELDS)

    def __post_init__(self) -> None:
        check_fields(self.fields, FIELDS)


class PascalMultitask(FileSource[PascalMultitaskConfig]):
    """Elements: `image` uint8 (H, W, 3), the labels asked for, `index` int64.

    `segmentation` int32 (H, W) in 0..20 or 255; `boundaries` float32 (H, W) in {0, 1}; `parts` int32 (H, W)
    in 0..6, all 255 in an image without parts of people; `normals` float32 (H, W, 3), zero = none; `saliency`
    int32 (H, W) in {0, 1}.
    """

    Config = PascalMultitaskConfig
    splits = ("train", "val")
    data_set = "pascal_multitask"
    where_to_get = (
        "get PASCAL_MT.tgz, which https://github.com/facebookresearch/astmt reads (its first address was "
        "https://data.vision.ee.ethz.ch/kmaninis/share/MTL/PASCAL_MT.tgz), and unpack it"
    )
    licence = (
        "PASCAL VOC 2012: research use, Flickr's terms for the photos; cite Maninis et al., CVPR 2019, and "
        "the sets it was made from"
    )
    labels = FIELDS

    def find(self) -> list[str]:
        names = self.root / "ImageSets" / "Context" / f"{self.split}.txt"
        return read_names(names, self.data_set, self.where_to_get)

    def element_files(self, index: int) -> tuple[Path]:
        return (self.root / "JPEGImages" / f"{self.names[index]}.jpg",)

    def read(self, index: int) -> Element:
        name, fields = self.names[index], self.config.fields
        element = {"image": read_image(self._file("JPEGImages", name, ".jpg"))}
        shape = element["image"].shape
        # Two labels are made of the LabelMap; the others do without.
        ids = self._context(name) if {"boundaries", "normals"} & set(fields) else np.zeros((1, 1))
        make = {
            "segmentation": lambda: self._segmentation(name),
            "boundaries": lambda: boundaries_between(ids),
            "parts": lambda: self._parts(name, shape),
            "normals": lambda: self._normals(name, ids),
            "saliency": lambda: self._saliency(name),
        }
        return element | {field: fit(make[field](), shape) for field in fields}

    def _file(self, folder: str, name: str, suffix: str) -> Path:
        return self.file(self.root / folder / f"{name}{suffix}")

    def _context(self, name: str) -> np.ndarray:
        path = self._file("pascal-context/trainval", name, ".mat")
        return read_mat(path, ("LabelMap",), self.data_set, self.where_to_get)["LabelMap"]

    def _segmentation(self, name: str) -> np.ndarray:
        path = self.root / "semseg" / "VOC12" / f"{name}.png"
        if not path.is_file():
            path = self.root / "semseg" / "pascal-context" / f"{name}.png"
        return self.read_ids(path, len(CLASSES) - 1, ignored=255)

    def _normals(self, name: str, ids: np.ndarray) -> np.ndarray:
        stored = picture_normals(read_image(self._file("normals_distill", name, ".png")))
        known = np.isin(fit(ids, stored.shape), CLASSES_WITH_NORMALS)
        return unit_normals(np.where(known[..., None], stored, 0.0))

    def _saliency(self, name: str) -> np.ndarray:
        path = self._file("sal_distill", name, ".png")
        return (read_map(path, "uint8", "pascal_multitask saliency") > 127).astype(np.int32)

    def _parts(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Parts int32 (H, W) of all people; 255 everywhere without any."""
        path = self._file("human_parts", name, ".mat")
        annotation = read_mat(path, ("anno",), self.data_set, self.where_to_get)["anno"]
        parts = np.zeros(shape[:2], np.int32)
        try:
            for part, mask in _part_masks(annotation):
                parts[fit(mask, shape) > 0] = part
        except (ValueError, IndexError, KeyError, TypeError) as error:
            raise UserError(
                f"pascal_multitask: anno in {path} is not what PASCAL-Part has ({type(error).__name__}: "
                f"{error}); {self.where_to_get}"
            ) from None
        return parts if parts.any() else np.full(shape[:2], 255, np.int32)


def _part_masks(annotation: Any) -> Iterator[tuple[int, np.ndarray]]:
    """(id of `PARTS`, mask uint8 (H, W)) of each part of each person."""
    for thing in annotation.ravel()[0]["objects"].ravel():
        if int(thing["class_ind"].item()) != PERSON:
            continue
        for part in thing["parts"].ravel():
            word = str(part["part_name"].item())
            known = PART_OF.get(word) or PART_OF.get(word[1:] if word[:1] in ("l", "r") else "")
            if known is None:
                raise ValueError(f"unknown part {word!r}")
            yield PART_NAMES.index(known), part["mask"].astype(np.uint8)
