"""Merges changes into sections before they are parsed, and finds the values that this replaces."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from dynpix_jax.core.sections import (
    annotated_types,
    choice_of,
    field_types,
    is_settings,
    settings_fields,
    to_json,
)


def merge(
    kind: Any, section: Mapping[str, Any], changes: Mapping[str, Any], path: str, replaced: list[str]
) -> dict[str, Any]:
    """A copy of a section with changes, which may be nested, applied.

    A change to another entry of a registry (another ``kind`` of gate) replaces the section: the old entry's
    options do not apply to the new one.

    Args:
        kind: Type that the section will be parsed as.
        section: The section's keys and values.
        changes: Keys and values to change.
        path: Full name of the section, for messages.
        replaced: Gets the paths of the leaves of `section` that are not in the result.
    """
    choice = choice_of(kind)
    if choice is not None and not choice.beside and choice.key is not None:
        old = section.get(choice.key, choice.default)
        if changes.get(choice.key, old) != old:
            replaced += [place for place, _ in leaves(section, path)]
            return dict(changes)
        kind = choice.settings({**section, **changes}, path)
    kind = next((arg for arg in get_args(kind) if is_settings(arg)), kind)  # X | None
    kinds = field_types(kind, {**section, **changes}, path) if is_settings(kind) else {}
    merged = dict(section)
    for name, value in changes.items():
        inside, place = section.get(name), f"{path}.{name}"
        if isinstance(inside, Mapping) and isinstance(value, Mapping):
            value = merge(kinds.get(name, Any), inside, value, place, replaced)
        elif name in section:
            replaced += [leaf for leaf, _ in leaves(inside, place)]
        merged[name] = value
    return merged


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of every value that is not a section, through nested sections and lists of them."""
    dot = f"{path}." if path else ""
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from leaves(item, f"{dot}{name}")
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping | list) for item in value):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}[{index}]")
    else:
        yield path, value


def default_of(kind: Any, keys: Sequence[str]) -> Any:
    """The default, as JSON, of the field that `keys` lead to in a dataclass; `MISSING` if there is none."""
    for depth, key in enumerate(keys):
        choice = choice_of(kind)
        if choice is not None and choice.default is not None:
            kind = choice.named(choice.default, ".".join(keys[:depth]))
        kind = next((arg for arg in get_args(kind) if is_settings(arg)), kind)
        fields = {field.name: field for field in settings_fields(kind)} if is_settings(kind) else {}
        if (field := fields.get(key)) is None:
            return dataclasses.MISSING
        if depth == len(keys) - 1:
            factory = field.default_factory
            return to_json(field.default if factory is dataclasses.MISSING else factory())
        kind = annotated_types(kind)[key]
    return dataclasses.MISSING
