"""The table of data sources, and how a config's section becomes one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynpix_jax.core.errors import UserError, suggest
from dynpix_jax.core.registry import Registry
from dynpix_jax.core.sections import from_config, refuse_unread
from dynpix_jax.core.source import (
    Declares,
    FieldSpec,
    ParsedBySplit,
    Source,
    SourceClass,
    SourceSettings,
    SourceSpec,
)

SOURCES: Registry[SourceClass] = Registry(
    "source",
    {
        "bsds500": "dynpix_jax.data.bsds500:BSDS500",
        "camvid": "dynpix_jax.data.camvid:CamVid",
        "cityscapes": "dynpix_jax.data.cityscapes:Cityscapes",
        "folder": "dynpix_jax.data.folder:Folder",
        "fsv": "dynpix_jax.data.fsv:Fsv",
        "joint": "dynpix_jax.data.joint:Joint",
        "mpii": "dynpix_jax.data.mpii:Mpii",
        "nyud_multitask": "dynpix_jax.data.nyud_multitask:NyudMultitask",
        "nyuv2": "dynpix_jax.data.nyuv2:NYUv2",
        "packed": "dynpix_jax.data.packed:Packed",
        "pascal_context": "dynpix_jax.data.pascal_context:PascalContext",
        "pascal_multitask": "dynpix_jax.data.pascal_multitask:PascalMultitask",
        "scenes": "dynpix_jax.data.scenes:Scenes",
        "seven_scenes": "dynpix_jax.data.seven_scenes:SevenScenes",
        "stanford2d3d": "dynpix_jax.data.stanford2d3d:Stanford2D3D",
        "sun_rgbd": "dynpix_jax.data.sun_rgbd:SunRGBD",
        "tfds": "dynpix_jax.data.tfds_source:Tfds",
        "voc2012": "dynpix_jax.data.voc2012:VOC2012",
    },
)
"""All sources by name. A class is imported when a config asks for it: the others cost nothing."""


def open_source(settings: SourceSettings) -> Source:
    """The source that a config names; a UserError if data are missing or not what it expects."""
    return SOURCES.resolve(settings.name, "name")(settings.options, settings.split)


def declared_spec(settings: SourceSettings) -> SourceSpec:
    """What a source's elements hold, by its options alone where its class tells: no file need be there."""
    source = SOURCES.resolve(settings.name, "name")
    return source.declare(settings.options) if isinstance(source, Declares) else open_source(settings).spec


def declared_fields(settings: SourceSettings) -> dict[str, FieldSpec]:
    """The fields of `declared_spec`."""
    return dict(declared_spec(settings).fields)


def read_source(section: Mapping[str, Any], path: str, split: str | None = None) -> SourceSettings:
    """Parses a config's section of a source.

    Args:
        section: `name`, `split` and the source's own options, e.g. ``{"name": "bsds500", "split": "train",
            "root": "DIR", "consensus": 0.3}``.
        path: Full name of the section, for messages.
        split: Replaces the section's.

    Raises:
        UserError: Unknown source, option or split; an option that nothing reads.
    """
    options = dict(section)
    name = options.pop("name", None)
    source = SOURCES.resolve(str(name), f"{path}.name")
    chosen = options.pop("split", None)
    chosen = chosen if split is None else split
    if chosen not in source.splits:
        splits = suggest(str(chosen), source.splits)
        raise UserError(f"{path}.split: {name} has no split {chosen!r}; {splits}")
    config: object = source.Config
    if isinstance(config, ParsedBySplit):
        typed = config.of_split(options, str(chosen), path)
    else:
        typed = from_config(source.Config, options, path)
    settings = SourceSettings(str(name), str(chosen), typed)
    refuse_unread(typed, path, settings.unread_in_split)
    return settings


def build_source(
    section: Mapping[str, Any], split: str | None = None, path: str = "config.data.source"
) -> Source:
    """Parses a section and opens its source: see `read_source` and `open_source`."""
    return open_source(read_source(section, path, split))
