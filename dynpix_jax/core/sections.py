"""Sections of a config as frozen dataclasses, strictly: every key is read, every value has the field's type.

A section whose class depends on one of its keys is annotated with the registry of that key:

    @dataclass(frozen=True)
    class PagConfig:
        backbone: Annotated[BackboneConfig, OneOf(BACKBONES, key="name", default="resnet")]
        gate: Annotated[GateConfig, OneOf(GATES, key="kind")]
        task: str
        task_options: Annotated[Task, OneOf(TASKS, key="task", beside=True)] = BESIDE

``backbone=dict(name="resnet", depth=50)`` becomes what `BACKBONES` has under "resnet": that entry if it is a
dataclass, or its attribute ``Config`` (a module or system names its settings so). A user's class is named
``package.module:Name``.

A section's method ``unread`` names the fields that other values leave without effect; `unread` collects them:

    def unread(self) -> Mapping[str, str]:
        return {"momentum": "optimizer 'adamw' has none"} if self.optimizer == "adamw" else {}
"""

from __future__ import annotations

import ast
import collections.abc
import dataclasses
import functools
import numbers
import operator
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin

import ml_collections

from dynpix_jax.core.errors import UserError, suggest
from dynpix_jax.core.registry import Registry

T = TypeVar("T")
_LARGEST = 2**63 - 1
Section: TypeAlias = Mapping[str, Any] | ml_collections.ConfigDict


@dataclasses.dataclass(frozen=True)
class OneOf:
    """Annotation of a section that is parsed as the class that a registry has for a key.

    Attributes:
        registry: Classes, or strings "module:Name"; the settings are the class's ``Config``, or the class
            itself.
        key: Key that names the entry. None in the annotation of a mapping's items: the item's own key.
        default: The name if the section does not have the key; None: it must have it.
        beside: Whether the key is in the enclosing section. Otherwise it is in this one, and every class has
            it as a field.
    """

    registry: Registry[Any]
    key: str | None = "name"
    default: str | None = None
    beside: bool = False

    def settings(self, section: Mapping[str, Any], path: str) -> type:
        """The class for the name in `section`, whose full name is `path`.

        Raises:
            UserError: No name, or one that the registry does not have.
        """
        assert self.key is not None
        name = section.get(self.key, self.default)
        if name is None or name is dataclasses.MISSING:
            what = f"the name of a {self.registry.kind}; {suggest('', self.registry)}"
            raise UserError(f"{path}.{self.key}: missing; expected {what}")
        return self.named(str(name), f"{path}.{self.key}")

    def named(self, name: str, path: str) -> type:
        """The class of an entry; `path` is where its name stands."""
        entry = self.registry.resolve(name, path)
        return typing.cast(type, getattr(entry, "Config", entry))


BESIDE: Any = object()
"""Default of a field whose class a key beside it names: that class with its own defaults."""


class Given(str):
    """A value's text from the command line, read as the type of its field."""

    value: Any = None


def from_config(
    cls: type[T], section: Mapping[str, Any] | ml_collections.ConfigDict, path: str = "config"
) -> T:
    """Build the frozen dataclass `cls` from a config section, strictly.

    Types are those of the fields: int (accepted for float), float, bool, str, None, Literal, unions,
    `tuple[X, ...]` and `tuple[X, Y]` (lists are accepted), `list[X]`, `dict[str, X]`, nested dataclasses,
    `Annotated[X, OneOf(...)]`, Any. A field with a default may be left out.

    Args:
        cls: A dataclass type.
        section: The section's keys and values.
        path: Full name of the section, for messages.

    Raises:
        UserError: An unknown, missing or mistyped key, or a value that `cls.__post_init__` refuses with a
            ValueError("key: why") or ValueError("key.key: why"); the message has the key's full path.
    """
    if not _is_mapping(section):
        raise UserError(f"{path}: expected a section with keys, got {show(section)}")
    fields = {field.name: field for field in settings_fields(cls)}
    for key in section:
        if key not in fields:
            raise UserError(f"{path}.{key}: unknown key; {suggest(str(key), fields)}")
    values = {}
    for name, kind in field_types(cls, section, path).items():
        place, field = f"{path}.{name}", fields[name]
        if name in section:
            values[name] = _convert(kind, _get(section, name, place), place)
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise UserError(f"{place}: missing; expected {_type_name(kind)}")
        elif field.default is BESIDE:
            values[name] = _convert(kind, {}, place)
    try:
        return cls(**values)
    except ValueError as error:
        names_a_key = re.split(r"[.\[:]", str(error), maxsplit=1)[0] in fields
        raise UserError(f"{path}{'.' if names_a_key else ': '}{error}") from error


@functools.cache
def annotated_types(cls: type) -> Mapping[str, Any]:
    """The types of a dataclass's fields as they are written, with `OneOf`."""
    return typing.get_type_hints(cls, include_extras=True)


def field_types(cls: type, section: Section, path: str) -> dict[str, Any]:
    """The types of a dataclass's fields in `section`, where a key may name the class of a field beside it."""
    hints = dict(annotated_types(cls))
    defaults = {field.name: field.default for field in settings_fields(cls)}
    for name in defaults:
        choice = choice_of(hints[name])
        if choice is not None and choice.beside:
            assert choice.key is not None
            around = {choice.key: section[choice.key]} if choice.key in section else defaults
            hints[name] = choice.settings(around, path)
    return {name: hints[name] for name in defaults}


def unread(
    value: Any, path: str = "", outer: Mapping[str, str] | None = None
) -> Iterator[tuple[str, Any, str]]:
    """(path, value, reason) of every value, other than a default, that nothing will read.

    Args:
        value: The section.
        path: Its full name.
        outer: Reasons from the enclosing section: field ("loss.depth" within this one) -> reason.
    """
    reasons = {**_reasons(value), **(outer or {})}
    for name, item, place in _children(value, path):
        reason = reasons.get(name)
        if reason is None:
            inner = {key.partition(".")[2]: why for key, why in reasons.items() if key.startswith(f"{name}.")}
            yield from unread(item, place, inner)
        elif item != _default(value, name):
            yield from (
                (leaf, content, reason) for leaf, content in _changed(item, _default(value, name), place)
            )


def unread_names(section: Any) -> frozenset[str]:
    """Names of the fields of a section that its other values leave without effect."""
    return frozenset(_reasons(section))


def refuse_unread(value: Any, path: str, outer: Mapping[str, str] | None = None) -> None:
    """Refuses a section with a value that nothing reads; see `unread`.

    Raises:
        UserError: Names the first such value, and why nothing reads it.
    """
    for place, content, reason in unread(value, path, outer):
        raise UserError(f"{place}: nothing reads {content!r}: {reason}")


def to_json(value: Any) -> Any:
    """Settings as JSON values, defaults included: equal only for equal settings."""
    if isinstance(value, Mapping | ml_collections.ConfigDict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if dataclasses.is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Given):
        return to_json(value.value)
    return str(value) if isinstance(value, Path) else value.item() if hasattr(value, "item") else value


def _children(value: Any, path: str) -> Iterator[tuple[str, Any, str]]:
    """(name, item, path) of what a dataclass, mapping or tuple holds."""
    dot = f"{path}." if path else ""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield field.name, getattr(value, field.name), f"{dot}{field.name}"
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield name, item, f"{dot}{name}"
    elif isinstance(value, tuple | list):
        for index, item in enumerate(value):
            yield str(index), item, f"{path}[{index}]"


def _reasons(value: Any) -> Mapping[str, str]:
    method = getattr(value, "unread", None)
    return method() if dataclasses.is_dataclass(value) and method is not None else {}


def _default(value: Any, name: str) -> Any:
    field = next(field for field in dataclasses.fields(value) if field.name == name)
    if field.default is BESIDE:
        return type(getattr(value, name))()
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _changed(value: Any, default: Any, path: str) -> Iterator[tuple[str, Any]]:
    """(path, value) of the leaves in which a section differs from its default."""
    if type(value) is not type(default) or not dataclasses.is_dataclass(value):
        yield path, value
        return
    for name, item, place in _children(value, path):
        if item != getattr(default, name):
            yield from _changed(item, getattr(default, name), place)


def settings_fields(cls: Any) -> list[dataclasses.Field[Any]]:
    """The fields of a dataclass that a section gives."""
    return [field for field in dataclasses.fields(cls) if field.init and field.metadata.get("given", True)]


def is_settings(kind: Any) -> bool:
    """Whether a type is that of a section: a dataclass."""
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping | ml_collections.ConfigDict)


def _plain(section: Any) -> Mapping[str, Any]:
    return section if isinstance(section, Mapping) else dict(section.items())


def _get(section: Any, name: str, path: str) -> Any:
    try:
        return section[name]
    except ml_collections.config_dict.RequiredValueError as error:
        raise UserError(f"{path}: missing; the config leaves this required value open") from error


def choice_of(kind: Any) -> OneOf | None:
    """The annotation of a type, or of what a union with None holds."""
    for part in (kind, *(get_args(kind) if _is_union(kind) else ())):
        for note in getattr(part, "__metadata__", ()):
            if isinstance(note, OneOf):
                return note
    return None


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def _convert(kind: Any, value: Any, path: str) -> Any:
    """`value` as type `kind`, or a UserError that names `path`."""
    if isinstance(value, Given):
        value.value = _convert(kind, _read(kind, value), path)
        return value.value
    if is_settings(kind):
        return value if isinstance(value, kind) else from_config(kind, value, path)
    return _CONVERTERS.get(get_origin(kind) or kind, _convert_scalar)(kind, value, path)


def _read(kind: Any, text: str) -> Any:
    """A text as the value of a field of type `kind`: itself if that takes text, else as a Python literal.

    Of a `tuple[X, ...]` of words or numbers one element needs no brackets, and neither do words with commas.
    """
    kinds = get_args(kind) if _is_union(kind) else (kind,)
    choices = [choice for one in kinds if get_origin(one) is Literal for choice in get_args(one)]
    said = _literal(text)
    if text in choices or (str in kinds and said is not None):
        return str(text)
    item = next((get_args(one)[0] for one in kinds if get_args(one)[1:] == (Ellipsis,)), None)
    is_word = item in (str, int, float) or get_origin(item) is Literal
    if not is_word or not text or isinstance(said, list | tuple | dict | None):
        return said
    if said != text:  # a literal: a number, or a word in quotes
        return (said if isinstance(said, str) else _read(item, text),)
    return said if text[0] in "([{" else tuple(_read(item, word.strip()) for word in text.split(","))


def _literal(text: str) -> Any:
    """The Python literal in a text; the text itself if it is none."""
    try:
        return ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(text.lower(), text))
    except (ValueError, SyntaxError):
        return str(text)


def _convert_any(kind: Any, value: Any, path: str) -> Any:
    return value


def _convert_literal(kind: Any, value: Any, path: str) -> Any:
    choices = get_args(kind)
    # 1 == True in Python: compare types as well, so that True is not taken for a valid 1.
    if any(value == choice and type(value) is type(choice) for choice in choices):
        return value
    message = f"{path}: expected one of {', '.join(map(repr, choices))}, got {show(value)}"
    if isinstance(value, str) and (hint := suggest(value, map(str, choices))).startswith("did"):
        message += f"; {hint.split('?')[0]}?"
    raise UserError(message)


def _convert_union(kind: Any, value: Any, path: str) -> Any:
    kinds = get_args(kind)
    # An exact match wins over a conversion: for `int | float`, 3 stays an int.
    for one in kinds:
        if isinstance(one, type) and type(value) is one:
            return value
    errors = []
    for one in kinds:
        try:
            return _convert(one, value, path)
        except UserError as error:
            errors.append((one, error))
    solid = [error for one, error in errors if one is not type(None)]
    if len(solid) == 1 and _is_mapping(value):
        raise solid[0]  # Optional section: the inner message names the wrong key.
    raise _mistyped(functools.reduce(operator.or_, kinds), value, path)


def _convert_annotated(kind: Any, value: Any, path: str) -> Any:
    base, choice = get_args(kind)[0], choice_of(kind)
    if choice is None or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        return _convert(base, value, path)
    if not _is_mapping(value):
        raise UserError(f"{path}: expected a section with keys, got {show(value)}")
    section = dict(_plain(value))
    if choice.key is not None and choice.default is not None:
        section.setdefault(choice.key, choice.default)
    return _convert(choice.settings(section, path), section, path)


def _convert_tuple(kind: Any, value: Any, path: str) -> tuple[Any, ...]:
    kinds = get_args(kind)
    if not isinstance(value, list | tuple):
        raise _mistyped(kind, value, path)
    if not kinds:
        return tuple(value)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    elif len(kinds) != len(value):
        raise UserError(f"{path}: expected {len(kinds)} values, got {len(value)}: {show(value)}")
    return tuple(
        _convert(kind, item, f"{path}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
    )


def _convert_sequence(kind: Any, value: Any, path: str) -> tuple[Any, ...]:
    return _convert_tuple(types.GenericAlias(tuple, ((*get_args(kind), Any)[0], ...)), value, path)


def _convert_list(kind: Any, value: Any, path: str) -> list[Any]:
    return list(_convert_sequence(kind, value, path))


def _convert_mapping(kind: Any, value: Any, path: str) -> dict[str, Any]:
    if not _is_mapping(value):
        raise _mistyped(kind, value, path)
    item_kind = (get_args(kind) or (str, Any))[1]
    choice = choice_of(item_kind)
    found = {}
    for key in value:
        place, item = f"{path}.{key}", _get(value, key, f"{path}.{key}")
        named = choice is not None and choice.key is None and not dataclasses.is_dataclass(item)
        found[key] = _convert(choice.named(key, place) if choice and named else item_kind, item, place)
    return found


def _convert_scalar(kind: Any, value: Any, path: str) -> Any:
    if kind in (None, type(None)):
        if value is None:
            return None
    elif kind in (int, float):
        # True is an int in Python, and never meant as one in a config.
        number = numbers.Real if kind is float else numbers.Integral
        if not isinstance(value, bool) and isinstance(value, number):
            size: Any = value
            if not -_LARGEST <= size <= _LARGEST:  # NaN fails, too
                raise UserError(f"{path}: {show(value)}; expected a finite number of at most 64 bits")
            return kind(value)
    elif isinstance(kind, type) and isinstance(value, kind):
        return value
    raise _mistyped(kind, value, path)


_CONVERTERS: dict[Any, Callable[[Any, Any, str], Any]] = {
    Any: _convert_any,
    Literal: _convert_literal,
    Union: _convert_union,
    types.UnionType: _convert_union,
    Annotated: _convert_annotated,
    tuple: _convert_tuple,
    list: _convert_list,
    collections.abc.Sequence: _convert_sequence,
    dict: _convert_mapping,
    collections.abc.Mapping: _convert_mapping,
}
"""By a type's origin; all others are scalars."""


def _mistyped(kind: Any, value: Any, path: str) -> UserError:
    return UserError(f"{path}: expected {_type_name(kind)}, got {show(value)}")


def _type_name(kind: Any) -> str:
    if _is_union(kind):
        return " or ".join(_type_name(arg) for arg in get_args(kind))
    if kind in (None, type(None)):
        return "None"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, get_args(kind)))}"
    if dataclasses.is_dataclass(kind) or choice_of(kind):
        return "a section"
    return (
        kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind).replace("typing.", "")
    )


def show(value: Any) -> str:
    """A value and its type, for messages."""
    text = repr(value.to_dict() if isinstance(value, ml_collections.ConfigDict) else value)
    text = text if len(text) <= 80 else f"{text[:77]}..."
    return f"{text} ({type(value).__name__})"
