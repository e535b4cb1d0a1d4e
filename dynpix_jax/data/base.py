"""Bases of the sources that read files; a data set's own file tells where they are and what they hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import cv2
import numpy as np

from dynpix_jax.core.errors import UserError, suggest
from dynpix_jax.core.source import IMAGE, INDEX, Element, FieldSpec, SourceSpec, check_index
from dynpix_jax.core.text import local_path
from dynpix_jax.data.contents import sizes
from dynpix_jax.data.files import find_files, need_file, need_folder, same_size
from dynpix_jax.data.images import read_image, read_map

Options = TypeVar("Options")


class FileSource(ABC, Generic[Options]):
    """A data set in a folder. A subclass lists the names of its elements in `find`, and reads one in `read`.

    Args:
        config: The source's options: its ``root`` and, where labels can be chosen, ``fields``.
        split: One of ``splits``.

    Attributes:
        Config: Class of the options, a frozen dataclass.
        splits: The splits that the data set has.
        data_set: Its name.
        where_to_get: How to get the files, a clause that ends messages about missing ones.
        licence: What the data may be used for, and what to cite.
        names: Names of the elements, in order.
        root: The folder.
    """

    Config: ClassVar[type[Any]]
    splits: ClassVar[tuple[str, ...]]
    data_set: ClassVar[str]
    where_to_get: ClassVar[str]
    licence: ClassVar[str] = "not stated"

    def __init__(self, config: Options, split: str) -> None:
        if split not in self.splits:
            raise UserError(f"{self.data_set} has no split {split!r}; {suggest(split, self.splits)}")
        self.config, self.split = config, split
        self.root = self.folder(local_path(config.root))  # type: ignore[attr-defined]
        self.names = self.find()

    @property
    @abstractmethod
    def labels(self) -> Mapping[str, FieldSpec]:
        """The labels that the data set has; a subclass may simply set them."""

    @abstractmethod
    def find(self) -> list[str]:
        """Finds the elements of ``self.split`` in ``self.root``, and returns their names."""

    @abstractmethod
    def read(self, index: int) -> Element:
        """Reads an element: the image and the labels that the options ask for, in their order."""

    @property
    def spec(self) -> SourceSpec:
        """Fields `image`, the labels that the options ask for, `index`."""
        labels = {name: self.labels[name] for name in getattr(self.config, "fields", self.labels)}
        return SourceSpec(self.data_set, {"image": IMAGE, **labels, "index": INDEX}, self.licence)

    @classmethod
    def declare(cls, config: Options) -> SourceSpec:
        """The spec of a source with these options; nothing is read."""
        source = object.__new__(cls)
        source.config = config
        return source.spec

    def element_files(self, index: int) -> Sequence[Path]:
        """The files of an element that are its own; () where all share one."""
        return ()

    def mark(self, index: int) -> str:
        """What tells an element from another of its name: the sizes of its files."""
        return sizes(self.element_files(index))

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """The element's own name in the data set."""
        return self.names[check_index(self, index)]

    def __getitem__(self, index: int) -> Element:
        index = check_index(self, index)
        return self.read(index) | {"index": np.array(index, np.int64)}

    # Files of the data set; errors name it and tell where to get them.

    def file(self, path: Path) -> Path:
        """``path``, which must be a file."""
        return need_file(path, self.data_set, self.where_to_get)

    def folder(self, path: Path) -> Path:
        """``path``, which must be a folder."""
        return need_folder(path, self.data_set, self.where_to_get)

    def files(self, folder: Path, *patterns: str) -> list[Path]:
        """The files of a folder that match one of the patterns (globs), sorted; at least one."""
        return find_files(folder, patterns, self.data_set, self.where_to_get)

    def read_ids(self, path: Path, last: int, ignored: int | None = None) -> np.ndarray:
        """Ids int32 (H, W) from 0 to ``last``, or ``ignored``, of a picture of 8 bits."""
        ids = read_map(self.file(path), "uint8", f"{self.data_set} labels").astype(np.int32)
        self.check_ids(ids, path, last, ignored)
        return ids

    def check_ids(self, ids: np.ndarray, path: Path, last: int, ignored: int | None = None) -> None:
        """Raises UserError for an id that is neither in 0 to ``last`` nor ``ignored``."""
        wrong = ids[((ids < 0) | (ids > last)) & (ids != ignored)]
        if wrong.size:
            expected = f"0 to {last}" + ("" if ignored is None else f" or {ignored}")
            raise UserError(f"{self.data_set}: {path} has the id {wrong.max()}; expected {expected}")


class LabelledImages(FileSource[Options]):
    """A data set with a file for each image, and a file for each of its labels.

    Attributes:
        fits: Whether a label of another size than its image is resized to it; otherwise it is an error.
    """

    fits: ClassVar[bool] = False

    @abstractmethod
    def image_file(self, index: int) -> Path:
        """The image of an element."""

    @abstractmethod
    def label_file(self, index: int, field: str) -> Path:
        """A label of an element."""

    @abstractmethod
    def decode(self, field: str, path: Path) -> np.ndarray:
        """Reads a label, in the form that ``labels`` declares."""

    def element_files(self, index: int) -> Sequence[Path]:
        labels = (self.label_file(index, field) for field in self.spec.labels)
        return (self.image_file(index), *labels)

    def read(self, index: int) -> Element:
        path = self.file(self.image_file(index))
        element = {"image": read_image(path)}
        shape = element["image"].shape
        for field in self.spec.labels:
            label_path = self.label_file(index, field)
            label = self.decode(field, label_path)
            if not self.fits:
                same_size(self.data_set, path, shape, label_path, label.shape)
            element[field] = fit(label, shape)
        return element


def fit(label: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A label at the (H, W) of its image, by the nearest pixel."""
    if label.shape[:2] == shape[:2]:
        return label
    resized: np.ndarray = cv2.resize(label, (shape[1], shape[0]), interpolation=cv2.INTER_NEAREST)
    return resized


def ignore_zero(ids: np.ndarray) -> np.ndarray:
    """Classes int32 from 0, 255 = ignore, of ids whose 0 is no class."""
    return np.where(ids == 0, 255, ids.astype(np.int32) - 1).astype(np.int32)


def check_fields(fields: Sequence[str], known: Mapping[str, Any] | tuple[str, ...]) -> None:
    """Checks the labels that a source's options ask for; a ValueError if one is not known, or there twice."""
    for index, field in enumerate(fields):
        if field not in known:
            raise ValueError(f"fields: unknown label {field!r}; {suggest(field, known)}")
        if field in fields[:index]:
            raise ValueError(f"fields: {field!r} is asked for twice")
