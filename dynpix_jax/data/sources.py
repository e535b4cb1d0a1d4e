"""What a data source is, and the table of the sources there are.

A source is a random-access sequence of dicts of numpy arrays. Its `SourceSpec` declares every field: shape,
dtype, units, range, ignore value, classes, and the `kind` that tells `geometry` how the field moves with the
image.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from dynpix_jax.core.configs import from_config
from dynpix_jax.core.errors import UserError, suggest

Element = dict[str, np.ndarray]
Kind = Literal[
    "image", "boundary", "label", "depth", "normals", "dense", "keypoints", "length", "box", "scalar"
]


@dataclasses.dataclass(frozen=True)
class FieldSpec:
    """One field of an element.

    kind:
      `image`     uint8 (H, W, 3) RGB.
      `boundary`  float32 (H, W), strength in [0, 1], negative = ignore. Thin.
      `label`     int32 (H, W), class ids, or ids of instances.
      `depth`     float32 (H, W), 0 = invalid; divided by the scale when the image is scaled.
      `normals`   float32 (H, W, 3), unit vectors in the camera frame x right, y down, z forward (a visible
                  surface has z < 0); the zero vector = invalid.
      `dense`     float32 (H, W) or (H, W, C), moves like the image (albedo).
      `keypoints` float32 (K, 3): x, y in pixels (0, 0 is the centre of the top left pixel) and, as in COCO, 0
                  = not labelled or outside, 1 = hidden, 2 = visible.
      `length`    float32 (), pixels; grows with the image. 0 = unknown.
      `box`       float32 (4,): x, y of its middle, width and height, in pixels as keypoints; stays upright.
      `scalar`    anything that does not move with the image (index).
    shape: None for an extent that differs between elements.
    ignore: the value of pixels without a label; what lies outside the image is filled with it.
    classes: names of the ids 0, 1, ...; palette: their colours in pictures, RGB, as the data set has them.
    pairs: ids (classes or joints) that change places when the image is mirrored.
    beyond: keypoints that come to lie outside of the image stay labelled.
    """

    kind: Kind
    shape: tuple[int | None, ...]
    dtype: str
    units: str = ""
    range: tuple[float, float] | None = None
    ignore: float | None = None
    classes: tuple[str, ...] = ()
    pairs: tuple[tuple[int, int], ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    beyond: bool = False

    @property
    def dense(self) -> bool:
        """Whether it has a value at every pixel."""
        return self.kind not in ("keypoints", "length", "box", "scalar")


@dataclasses.dataclass(frozen=True)
class SourceSpec:
    """Declares the elements of a source.

    fields: maps each key of an element to its `FieldSpec`.
    licence: what the data may be used for and what to cite, one line; "" for data of our own making.
    """

    name: str
    fields: Mapping[str, FieldSpec]
    licence: str = ""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the fields that are labels: all but the image and the scalars."""
        return tuple(name for name, field in self.fields.items() if field.kind not in ("image", "scalar"))

    def without(self, names: tuple[str, ...]) -> SourceSpec:
        """The spec less the named fields. Raises UserError for a name that is not a field."""
        for name in names:
            if name not in self.fields:
                raise UserError(f"source {self.name!r} has no field {name!r}; {suggest(name, self.fields)}")
        return dataclasses.replace(self, fields={k: v for k, v in self.fields.items() if k not in names})


@runtime_checkable
class Source(Protocol):
    """Random access to elements; reading element i twice gives equal arrays."""

    @property
    def spec(self) -> SourceSpec:
        """What the elements hold."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Element: ...

    def name(self, index: int) -> str:
        """The element's own name in its data set, such as "100075"."""
        ...


IMAGE = FieldSpec("image", (None, None, 3), "uint8", units="RGB", range=(0, 255))
INDEX = FieldSpec("scalar", (), "int64", units="element id")
DEPTH = FieldSpec("depth", (None, None), "float32", units="m", ignore=0)
NORMALS = FieldSpec(
    "normals", (None, None, 3), "float32", units="x right, y down, z forward", range=(-1, 1), ignore=0
)
HEAD_SIZE = FieldSpec("length", (), "float32", units="pixels, of a person; 0.6 of the head box's diagonal")
BOX = FieldSpec("box", (4,), "float32", units="pixels: x, y of the middle, width, height")


def segmentation(classes: tuple[str, ...], palette: tuple[tuple[int, int, int], ...] = ()) -> FieldSpec:
    """The field of a semantic segmentation, int32 (H, W), ids of `classes`, 255 = ignore."""
    return FieldSpec(
        "label", (None, None), "int32", units="class", ignore=255, classes=classes, palette=palette
    )


def check_index(source: Source, index: int) -> int:
    """A plain non-negative index; IndexError (which ends a `for` loop) outside of the source."""
    index = int(index)
    if not 0 <= index < len(source):
        raise IndexError(f"element {index} of {source.spec.name!r}, which has {len(source)} elements")
    return index


def build_source(
    section: Mapping[str, Any], split: str | None = None, path: str = "config.data.source"
) -> Source:
    """Builds the source that a config section names.

    Args:
      section: `name` and the source's own options (the fields of its config class), e.g.
        `{"name": "bsds500", "root": "DIR", "consensus": 0.3}`; it may carry `split`.
      split: one that the source has, most often `train`, `val` or `test`; None takes the section's.
      path: full name of the section, for messages.

    Raises:
      UserError: unknown source, option or split; missing data.
    """
    factory, config, split = source_options(section, split, path)
    return factory(config, split)


def source_config(name: str) -> type:
    """The config class of a source. Raises UserError for an unknown name."""
    module, config_name, _ = _module(name, "source")
    return getattr(module, config_name)


def source_splits(name: str) -> tuple[str, ...]:
    """The splits that a source can have; not all need be on the disk."""
    return tuple(_module(name, "source")[0].SPLITS)


def source_options(
    section: Mapping[str, Any], split: str | None = None, path: str = "config.data.source"
) -> tuple[Callable[[Any, str], Source], Any, str]:
    """(class, its config, split) of the source that `build_source` would build, checked; no data is read."""
    options = dict(section)
    name = options.pop("name", None)
    module, config_name, class_name = _module(name, path)
    split = options.pop("split", None) if split is None else split
    options.pop("split", None)
    if split not in module.SPLITS:
        raise UserError(f"{path}.split: {name} has no split {split!r}; {suggest(str(split), module.SPLITS)}")
    config = from_config(getattr(module, config_name), options, path)
    return getattr(module, class_name), config, split


def _module(name: Any, path: str) -> tuple[ModuleType, str, str]:
    """(module, name of its config class, name of its source class) of a source."""
    # The table holds names, so that building one source does not import the others.
    table = {
        "bsds500": ("bsds500", "BSDS500Config", "BSDS500"),
        "camvid": ("camvid", "CamVidConfig", "CamVid"),
        "cityscapes": ("cityscapes", "CityscapesConfig", "Cityscapes"),
        "fsv": ("fsv", "FsvConfig", "Fsv"),
        "joint": ("joint", "JointConfig", "Joint"),
        "mpii": ("mpii", "MpiiConfig", "Mpii"),
        "nyud_multitask": ("nyud_multitask", "NyudMultitaskConfig", "NyudMultitask"),
        "nyuv2": ("nyuv2", "NYUv2Config", "NYUv2"),
        "packed": ("packed", "PackedConfig", "open_packed"),
        "pascal_context": ("pascal_context", "PascalContextConfig", "PascalContext"),
        "pascal_multitask": ("pascal_multitask", "PascalMultitaskConfig", "PascalMultitask"),
        "scenes": ("scenes", "ScenesConfig", "Scenes"),
        "seven_scenes": ("seven_scenes", "SevenScenesConfig", "SevenScenes"),
        "stanford2d3d": ("stanford2d3d", "Stanford2D3DConfig", "Stanford2D3D"),
        "sun_rgbd": ("sun_rgbd", "SunRGBDConfig", "SunRGBD"),
        "tfds": ("tfds_source", "TfdsConfig", "Tfds"),
        "voc2012": ("voc2012", "VOC2012Config", "VOC2012"),
    }
    if name not in table:
        raise UserError(f"{path}.name: unknown source {name!r}; {suggest(str(name), sorted(table))}")
    module_name, config_name, class_name = table[name]
    return importlib.import_module(f"dynpix_jax.data.{module_name}"), config_name, class_name
