"""Sources of the user's own beside the table: what only some have is asked by contract, not by a name."""

from __future__ import annotations

import dataclasses
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from dynpix_jax.core.source import (
    IMAGE,
    INDEX,
    Element,
    Source,
    SourceSpec,
    annotators_of,
    groups_of,
    mark_of,
)
from dynpix_jax.data.contents import contents_of
from dynpix_jax.data.sources import build_source, declared_fields, declared_spec, read_source


@dataclasses.dataclass(frozen=True)
class Options:
    """With a name that the options of `joint` have, too, and another meaning."""

    sources: str = "cameras 1 and 2"


class Plain:
    """What a source must have, and no more."""

    Config = Options
    splits = ("train",)

    def __init__(self, config: Options, split: str) -> None:
        self.config = config

    @property
    def spec(self) -> SourceSpec:
        return SourceSpec(self.config.sources, {"image": IMAGE, "index": INDEX})

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Element:
        return {"image": np.zeros((4, 4, 3), np.uint8), "index": np.array(index, np.int64)}

    def name(self, index: int) -> str:
        return f"{index}.png"


class Rich(Plain):
    """With all that only some sources have."""

    groups = ((1, 3.0), (1, 1.0))

    @classmethod
    def declare(cls, config: Options, /) -> SourceSpec:
        return SourceSpec(f"{config.sources}, declared", {"index": INDEX})

    def mark(self, index: int) -> str:
        return f"{index} bytes"

    def annotators(self, index: int) -> list[np.ndarray] | None:
        return [np.full((4, 4), bool(index))]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> str:
    found = ModuleType("own_sources")
    found.__dict__.update(Plain=Plain, Rich=Rich)
    monkeypatch.setitem(sys.modules, found.__name__, found)
    return found.__name__


def test_a_source_with_no_more_than_it_must_have(module: str) -> None:
    section: dict[str, Any] = {"name": f"{module}:Plain", "split": "train"}
    settings = read_source(section, "s")
    assert settings.options == Options()
    assert set(declared_fields(settings)) == {"image", "index"}
    source: Source = build_source({**section, "sources": "camera 3"})
    assert source.spec.name == "camera 3"
    assert (annotators_of(source, 0), groups_of(source), mark_of(source, 0)) == (None, ((2, 1.0),), "")
    assert contents_of(source) == ["0.png\t", "1.png\t"]


def test_a_source_with_all(module: str) -> None:
    section: dict[str, Any] = {"name": f"{module}:Rich", "split": "train"}
    assert declared_spec(read_source(section, "s")).name == "cameras 1 and 2, declared"
    source = build_source(section)
    (edges,) = annotators_of(source, 1) or []
    assert edges.all()
    assert groups_of(source) == ((1, 3.0), (1, 1.0))
    assert contents_of(source) == ["0.png\t0 bytes", "1.png\t1 bytes"]
