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
from pathlib import Path

import numpy as np

from dynpix_jax.core.errors import UserError, suggest
from dynpix_jax.core.source import IMAGE, INDEX, Element, SourceSpec, check_index, segmentation
from dynpix_jax.data.files import need_file, need_folder, same_size
from dynpix_jax.data.images import read_image, read_map
from dynpix_jax.data.matlab import read_mat

SPLITS = ("train", "trainaug", "val", "trainval")
WHERE_TO_GET = "expected the folder VOC2012 of http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
SBD_WHERE = (
    "expected the folder dataset of "
    "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz"
)
LICENCE = (
    "images: terms of Flickr; cite Everingham et al., IJCV 2015, for trainaug Hariharan et al., ICCV 2011"
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


@dataclasses.dataclass(frozen=True)
class VOC2012Config:
    """Options of the source.

    root: the folder VOC2012, or one of its two parents. sbd: the folder `dataset` of SBD's archive, for split
    `trainaug`; "" reads SegmentationClassAug.
    """

    root: str
    sbd: str = ""


class VOC2012:
    """Elements: `image` uint8 (H, W, 3), `segmentation` int32 (H, W) in 0..20 or 255, `index` int64."""

    Config = VOC2012Config
    splits = SPLITS

    def __init__(self, config: VOC2012Config, split: str) -> None:
        if split not in SPLITS:
            raise UserError(f"voc2012 has no split {split!r}; {suggest(split, SPLITS)}")
        if config.sbd and split != "trainaug":
            raise UserError(f"voc2012: split {split!r} does not read sbd; it is for 'trainaug'")
        self._root = find_root(Path(config.root), "VOC2012", "voc2012", WHERE_TO_GET)
        self._lists = self._root / "ImageSets" / "Segmentation"
        self._sbd = need_folder(Path(config.sbd), "voc2012", SBD_WHERE) if config.sbd else None
        self._official: frozenset[str] = frozenset()
        if self._sbd is None:
            self._folder = "SegmentationClassAug" if split == "trainaug" else "SegmentationClass"
            self._names = read_list(self._lists / f"{split}.txt", "voc2012", WHERE_TO_GET)
            need_folder(self._root / self._folder, "voc2012", WHERE_TO_GET)
        else:
            self._folder = "SegmentationClass"
            train, val = (
                read_list(self._lists / f"{part}.txt", "voc2012", WHERE_TO_GET) for part in ("train", "val")
            )
            added = [
                name
                for part in ("train", "val")
                for name in read_list(self._sbd / f"{part}.txt", "voc2012", SBD_WHERE)
            ]
            self._official = frozenset(train)
            self._names = sorted({*train, *added} - set(val))

    @property
    def spec(self) -> SourceSpec:
        """Fields `image`, `segmentation`, `index`."""
        field = segmentation(CLASSES, palette(len(CLASSES)))
        return SourceSpec("voc2012", {"image": IMAGE, "segmentation": field, "index": INDEX}, LICENCE)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """The id of the image, such as "2007_000032"."""
        return self._names[check_index(self, index)]

    def __getitem__(self, index: int) -> Element:
        name = self.name(index)
        path = need_file(self._root / "JPEGImages" / f"{name}.jpg", "voc2012", WHERE_TO_GET)
        image = read_image(path)
        # VOC's own labels where there are any: SBD's are coarser.
        if self._sbd is not None and name not in self._official:
            file = self._sbd / "cls" / f"{name}.mat"
            ids = _read_sbd(file)
        else:
            file = need_file(self._root / self._folder / f"{name}.png", "voc2012", WHERE_TO_GET)
            ids = read_map(file, "uint8", "voc2012 labels")
        same_size("voc2012", path, image.shape, file, ids.shape)
        if (wrong := ids[(ids >= len(CLASSES)) & (ids != BORDER)]).size:
            raise UserError(f"voc2012: {file} has the id {wrong[0]}; expected 0 to {len(CLASSES) - 1} or 255")
        labels = ids.astype(np.int32)
        return {"image": image, "segmentation": labels, "index": np.array(index, np.int64)}


def find_root(root: Path, folder: str, source: str, where_to_get: str) -> Path:
    """The folder of one year's VOC: `root` itself, or below it as the archive unpacks."""
    need_folder(root, source, where_to_get)
    for path in (root, root / folder, root / "VOCdevkit" / folder):
        if (path / "JPEGImages").is_dir():
            return path
    raise UserError(f"{source}: no folder JPEGImages in {root.absolute()}; {where_to_get}")


def read_list(path: Path, source: str, where_to_get: str) -> list[str]:
    """The ids of a list, the first word of each line.

    Lists of `trainaug` with "/JPEGImages/ID.jpg ..." lines give the id too. An empty one is a UserError.
    """
    need_file(path, source, where_to_get)
    lines = path.read_text(encoding="utf-8").splitlines()
    names = [Path(line.split()[0]).stem for line in lines if line.strip()]
    if not names:
        raise UserError(f"{source}: {path.absolute()} is empty; {where_to_get}")
    return names


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
