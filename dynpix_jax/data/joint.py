"""Several sources as one, for tasks that no data set has all labels of: what an element lacks is ignored.

    source=dict(name="joint", split="train", sources=(
        dict(name="bsds500", root="data/BSDS500"),
        dict(name="camvid", root="data/CamVid"),
    ))

In training a batch has elements of one of them (`groups`), so each has one data set's labels.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.sections import from_config
from dynpix_jax.core.source import (
    INDEX,
    Element,
    FieldSpec,
    Source,
    SourceSettings,
    SourceSpec,
    annotators_of,
    check_index,
    mark_of,
)
from dynpix_jax.data.sources import declared_spec, open_source, read_source

SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class JointConfig:
    """Options of the source.

    Attributes:
        sources: Its parts. In a file: their sections, each with `name` and the part's own options; one may
            have a `split` of its own, which then stands for the joint one.
        weights: How often a training batch is of each part, in any unit; () all equally often.
    """

    sources: tuple[SourceSettings, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources: (); expected the sections of one source or more")
        if self.weights and (len(self.weights) != len(self.sources) or min(self.weights) <= 0):
            raise ValueError(f"weights: {self.weights}; expected a positive number for each of the sources")

    @classmethod
    def of_split(cls, section: Mapping[str, Any], split: str, path: str) -> JointConfig:
        """The options in a section; parts that name no split have this one."""
        parts = section.get("sources")
        if isinstance(parts, list | tuple) and all(isinstance(part, Mapping) for part in parts):
            parts = tuple(
                read_source(part, f"{path}.sources[{index}]", part.get("split", split))
                for index, part in enumerate(parts)
            )
            section = {**section, "sources": parts}
        return from_config(cls, section, path)


class Joint:
    """Elements of all parts, one part after the other, each with the fields of all.

    A label that an element's part does not have is ignored everywhere: the ignore value of its field, or 0.
    """

    Config = JointConfig
    splits = SPLITS

    def __init__(self, config: JointConfig, split: str) -> None:
        self._parts: list[Source] = [open_source(part) for part in config.sources]
        self._spec = _joint_spec([part.spec for part in self._parts])
        sizes = [len(part) for part in self._parts]
        self._firsts = [0, *itertools.accumulate(sizes)][:-1]
        self._size = sum(sizes)
        self.groups = tuple(zip(sizes, config.weights or (1.0,) * len(sizes), strict=True))

    @property
    def spec(self) -> SourceSpec:
        """The fields of all parts, `index` last."""
        return self._spec

    @classmethod
    def declare(cls, config: JointConfig) -> SourceSpec:
        """The spec of a source with these options, by those of its parts."""
        return _joint_spec([declared_spec(part) for part in config.sources])

    def __len__(self) -> int:
        return self._size

    def name(self, index: int) -> str:
        """Part and name there, such as "bsds500/100075"."""
        part, place = self._place(index)
        return f"{part.spec.name}/{part.name(place)}"

    def mark(self, index: int) -> str:
        """The part's own; "" where it has none."""
        return mark_of(*self._place(index))

    def annotators(self, index: int) -> list[np.ndarray]:
        """Each annotator's boundaries, bool (H, W); none where the part has no boundaries."""
        part, place = self._place(index)
        found = annotators_of(part, place)
        if found is not None:
            return found
        return [part[place]["boundaries"] > 0.5] if "boundaries" in part.spec.fields else []

    def __getitem__(self, index: int) -> Element:
        part, place = self._place(index)
        given = part[place]
        shape = given["image"].shape[:2]
        element = {
            name: given[name] if name in given else _ignored(field, shape)
            for name, field in self._spec.fields.items()
            if name != "index"
        }
        return element | {"index": np.array(index, np.int64)}

    def _place(self, index: int) -> tuple[Source, int]:
        index = check_index(self, index)
        number = bisect.bisect_right(self._firsts, index) - 1
        return self._parts[number], index - self._firsts[number]


def _joint_spec(parts: Sequence[SourceSpec]) -> SourceSpec:
    licences = dict.fromkeys(part.licence for part in parts)
    return SourceSpec("joint", {**_all_fields(parts), "index": INDEX}, "; ".join(filter(None, licences)))


def _all_fields(parts: Sequence[SourceSpec]) -> dict[str, FieldSpec]:
    fields: dict[str, FieldSpec] = {}
    owners: dict[str, str] = {}
    for part in parts:
        for name, field in part.fields.items():
            if name == "index":
                continue
            other = fields.setdefault(name, field)
            owner = owners.setdefault(name, part.name)
            same = ("kind", "dtype", "ignore", "classes")
            if any(getattr(other, what) != getattr(field, what) for what in same):
                raise UserError(
                    f"joint: {name} of {owner} and of {part.name} are not the same label; expected the "
                    "same kind, type, ignore value and classes"
                )
    return fields


def _ignored(field: FieldSpec, shape: tuple[int, int]) -> np.ndarray:
    """A label of an image of `shape` that says nothing."""
    sizes = (*shape, *field.shape[2:]) if field.dense else field.shape
    return np.full([size or 0 for size in sizes], field.ignore or 0, field.dtype)
