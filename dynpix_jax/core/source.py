"""Data sources: a source is a random-access sequence of dicts of NumPy arrays, whose fields a spec declares.

Free of jax: worker processes read sources.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np

from dynpix_jax.core.errors import UserError, suggest

Element = dict[str, np.ndarray]
PLACE = {"place": True}
"""Metadata of an option that names a file or folder: what was packed may have been read elsewhere."""
Kind = Literal[
    "image", "boundary", "label", "depth", "normals", "dense", "keypoints", "length", "box", "scalar"
]


@dataclasses.dataclass(frozen=True)
class FieldSpec:
    """One field of an element.

    Attributes:
        kind: How the field is stored, and how it moves with the image (`data.geometry`):

            - `image`: uint8 (H, W, 3) RGB.
            - `boundary`: float32 (H, W), strength in [0, 1], negative = ignore. Thin.
            - `label`: int32 (H, W), ids of classes or instances.
            - `depth`: float32 (H, W), 0 = invalid; divided by the scale when the image is scaled.
            - `normals`: float32 (H, W, 3), unit vectors in the camera frame x right, y down, z forward (a
              visible surface has z < 0); the zero vector = invalid.
            - `dense`: float32 (H, W) or (H, W, C), moves like the image (albedo).
            - `keypoints`: float32 (K, 3): x, y in pixels ((0, 0) is the centre of the top left pixel) and, as
              in COCO, 0 = not labelled or outside, 1 = hidden, 2 = visible.
            - `length`: float32 (), pixels; grows with the image. 0 = unknown.
            - `box`: float32 (4,): x, y of its middle, width and height, in pixels; stays upright.
            - `scalar`: anything that does not move with the image (index).
        shape: The array's shape; None for an extent that differs between elements.
        dtype: NumPy's name of the type.
        units: For readers.
        range: Smallest and largest value.
        ignore: Value of pixels without a label; what lies outside the image is filled with it.
        classes: Names of the ids 0, 1, ...
        pairs: Ids (classes or joints) that change places when the image is mirrored.
        palette: Colours of the classes in pictures, RGB, as the data set has them.
        beyond: Whether keypoints outside of the image stay labelled.
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

    Attributes:
        name: The data set's.
        fields: Every key of an element with its `FieldSpec`.
        licence: What the data may be used for and what to cite, one line; "" for generated data.
    """

    name: str
    fields: Mapping[str, FieldSpec]
    licence: str = ""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the fields that are labels: all but the image and the scalars."""
        return tuple(name for name, field in self.fields.items() if field.kind not in ("image", "scalar"))

    def without(self, names: tuple[str, ...]) -> SourceSpec:
        """The spec less the named fields; a UserError if one is not a field."""
        for name in names:
            if name not in self.fields:
                raise UserError(f"source {self.name!r} has no field {name!r}; {suggest(name, self.fields)}")
        return dataclasses.replace(self, fields={k: v for k, v in self.fields.items() if k not in names})


@runtime_checkable
class Source(Protocol):
    """Random access to elements; reading element i twice gives equal arrays.

    What only some sources have are the protocols `Annotated`, `Grouped` and `Marked`.
    """

    @property
    def spec(self) -> SourceSpec:
        """What the elements hold."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Element: ...

    def name(self, index: int) -> str:
        """The element's own name in its data set, such as "100075"."""
        ...


@runtime_checkable
class Annotated(Protocol):
    """A source of boundaries with each annotator's."""

    def annotators(self, index: int) -> list[np.ndarray] | None:
        """Each annotator's boundaries of an element, bool (H, W); None where it has one label only."""


@runtime_checkable
class Grouped(Protocol):
    """A source with groups of elements; a training batch is of one group.

    Attributes:
        groups: Number of elements and weight of each, in the order of the elements.
    """

    groups: tuple[tuple[int, float], ...]


@runtime_checkable
class Marked(Protocol):
    """A source that can tell an element from another of its name."""

    def mark(self, index: int) -> str:
        """What tells them apart, such as the sizes of the files; "" for nothing."""


class SourceClass(Protocol):
    """What a config names: a class whose instances are sources.

    What only some classes have are the protocols `Declares` and `NumbersClasses`.

    Attributes:
        Config: Frozen dataclass of the source's options, parsed from its section of a config; by itself if it
            is a `ParsedBySplit`.
        splits: Names of its splits, such as "train", "val" and "test"; not all need be on the disk.
    """

    Config: ClassVar[type[Any]]
    splits: ClassVar[tuple[str, ...]]

    def __call__(self, config: Any, split: str, /) -> Source: ...


@runtime_checkable
class Declares(Protocol):
    """A class of sources that tells by the options alone what its elements hold: no file need be there."""

    def declare(self, config: Any, /) -> SourceSpec:
        """The spec of a source with these options."""


@runtime_checkable
class NumbersClasses(Protocol):
    """A class of sources whose label files have ids of their own for the classes of a segmentation.

    Attributes:
        label_ids: The id of each class, in 0 .. 255.
    """

    label_ids: tuple[int, ...]


@runtime_checkable
class ParsedBySplit(Protocol):
    """A class of options that depend on the split."""

    def of_split(self, section: Mapping[str, Any], split: str, path: str, /) -> Any:
        """The options in a section; ``path`` is its full name, for messages."""


@runtime_checkable
class DependsOnSplit(Protocol):
    """Options of a source of which some splits read fewer."""

    def unread_in(self, split: str) -> Mapping[str, str]:
        """Options that are not read in a split, and why."""


@runtime_checkable
class CropsPeople(Protocol):
    """Options of a source whose images may be crops around a person."""

    @property
    def person_crop(self) -> tuple[int, int] | None:
        """(H, W) of the crops; None for whole images."""


@dataclasses.dataclass(frozen=True)
class SourceSettings:
    """A source as a config names it, checked; nothing is read from the disk yet.

    Attributes:
        name: Entry of `data.sources.SOURCES`, or ``package.module:Name``.
        split: One of the class's ``splits``.
        options: The source's own options, an instance of the class's ``Config``.
    """

    name: str
    split: str
    options: Any

    @property
    def unread_in_split(self) -> Mapping[str, str]:
        """Options that the split does not read, and why."""
        return self.options.unread_in(self.split) if isinstance(self.options, DependsOnSplit) else {}

    @property
    def crop(self) -> tuple[int, int] | None:
        """(H, W) of its images if they are crops around a person; None for whole images."""
        return self.options.person_crop if isinstance(self.options, CropsPeople) else None


def annotators_of(source: Source, index: int) -> list[np.ndarray] | None:
    """Each annotator's boundaries of an element, bool (H, W); None where the source has one label only."""
    return source.annotators(index) if isinstance(source, Annotated) else None


def groups_of(source: Source) -> tuple[tuple[int, float], ...]:
    """Number of elements and weight of each group; a training batch is of one group (`data.joint`)."""
    return source.groups if isinstance(source, Grouped) else ((len(source), 1.0),)


def mark_of(source: Source, index: int) -> str:
    """What tells an element from another of its name; "" where nothing does."""
    return source.mark(index) if isinstance(source, Marked) else ""


def check_index(source: Source, index: int) -> int:
    """A plain non-negative index; outside of the source an IndexError, which ends a `for` loop."""
    index = int(index)
    if not 0 <= index < len(source):
        raise IndexError(f"element {index} of {source.spec.name!r}, which has {len(source)} elements")
    return index


IMAGE = FieldSpec("image", (None, None, 3), "uint8", units="RGB", range=(0, 255))
INDEX = FieldSpec("scalar", (), "int64", units="element id")
BOUNDARIES = FieldSpec("boundary", (None, None), "float32", range=(0, 1), ignore=-1)
DEPTH = FieldSpec("depth", (None, None), "float32", units="m", ignore=0)
NORMALS = FieldSpec(
    "normals", (None, None, 3), "float32", units="x right, y down, z forward", range=(-1, 1), ignore=0
)
ALBEDO = FieldSpec("dense", (None, None, 3), "float32", units="RGB", range=(0, 1), ignore=-1)
HEAD_SIZE = FieldSpec("length", (), "float32", units="pixels, of a person; 0.6 of the head box's diagonal")
BOX = FieldSpec("box", (4,), "float32", units="pixels: x, y of the middle, width, height")


def segmentation(classes: tuple[str, ...], palette: tuple[tuple[int, int, int], ...] = ()) -> FieldSpec:
    """The field of a semantic segmentation, int32 (H, W), ids of `classes`, 255 = ignore."""
    return FieldSpec(
        "label", (None, None), "int32", units="class", ignore=255, classes=classes, palette=palette
    )
