"""Stanford 2D-3D-S panoramas: 13 classes, depth and surface normals, read from the official layout.

Layout: ROOT/area_{1,2,3,4,5a,5b,6}/pano/rgb/NAME_rgb.png, and so semantic, depth and normal (_normals.png),
NAME = camera_UUID_ROOM_NUMBER_frame_equirectangular_domain and, for `segmentation`,
ROOT/assets/semantic_labels.json. Panoramas have 2048 x 4096 pixels, 1413 in all; areas 3 and 4 are for
validation.

As in the paper (PAG, section 5.1), pictures are halved and rows 160 to 863 are kept: 704 x 2048. Normals are
turned into the viewer's axes (`panorama`), by the points of `tools.annotate_panorama` or, without, by the
depth.

Source: Armeni, Sax, Zamir, Savarese, "Joint 2D-3D-semantic data for indoor scene understanding", 2017.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dynpix_jax.core.errors import UserError, suggest
from dynpix_jax.core.source import DEPTH, NORMALS, PLACE, Element, segmentation
from dynpix_jax.core.text import parse_json
from dynpix_jax.data.base import FileSource, check_fields
from dynpix_jax.data.files import need_file, need_folder
from dynpix_jax.data.images import read_image, read_map
from dynpix_jax.data.panorama import (
    Axes,
    decode_normals,
    depth_angle,
    detect_axes,
    local_normals,
    point_angle,
)

AREAS = {"train": ("1", "2", "5a", "5b", "6"), "val": ("3", "4")}
WHERE_TO_GET = (
    "get the areas (area_1_no_xyz.tar and so on) from https://github.com/alexsax/2D-3D-Semantics, its folder "
    "assets too, and unpack them into one folder"
)
CLASSES = (
    *("clutter", "beam", "board", "bookcase", "ceiling", "chair", "column", "door", "floor", "sofa"),
    *("table", "wall", "window"),
)
PALETTE = (
    *((120, 120, 120), (180, 140, 70), (40, 90, 160), (150, 90, 40), (230, 230, 210), (220, 60, 60)),
    *((120, 60, 160), (90, 170, 90), (170, 140, 110), (240, 150, 180), (250, 200, 60), (130, 170, 210)),
    (60, 200, 210),
)
FIELDS = {"segmentation": segmentation(CLASSES, PALETTE), "depth": DEPTH, "normals": NORMALS}
# Rows kept of the 1024 of a halved panorama.
ROWS = (160, 864)
FULL_HEIGHT = 1024
FILES = {"rgb": ("rgb",), "semantic": ("semantic",), "depth": ("depth",), "normal": ("normals", "normal")}


@dataclasses.dataclass(frozen=True)
class Stanford2D3DConfig:
    """Options of the source.

    Attributes:
        root: The folder that holds the areas.
        fields: The labels to read, of `segmentation`, `depth` and `normals`.
        points: The file of `tools.annotate_panorama`, for `normals`; "" finds each panorama's north by its
            depth.
    """

    root: str
    fields: tuple[str, ...] = ("segmentation", "depth", "normals")
    points: str = dataclasses.field(default="", metadata=PLACE)

    def __post_init__(self) -> None:
        check_fields(self.fields, FIELDS)

    def unread(self) -> Mapping[str, str]:
        """Options that are not read, and why."""
        return {} if "normals" in self.fields else {"points": "'normals' is not among the fields"}


class Stanford2D3D(FileSource[Stanford2D3DConfig]):
    """Elements: `image` uint8 (704, 2048, 3), the labels asked for, `index` int64.

    `segmentation` int32 (H, W) in 0..12 or 255; `depth` float32 (H, W), metres from the camera (radial, not
    z), 0 = invalid; `normals` float32 (H, W, 3), unit vectors in the axes of the viewer who faces their
    column, zero = invalid.
    """

    Config = Stanford2D3DConfig
    splits = tuple(AREAS)
    data_set = "stanford2d3d"
    where_to_get = WHERE_TO_GET
    licence = "2D-3D-S data licence (to be accepted for the download); cite Armeni et al., 2017"
    labels = FIELDS

    def find(self) -> list[str]:
        self._panoramas = find_panoramas(self.root, AREAS[self.split])
        if "segmentation" in self.config.fields:
            self._classes = read_label_classes(self.root / "assets" / "semantic_labels.json")
        points = Path(self.config.points)
        read = self.config.points
        self._points = read_points(points) if read else None
        return [panorama.name for panorama in self._panoramas]

    def element_files(self, index: int) -> tuple[Path, ...]:
        panorama = self._panoramas[index]
        labels = {"segmentation": "semantic", "depth": "depth", "normals": "normal"}
        return tuple(map(panorama.path, ("rgb", *(labels[field] for field in self.config.fields))))

    def read(self, index: int) -> Element:
        panorama = self._panoramas[index]
        full = panorama.read("rgb")
        element = {"image": cv2.resize(full, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)}
        for field in self.config.fields:
            if field == "segmentation":
                element[field] = decode_semantic(panorama.read("semantic")[::2, ::2], self._classes)
            elif field == "depth":
                element[field] = decode_depth(panorama.read("depth")[::2, ::2])
            else:
                element[field] = self._normals(panorama)
        rows = slice(*(round(row * len(full) / 2 / FULL_HEIGHT) for row in ROWS))
        return {name: np.ascontiguousarray(value[rows]) for name, value in element.items()}

    def _normals(self, panorama: Panorama) -> np.ndarray:
        picture = panorama.read("normal")[::2, ::2]
        stored = decode_normals(picture)
        axes = detect_axes(stored)
        try:
            return local_normals(stored, self._angle(panorama, picture, stored, axes), axes)
        except ValueError as error:
            raise UserError(f"stanford2d3d: normals of {panorama.name} cannot be turned: {error}") from None

    def _angle(self, panorama: Panorama, picture: np.ndarray, stored: np.ndarray, axes: Axes) -> float:
        if self._points is None:
            return depth_angle(stored, decode_depth(panorama.read("depth")[::2, ::2]), axes)
        if panorama.name not in self._points:
            raise UserError(
                f"stanford2d3d: {self.config.points} has no point of {panorama.name}; "
                "set it with python -m tools.annotate_panorama"
            )
        return clicked_angle(picture, self._points[panorama.name], axes)


@dataclasses.dataclass(frozen=True)
class Panorama:
    """The files of one panorama.

    Attributes:
        name: Such as "area_3/camera_0fd..._office_1".
        stem: Path of the rgb file without "rgb.png".
    """

    name: str
    stem: Path

    def path(self, modality: str) -> Path:
        """The file of `rgb`, `semantic`, `depth` or `normal`; a UserError if there is none."""
        folder = self.stem.parent.parent / modality
        paths = [folder / f"{self.stem.name}{suffix}.png" for suffix in FILES[modality]]
        return next((path for path in paths if path.is_file()), None) or need_file(
            paths[0], "stanford2d3d", WHERE_TO_GET
        )

    def read(self, modality: str) -> np.ndarray:
        """The picture at full size, as stored: uint8 (H, W, 3), depth uint16 (H, W)."""
        path = self.path(modality)
        if modality == "depth":
            picture = read_map(path, "uint16", "stanford2d3d depth")
        else:
            picture = read_image(path)
        height, width = picture.shape[:2]
        if width != 2 * height or height % 2:
            raise UserError(
                f"stanford2d3d: {path} has {height} x {width} pixels; expected a panorama, as 2048 x 4096"
            )
        return picture


def find_panoramas(root: Path, areas: tuple[str, ...]) -> list[Panorama]:
    """The panoramas of `areas`, by area and name. A UserError if an area is missing or empty."""
    found = []
    for area in areas:
        folder = need_folder(root / f"area_{area}" / "pano" / "rgb", "stanford2d3d", WHERE_TO_GET)
        paths = sorted(folder.glob("*_rgb.png"))
        if not paths:
            raise UserError(f"stanford2d3d: no *_rgb.png in {folder.absolute()}; {WHERE_TO_GET}")
        for path in paths:
            camera, stem = path.name.split("_frame_")[0], path.name.removesuffix("rgb.png")
            found.append(Panorama(f"area_{area}/{camera}", path.with_name(stem)))
    return found


def clicked_angle(picture: np.ndarray, point: tuple[int, int], axes: Axes, *, radius: int = 2) -> float:
    """The angle of column 0, radians, for a point of `tools.annotate_panorama`; see `point_angle`.

    Args:
        picture: Stored normals, uint8 (H, W, 3), at half of the panorama's size; only the rows around the
            point are decoded.
        point: (x, y) at its full size.
    """
    x, y = point[0] // 2, point[1] // 2
    top = max(y - radius, 0)
    rows = decode_normals(picture[top : y + radius + 1])
    return point_angle(rows, (x, y - top), axes, radius=radius)


def decode_depth(stored: np.ndarray) -> np.ndarray:
    """Distances float32 (H, W) in metres, 0 = invalid, of stored uint16 in 1/512 m.

    65535 is invalid, and so are 0 and 1 (PAG's reader), which no surface is as near as.
    """
    return np.where((stored == 65535) | (stored <= 1), 0, stored).astype(np.float32) / np.float32(512)


def decode_semantic(picture: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Class ids int32 (H, W), 255 = unknown, of a picture uint8 (H, W, 3) of 24-bit numbers of labels.

    Args:
        classes: int32 (N,), the class of each label; see `read_label_classes`.
    """
    red, green, blue = np.moveaxis(picture.astype(np.int32), -1, 0)
    numbers = (red << 16) + (green << 8) + blue
    # Missing is the colour 0D0D0D, a number beyond the list.
    known = numbers < len(classes)
    return np.where(known, classes[np.where(known, numbers, 0)], 255).astype(np.int32)


def read_label_classes(path: Path) -> np.ndarray:
    """int32 (N,): the class of each label of semantic_labels.json ("chair_3_office_7_1"), 255 = unknown."""
    labels = _read_json(need_file(path, "stanford2d3d", WHERE_TO_GET))
    if not isinstance(labels, list) or not labels:
        raise UserError(f"stanford2d3d: {path} is no list of labels; {WHERE_TO_GET}")
    ids = {name: number for number, name in enumerate(CLASSES)} | {"<UNK>": 255}
    names = [str(label).split("_")[0] for label in labels]
    for name in names:
        if name not in ids:
            raise UserError(f"stanford2d3d: {path} has the class {name!r}; {suggest(name, ids)}")
    return np.array([ids[name] for name in names], np.int32)


def read_points(path: Path) -> dict[str, tuple[int, int]]:
    """The canonical points (x, y) in pixels of the full panoramas, by name, of an annotation file.

    Raises:
        UserError: No such file, or not one of `tools.annotate_panorama`.
    """
    if not path.is_file():
        raise UserError(
            f"annotation file not found: {path.absolute()}; make it with python -m tools.annotate_panorama"
        )
    content = _read_json(path)
    try:
        return {str(name): (int(x), int(y)) for name, (x, y) in content["points"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(
            f'{path}: expected {{"points": {{NAME: [x, y]}}}}, as tools.annotate_panorama writes'
        ) from None


def _read_json(path: Path) -> Any:
    try:
        return parse_json(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no JSON file ({error})") from None
