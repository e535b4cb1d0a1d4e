"""Your own images: a folder of pictures and a folder of label pictures.

    ROOT/images/NAME.jpg            or .jpeg, .png
    ROOT/labels/NAME.png            or, of several kinds of labels, ROOT/labels/KIND/NAME.png
    ROOT/classes.json               may be there: {"classes": ["road", ...], "palette": [[128, 64, 128], ...],
                                    "ignore": 255}

Splits, by the first of these that is there: lists ROOT/train.txt, val.txt and test.txt of names; folders
images/train and labels/train (or labels/KIND/train), and so on; else a share of the images is `val`, chosen
by their names. Sizes may differ from image to image.

| kind | its PNGs |
|---|---|
| `segmentation` | 8 bits, ids 0, 1, ... of the classes, `ignore` = not labelled; or the palette's colours |
| `boundaries` | 8 bits, 255 = boundary, 0 = none |
| `depth` | 16 bits, millimetres, 0 = not known |
| `normals` | RGB, 127.5 x (1 + x right, y up, z to the camera), black = not known |
| `saliency` | 8 bits, 255 = salient, 0 = not |

These are the forms in which `dynpix predict` writes maps.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.source import BOUNDARIES, DEPTH, NORMALS, FieldSpec, segmentation
from dynpix_jax.core.text import parse_json
from dynpix_jax.data.base import LabelledImages, check_fields
from dynpix_jax.data.files import read_names
from dynpix_jax.data.images import read_image, read_map
from dynpix_jax.data.multitask import SALIENCY
from dynpix_jax.data.voc2012 import palette

KINDS = {
    "segmentation": segmentation(()),
    "boundaries": BOUNDARIES,
    "depth": DEPTH,
    "normals": NORMALS,
    "saliency": SALIENCY,
}
PICTURES = (".jpg", ".jpeg", ".png")
SPLITS = ("train", "val", "test")
CLASSES = "classes.json"
SALIENT = 128
"""Least value of a salient pixel."""


@dataclasses.dataclass(frozen=True)
class FolderConfig:
    """Options of the source.

    Attributes:
        root: The folder that holds `images` and `labels`.
        fields: Labels to read; keys of `KINDS`.
        classes: Number of classes of a segmentation; 0: as many as classes.json names.
        val_share: Share of the images that is the split val, where neither lists nor folders tell.
    """

    root: str
    fields: tuple[str, ...] = ("segmentation",)
    classes: int = 0
    val_share: float = 0.2

    def __post_init__(self) -> None:
        check_fields(self.fields, KINDS)
        if not 0 <= self.classes <= 255:
            raise ValueError(f"classes: {self.classes}; expected 1 to 255, or 0 for those of {CLASSES}")
        if not 0 < self.val_share < 1:
            raise ValueError(f"val_share: {self.val_share}; expected a share between 0 and 1")

    def unread(self) -> Mapping[str, str]:
        """Options that are not read, and why."""
        return {} if "segmentation" in self.fields else {"classes": "no segmentation is read"}


@dataclasses.dataclass(frozen=True)
class _Classes:
    """What classes.json says, and the option `classes`."""

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    count: int
    ignore: int = 255


class Folder(LabelledImages[FolderConfig]):
    """Elements: `image` uint8 (H, W, 3), the labels that are asked for, `index` int64."""

    Config = FolderConfig
    splits = SPLITS
    data_set = "folder"
    where_to_get = "expected images/NAME.jpg (or .png) and labels/NAME.png, see docs/own-data.md"
    licence = "your own images"

    @property
    def labels(self) -> Mapping[str, FieldSpec]:
        known = self._classes
        colours = known.palette or palette(len(known.names))
        return KINDS | {"segmentation": segmentation(known.names, colours)}

    @cached_property
    def _classes(self) -> _Classes:
        path = Path(self.config.root) / CLASSES
        return _read_classes(path if path.is_file() else None, self.config, path)

    def find(self) -> list[str]:
        images, lists = self.folder(self.root / "images"), self.root / f"{self.split}.txt"
        self._inside = ""
        if any((self.root / f"{split}.txt").is_file() for split in SPLITS):
            by_name = self._by_name(images)
            listed = read_names(lists, self.data_set, self.where_to_get)
            names = [_listed_name(line, by_name) for line in listed]
            for name, line in zip(names, listed, strict=True):
                if name not in by_name:
                    raise UserError(f"folder: {lists} names {line!r}, which is not in {images.absolute()}")
        elif any((images / split).is_dir() for split in SPLITS):
            self._inside = self.split
            by_name = self._by_name(self.folder(images / self.split))
            names = sorted(by_name)
        else:
            by_name = self._by_name(images)
            names = self._share(by_name)
        self._images = [by_name[name] for name in names]
        return names

    def _share(self, names: Mapping[str, Path]) -> list[str]:
        if self.split == "test":
            raise UserError(
                f"folder: {self.root} has no split 'test'; expected a list test.txt or a folder images/test"
            )
        if len(names) < 2:
            raise UserError(f"folder: {self.root / 'images'} holds one image; val needs another")
        # By a checksum of the names: what is added later moves hardly any image to the other split.
        drawn = sorted(names, key=lambda name: (zlib.crc32(name.encode()), name))
        count = min(max(1, round(self.config.val_share * len(names))), len(names) - 1)
        return sorted(drawn[:count] if self.split == "val" else drawn[count:])

    def _by_name(self, folder: Path) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in PICTURES:
                if path.stem in found:
                    raise UserError(f"folder: {found[path.stem]} and {path.name} have the same name")
                found[path.stem] = path
        if not found:
            raise UserError(f"folder: no {', '.join(PICTURES)} in {folder.absolute()}; {self.where_to_get}")
        return found

    def image_file(self, index: int) -> Path:
        return self._images[index]

    def label_file(self, index: int, field: str) -> Path:
        labels, name = self.root / "labels", f"{self.names[index]}.png"
        of_kind = labels / field
        if not of_kind.is_dir() and len(self.config.fields) > 1:
            raise UserError(
                f"folder: no folder {of_kind.absolute()}; of several kinds of labels each has a folder"
            )
        return self.file((of_kind if of_kind.is_dir() else labels) / self._inside / name)

    def decode(self, field: str, path: Path) -> np.ndarray:
        decoded: np.ndarray = getattr(self, f"_{field}")(path)
        return decoded

    def _segmentation(self, path: Path) -> np.ndarray:
        known = self._classes
        if known.palette and _is_colour(path):
            return _ids_of_colours(path, known.palette)
        ids = read_map(path, "uint8", "segmentation").astype(np.int32)
        self.check_ids(ids, path, known.count - 1, known.ignore)
        return np.where(ids == known.ignore, 255, ids).astype(np.int32)

    def _boundaries(self, path: Path) -> np.ndarray:
        grey = read_map(path, "uint8", "boundaries")
        if grey.max() == 1:  # 1 of 255 everywhere would be no boundary at all
            raise UserError(
                f"folder: {path} has 1 as its largest value; expected 0 (none) to 255 (boundary), not 0 and 1"
            )
        return grey.astype(np.float32) / 255

    def _saliency(self, path: Path) -> np.ndarray:
        grey = read_map(path, "uint8", "saliency")
        if 0 < grey.max() < SALIENT:
            raise UserError(
                f"folder: {path} has {grey.max()} as its largest value, and salient is from {SALIENT} on; "
                "expected 255 (salient) or 0 (not)"
            )
        return (grey >= SALIENT).astype(np.int32)

    def _depth(self, path: Path) -> np.ndarray:
        return read_map(path, "uint16", "depth").astype(np.float32) / 1000

    def _normals(self, path: Path) -> np.ndarray:
        colours = read_image(path).astype(np.float32)
        vectors = (colours / 127.5 - 1) * np.array([1, -1, -1], np.float32)
        length = np.linalg.norm(vectors, axis=-1, keepdims=True)
        known = colours.any(-1, keepdims=True) & (length > 0.5)
        return np.where(known, vectors / np.maximum(length, 0.5), 0).astype(np.float32)


def _listed_name(line: str, known: Mapping[str, Path]) -> str:
    """The image's name in a line of a list, which may be that of its file: in "scan.001" no suffix begins."""
    path = Path(line)
    return path.name if path.name in known else path.stem


def _read_classes(path: Path | None, config: FolderConfig, place: Path) -> _Classes:
    """Raises UserError: a file of another form, or numbers of classes that do not agree."""
    said: dict[str, Any] = {}
    if path is not None:
        try:
            said = parse_json(path.read_text(encoding="utf-8"))
            if isinstance(said.get("classes"), str):
                raise ValueError("classes is one text")  # each letter would be a class
            names = tuple(str(name) for name in said.get("classes", ()))
            palette = tuple((int(red), int(green), int(blue)) for red, green, blue in said.get("palette", ()))
            ignore = int(said.get("ignore", 255))
            _check_palette(palette)
            if not 0 <= ignore <= 255:
                raise ValueError(f"ignore is {ignore}, not 0 to 255")
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f'folder: {path}: {error}; expected {{"classes": [NAMES], "palette": [[R, G, B], ...]}}'
            ) from error
        if unknown := set(said) - {"classes", "palette", "ignore"}:
            raise UserError(
                f"folder: {path}: unknown entry {min(unknown)!r}; expected classes, palette, ignore"
            )
    else:
        names, palette, ignore = (), (), 255
    count = config.classes or len(names) or len(palette)
    for what, given in (("classes", names), ("colours", palette)):
        if given and len(given) != count:
            raise UserError(f"folder: {path} has {len(given)} {what}, and there are {count} classes")
    if not count and "segmentation" in config.fields:
        raise UserError(f"folder: how many classes are there? Give classes=N, or their names in {place}")
    return _Classes(names or tuple(f"class {index}" for index in range(count)), palette, count, ignore)


def _check_palette(palette: tuple[tuple[int, int, int], ...]) -> None:
    """Raises ValueError for a colour that no picture has, or that two classes have: labels would be lost."""
    for index, colour in enumerate(palette):
        if not all(0 <= value <= 255 for value in colour):
            raise ValueError(f"the colour {colour} is not of numbers from 0 to 255")
        if colour in palette[:index]:
            raise ValueError(f"two classes have the colour {colour}")


def _is_colour(path: Path) -> bool:
    try:
        with Image.open(path) as picture:
            return picture.mode in ("RGB", "RGBA")
    except OSError:
        return False  # whoever reads it says what is wrong


def _ids_of_colours(path: Path, palette: tuple[tuple[int, int, int], ...]) -> np.ndarray:
    """Ids int32 (H, W) of a picture in the colours of the classes; black that is none of them is 255."""

    def number(colours: np.ndarray) -> np.ndarray:
        return colours.astype(np.int32) @ np.array([65536, 256, 1], np.int32)

    pixels = number(read_image(path))
    known = number(np.array(palette))
    order = np.argsort(known)
    place = np.minimum(np.searchsorted(known[order], pixels), len(known) - 1)
    ids = np.where(known[order][place] == pixels, order[place], 255).astype(np.int32)
    strange = pixels[(ids == 255) & (pixels != 0)]
    if strange.size:
        colour = int(strange[0])
        rgb = (colour >> 16, colour >> 8 & 255, colour & 255)
        raise UserError(f"folder: {path} has the colour {rgb}, which is not in the palette of {CLASSES}")
    return ids
