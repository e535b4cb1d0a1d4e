"""MPII Human Pose: people with 16 joints, from the images and the annotations that HRNet's authors publish.

Layout: ROOT/images/NAME.jpg, as published; ROOT/annot/{train,valid,trainval,test}.json, one record a person:
`image`, `center` (x, y), `scale` (the person's height over 200 px) and, but for test, `joints` (16 x 2) and
`joints_vis` (16); ROOT/annot/gt_valid.mat, the head boxes of the people of valid.json in the same order.
All coordinates in the files count pixels from 1.

Source: Andriluka, Pishchulin, Gehler, Schiele, "2D Human Pose Estimation: New Benchmark and State of the Art
Analysis", CVPR 2014; the split is that of Tompson et al., CVPR 2015.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dynpix_jax.core.augmentation import Outside, Resampling
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.source import BOX, HEAD_SIZE, Element, FieldSpec
from dynpix_jax.core.text import parse_json
from dynpix_jax.data.base import FileSource
from dynpix_jax.data.figure import JOINT_PAIRS, JOINTS
from dynpix_jax.data.geometry import crop_to_box
from dynpix_jax.data.images import read_image
from dynpix_jax.data.pckh_files import head_sizes

FILES = {"train": "train", "val": "valid", "trainval": "trainval", "test": "test"}
WHERE_TO_GET = (
    "expected images/ (mpii_human_pose_v1.tar.gz of http://human-pose.mpi-inf.mpg.de) and annot/ with "
    "train.json, valid.json, gt_valid.mat, ... (data preparation of "
    "https://github.com/leoxiaobin/deep-high-resolution-net.pytorch)"
)
FIELDS = {
    "keypoints": FieldSpec(
        "keypoints", (16, 3), "float32", units="pixels", classes=JOINTS, pairs=JOINT_PAIRS, beyond=True
    ),
    "head_size": HEAD_SIZE,
    "box": BOX,
}
UNIT = 200.0
"""Pixels of a person's height at a scale of 1."""
LOWER, LARGER = 15.0, 1.25
"""Boxes lie this many scales below the centre, and are so many times larger: feet are inside."""


@dataclasses.dataclass(frozen=True)
class MpiiConfig:
    """Options of the source.

    Attributes:
        root: The folder that holds `images` and `annot`.
        crop: (H, W) of crops around the people, which evaluation needs; None for whole images, for training
            with `augment.box`.
        resampling: Of crops, as in `augment`; HRNet's code is `linear`.
        outside: Of crops, as in `augment`; `black` in HRNet's code.
    """

    root: str
    crop: tuple[int, int] | None = None
    resampling: Resampling = "linear"
    outside: Outside = "black"

    def __post_init__(self) -> None:
        if self.crop is not None and min(self.crop) < 1:
            raise ValueError(f"crop: {self.crop}; expected a positive height and width")

    @property
    def person_crop(self) -> tuple[int, int] | None:
        """See `CropsPeople`."""
        return self.crop

    def unread(self) -> Mapping[str, str]:
        """Options that are not read, and why."""
        return dict.fromkeys(("resampling", "outside"), "there are no crops") if self.crop is None else {}


class Mpii(FileSource[MpiiConfig]):
    """A person an element: `image` uint8 (H, W, 3), `keypoints` float32 (16, 3), `head_size` float32 ()
    (0 but for val), `box` float32 (4,), square, `index` int64.

    A joint is visible (2) where it is labelled: the annotations do not tell hidden ones. Joints outside of a
    crop stay labelled, and count in PCKh.
    """

    Config = MpiiConfig
    splits = tuple(FILES)
    data_set = "mpii"
    where_to_get = WHERE_TO_GET
    licence = "MPII Human Pose: research only, no commercial use; cite Andriluka et al., CVPR 2014"
    labels = FIELDS

    def find(self) -> list[str]:
        self._images = self.folder(self.root / "images")
        path = self.file(self.root / "annot" / f"{FILES[self.split]}.json")
        self._people = _read_people(path, labelled=self.split != "test")
        self._heads = np.zeros(len(self._people), np.float32)
        if self.split == "val":
            boxes = self.root / "annot" / "gt_valid.mat"
            sizes = head_sizes(boxes, self.data_set, self.where_to_get)
            if sizes.shape != self._heads.shape:
                raise UserError(f"mpii: {boxes} has {len(sizes)} people, {path} {len(self._people)}")
            self._heads = sizes.astype(np.float32)
        return [f"{Path(person.image).stem}_{person.number}" for person in self._people]

    def element_files(self, index: int) -> tuple[Path]:
        return (self._images / self._people[index].image,)

    def read(self, index: int) -> Element:
        person = self._people[index]
        element = {
            "image": read_image(self.file(self._images / person.image)),
            "keypoints": person.joints.copy(),
            "head_size": np.array(self._heads[index]),
            "box": person.box.copy(),
        }
        config = self.config
        if config.crop is None:
            return element
        return crop_to_box(element, self.spec, config.crop, config.resampling, config.outside)


@dataclasses.dataclass(frozen=True)
class _Person:
    """A record, with pixels counted from 0. number: among the people of its image."""

    image: str
    number: int
    joints: np.ndarray
    box: np.ndarray


def _read_people(path: Path, *, labelled: bool) -> list[_Person]:
    try:
        records: Any = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"mpii: {path} is no JSON file ({error}); {WHERE_TO_GET}") from None
    if not isinstance(records, list) or not records:
        raise UserError(f"mpii: {path} holds no list of people; {WHERE_TO_GET}")
    numbers: Counter[str] = Counter()
    people = []
    for place, record in enumerate(records):
        try:
            people.append(_person(record, numbers[record["image"]], labelled=labelled))
            numbers[record["image"]] += 1
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"{type(error).__name__}: {error}"
            raise UserError(f"mpii: record {place} of {path} is not as expected ({what})") from None
    return people


def _person(record: dict[str, Any], number: int, *, labelled: bool) -> _Person:
    centre, scale = np.array(record["center"], np.float64), float(record["scale"])
    if centre.shape != (2,) or not scale > 0:
        raise ValueError(f"center {record['center']}, scale {scale}; expected two numbers and a positive one")
    # Records without a centre have -1 there.
    if centre[0] != -1:
        centre[1] += LOWER * scale
        scale *= LARGER
    joints = np.zeros((len(JOINTS), 3), np.float32)
    if labelled:
        places, visible = np.array(record["joints"], np.float64), np.array(record["joints_vis"])
        if places.shape != (len(JOINTS), 2) or visible.shape != (len(JOINTS),):
            raise ValueError(
                f"joints {places.shape}, joints_vis {visible.shape}; expected those of 16 joints"
            )
        joints[:, :2] = places - 1
        joints[:, 2] = 2 * (visible > 0)
        joints[joints[:, 2] == 0] = 0
    box = np.array([*(centre - 1), UNIT * scale, UNIT * scale], np.float32)
    return _Person(str(record["image"]), number, joints, box)
