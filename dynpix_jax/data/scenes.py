"""Small synthetic indoor scenes with exact labels for every task. They need no download.

A room with a rug and pictures, boxes, balls and a standing figure, textured, lit and in perspective. Scene
`index` is a pure function of (seed, split, index).
"""

from __future__ import annotations

import dataclasses
import zlib

import cv2
import numpy as np

from dynpix_jax.core.errors import UserError, suggest
from dynpix_jax.core.source import BOX, HEAD_SIZE, IMAGE, INDEX, Element, FieldSpec, SourceSpec, check_index
from dynpix_jax.data.base import check_fields
from dynpix_jax.data.figure import JOINT_PAIRS, JOINTS, PARTS
from dynpix_jax.data.geometry import crop_to_box
from dynpix_jax.data.pckh_files import HEAD_SHARE
from dynpix_jax.data.scene_layout import CLASSES, Layout

SPLITS = ("train", "val", "test")
LABELS = {
    "segmentation": FieldSpec("label", (None, None), "int32", units="class", ignore=255, classes=CLASSES),
    "boundaries": FieldSpec("boundary", (None, None), "float32", range=(0, 1), ignore=-1),
    "depth": FieldSpec("depth", (None, None), "float32", units="m", range=(0, 20), ignore=0),
    "normals": FieldSpec(
        "normals", (None, None, 3), "float32", units="x right, y down, z forward", range=(-1, 1), ignore=0
    ),
    "albedo": FieldSpec("dense", (None, None, 3), "float32", units="RGB", range=(0, 1), ignore=-1),
    "saliency": FieldSpec("label", (None, None), "int32", ignore=255, classes=("background", "salient")),
    "parts": FieldSpec("label", (None, None), "int32", units="class", ignore=255, classes=PARTS),
    "keypoints": FieldSpec(
        "keypoints", (len(JOINTS), 3), "float32", units="pixels", classes=JOINTS, pairs=JOINT_PAIRS
    ),
    "head_size": HEAD_SIZE,
    "box": BOX,
    "instances": FieldSpec("label", (None, None), "int32", units="object", ignore=255),
}


@dataclasses.dataclass(frozen=True)
class ScenesConfig:
    """Options of the source.

    Attributes:
        size: (H, W) in pixels.
        length: Number of scenes.
        seed: Random seed of the whole set.
        fields: The labels to make, names of `LABELS`.
        crop: (H, W) of crops around the figure, as MPII's are evaluated; needs the field `box`. None for
            whole scenes.
    """

    size: tuple[int, int] = (128, 160)
    length: int = 1000
    seed: int = 0
    fields: tuple[str, ...] = ("segmentation", "boundaries", "depth", "normals")
    crop: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_fields(self.fields, LABELS)
        if min(self.size) < 16:
            raise ValueError(f"size: {self.size}; expected at least 16 x 16 pixels")
        if max(self.size) > 8192:
            raise ValueError(f"size: {self.size}; expected at most 8192 x 8192 pixels")
        if self.length < 1:
            raise ValueError(f"length: {self.length}; expected at least 1")
        if self.crop is not None and (min(self.crop) < 1 or "box" not in self.fields):
            raise ValueError(f"crop: {self.crop}; expected a positive height and width, and the field 'box'")

    @property
    def person_crop(self) -> tuple[int, int] | None:
        """See `CropsPeople`."""
        return self.crop


class Scenes:
    """Elements: `image` uint8 (H, W, 3), the labels of `config.fields`, `index` int64. See `LABELS`.

    boundaries: 1 where the surface changes (another object, part, face of a box, or wall), one pixel wide, on
      the side of what was put into the scene later, which is the object rather than the room.
    keypoints: all joints of MPII; hidden ones are labelled as such, those outside the picture are 0.
    head_size: of the figure, as PCKh has it for a box around the head; 0 where there is no figure.
    box: square, a quarter larger than the figure's joints; all of the scene where there is no figure.
    saliency: the object (not room, rug or picture) that is large and central.
    """

    Config = ScenesConfig
    splits = SPLITS

    def __init__(self, config: ScenesConfig, split: str) -> None:
        if split not in SPLITS:
            raise UserError(f"scenes has no split {split!r}; {suggest(split, SPLITS)}")
        self.config = config
        self._split = split

    @property
    def spec(self) -> SourceSpec:
        """Fields `image`, the labels asked for, `index`."""
        labels = {name: LABELS[name] for name in self.config.fields}
        return SourceSpec("scenes", {"image": IMAGE, **labels, "index": INDEX})

    def __len__(self) -> int:
        return self.config.length

    def name(self, index: int) -> str:
        """Such as "val_00012"."""
        return f"{self._split}_{check_index(self, index):05d}"

    def __getitem__(self, index: int) -> Element:
        index = check_index(self, index)
        rng = np.random.default_rng([self.config.seed % 2**32, zlib.crc32(self._split.encode()), index])
        layout = Layout(rng, self.config.size)
        albedo = _albedo(layout, rng)
        make = {
            "segmentation": lambda: layout.table("class_id"),
            "boundaries": lambda: boundaries_of(layout.caster.surface),
            "depth": lambda: layout.caster.depth.astype(np.float32),
            "normals": lambda: _camera_normals(layout).astype(np.float32),
            "albedo": lambda: albedo.astype(np.float32),
            "saliency": lambda: _saliency(layout),
            "parts": lambda: layout.table("part"),
            "keypoints": lambda: _keypoints(layout),
            "head_size": lambda: _head_size(layout),
            "box": lambda: _box(layout),
            "instances": lambda: layout.table("instance"),
        }
        element = {"image": _shade(layout, albedo, rng)}
        element |= {name: make[name]() for name in self.config.fields}
        element |= {"index": np.array(index, np.int64)}
        crop = self.config.crop
        return element if crop is None else crop_to_box(element, self.spec, crop)


def boundaries_of(surface: np.ndarray) -> np.ndarray:
    """Boundaries float32 (H, W) in {0, 1} of a map of ids: pixels with one of the four neighbours of a lesser
    id.

    Only one side of each change is marked, so the line is one pixel wide, connected over corners, like
    thinned annotations.
    """
    lesser = np.zeros(surface.shape, bool)
    lesser[1:] |= surface[1:] > surface[:-1]
    lesser[:-1] |= surface[:-1] > surface[1:]
    lesser[:, 1:] |= surface[:, 1:] > surface[:, :-1]
    lesser[:, :-1] |= surface[:, :-1] > surface[:, 1:]
    return lesser.astype(np.float32)


def _camera_normals(layout: Layout) -> np.ndarray:
    return layout.caster.normal @ layout.caster.rotation.T


def _albedo(layout: Layout, rng: np.random.Generator) -> np.ndarray:
    """The colours of the surfaces before they are lit, (H, W, 3) in [0, 1]."""
    material = layout.table("material")
    kinds, first, second, period = (np.array(values) for values in zip(*layout.materials, strict=True))
    kind = kinds[material]
    u, v = np.moveaxis(layout.caster.uv / period[material][..., None], -1, 0)
    tile = cv2.GaussianBlur(np.tile(rng.random((32, 32)), (3, 3)), (0, 0), 0.8)[32:64, 32:64]
    tile = (tile - tile.min()) / (tile.max() - tile.min())
    noise = tile[np.floor(8 * u).astype(np.int64) % 32, np.floor(8 * v).astype(np.int64) % 32]
    mix = np.where(kind == 1, (np.floor(u) + np.floor(v)) % 2, np.where(kind == 2, np.floor(2 * u) % 2, 0.0))
    mix = np.where(kind == 3, noise, mix)[..., None]
    return (1 - mix) * first[material] + mix * second[material]


def _shade(layout: Layout, albedo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Ambient light, one lamp far away, soft shadows below things, and the camera's blur and noise: uint8."""
    caster = layout.caster
    lamp = np.array([rng.uniform(-0.8, 0.8), -1.0, rng.uniform(-1.0, 0.1)])
    lamp /= np.linalg.norm(lamp)
    light = rng.uniform(0.35, 0.5) - 0.08 * caster.normal[..., 1]
    light += rng.uniform(0.5, 0.7) * np.maximum(caster.normal @ lamp, 0)
    light /= 1 + 0.01 * caster.depth**2
    floor = np.nonzero(caster.normal[..., 1] < -0.99)
    places = caster.rays[floor] * caster.depth[floor][:, None]
    on_floor = places[:, 1] > layout.floor - 1e-6
    shade = np.ones(len(places))
    for x, z, radius in layout.shadows:
        distance = ((places[:, 0] - x) ** 2 + (places[:, 2] - z) ** 2) / radius**2
        shade -= 0.45 * np.exp(-1.2 * distance) * on_floor
    light[floor] *= np.maximum(shade, 0.3)
    image = cv2.GaussianBlur((255 * albedo * light[..., None]).astype(np.float32), (0, 0), 0.5)
    image += rng.normal(0, 2.5, image.shape).astype(np.float32)
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def _saliency(layout: Layout) -> np.ndarray:
    height, width = layout.caster.size
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    is_object = layout.table("class_id") >= CLASSES.index("box")
    instance = layout.table("instance")
    weight = np.bincount(instance.ravel(), (is_object * np.exp(-(x**2 + y**2))).ravel())
    return ((instance == np.argmax(weight)) & is_object).astype(np.int32)


def _keypoints(layout: Layout) -> np.ndarray:
    """(16, 3): x, y, and 0 outside, 1 hidden by an object or another limb, 2 visible."""
    height, width = layout.caster.size
    projected = layout.caster.project(layout.joints) if layout.has_figure else np.zeros((len(JOINTS), 3))
    column, row = np.floor(projected[:, :2] + 0.5).astype(np.int64).T
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (projected[:, 2] > 0)
    row, column = np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)
    # A joint lies inside of its limbs: what is seen there is nearer by no more than the greatest radius.
    near = projected[:, 2] - layout.caster.depth[row, column] < 0.17
    visible = near & (layout.table("class_id")[row, column] == CLASSES.index("person"))
    return np.column_stack([projected[:, :2] * inside[:, None], inside * (1 + visible)]).astype(np.float32)


def _head_size(layout: Layout) -> np.ndarray:
    if not layout.has_figure:
        return np.zeros((), np.float32)
    depth = layout.caster.project(layout.head[None])[0, 2]
    side = 2 * layout.head_radius * layout.caster.focal / depth
    return np.array(HEAD_SHARE * np.sqrt(2) * side, np.float32)


def _box(layout: Layout) -> np.ndarray:
    height, width = layout.caster.size
    low, high = np.zeros(2), np.array([width - 1, height - 1], np.float64)
    side = float(max(height, width))
    if layout.has_figure:
        joints = layout.caster.project(layout.joints)[:, :2]
        low, high = joints.min(0), joints.max(0)
        side = 1.25 * float((high - low).max())
    return np.array([*((low + high) / 2), side, side], np.float32)
