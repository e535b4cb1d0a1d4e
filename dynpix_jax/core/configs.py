"""Strict configs: sections become frozen dataclasses, string arguments are typed, config files are loaded.

A config is complete and every key is read, so a misspelt key is an error at start and never a silent default.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import importlib.util
import inspect
import numbers
import operator
import re
import sys
import traceback
import types
import typing
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import ml_collections

from dynpix_jax.core.errors import UserError, suggest

T = TypeVar("T")


def from_config(
    cls: type[T], section: Mapping[str, Any] | ml_collections.ConfigDict, path: str = "config"
) -> T:
    """Build the frozen dataclass `cls` from a config section, strictly.

    Types are those of the fields: int (accepted for float), float, bool, str, None, Literal, unions,
    `tuple[X, ...]` and `tuple[X, Y]` (lists are accepted), `list[X]`, `dict[str, X]`, nested dataclasses,
    Any. A field with a default may be left out.

    Args:
        cls: a dataclass type.
        section: the section's keys and values.
        path: full name of the section, for messages.

    Raises:
        UserError: an unknown, missing or mistyped key, or a value that `cls.__post_init__` refuses with a
            ValueError("key: why") or ValueError("key.key: why"); the message has the key's full path.
    """
    if not _is_mapping(section):
        raise UserError(f"{path}: expected a section with keys, got {_show(section)}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for key in section:
        if key not in fields:
            raise UserError(f"{path}.{key}: unknown key; {suggest(str(key), fields)}")
    values = {}
    for name, field in fields.items():
        if name in section:
            values[name] = _convert(hints[name], _get(section, name, f"{path}.{name}"), f"{path}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"{path}.{name}: missing; expected {_type_name(hints[name])}")
    try:
        return cls(**values)
    except ValueError as error:
        names_a_key = re.split(r"[.\[:]", str(error), maxsplit=1)[0] in fields
        raise UserError(f"{path}{'.' if names_a_key else ': '}{error}") from error


def parse_arg(arg: str | None, **spec: Any) -> ml_collections.ConfigDict:
    """Read a config's string argument "variant=gated,rho=0.7" with the types of the defaults in `spec`.

    A bool may be given by its name alone. A tuple default takes values joined by "+", each of the type of the
    default's first element (str if the default is empty); "name=" gives the empty tuple.

    Args:
        arg: comma-separated `name=value`; None or "" gives the defaults.
        **spec: every valid name with its default, of type bool, int, float, str or tuple.

    Returns:
        ConfigDict with all names of `spec`.

    Raises:
        UserError: unknown name, repeated name, or a value that is not of the default's type.
    """
    values = dict(spec)
    seen: set[str] = set()
    for name, has_value, text in _items(arg):
        if name not in spec:
            raise UserError(f"config argument '{name}' is unknown; {suggest(name, spec)}")
        if name in seen:
            raise UserError(f"config argument '{name}' is given twice")
        seen.add(name)
        if not has_value:
            if not isinstance(spec[name], bool):
                raise UserError(f"config argument '{name}' needs a value: {name}={_show(spec[name])}")
            text = "true"
        values[name] = _parse_value(name, text, spec[name])
    return ml_collections.ConfigDict(values)


def given_args(arg: str | None) -> frozenset[str]:
    """The names that a string argument gives: `parse_arg` does not tell them from the defaults."""
    return frozenset(name for name, _, _ in _items(arg))


def check_choices(args: Mapping[str, Any], choices: Mapping[str, Collection[str]]) -> None:
    """Refuses an argument of a config whose value is none of its choices.

    Raises:
        UserError: names the first such argument, and the nearest choice.
    """
    for name, valid in choices.items():
        if args[name] not in valid:
            raise UserError(f"config argument {name}={args[name]}: {suggest(args[name], valid)}")


def check_read_by_variant(
    arg: str | None, args: Mapping[str, Any], read_by: Mapping[str, Collection[str]]
) -> None:
    """Refuses an argument that is given and that the variant does not read: it would change nothing.

    Args:
        arg: the string argument; args: what `parse_arg` made of it, with a `variant`.
        read_by: the variants that read an argument; all read those that it does not name.

    Raises:
        UserError: names the first such argument, and who reads it.
    """
    given = given_args(arg)
    for name, readers in read_by.items():
        if name in given and args["variant"] not in readers:
            raise UserError(
                f"config argument {name}: variant={args['variant']} does not read it; "
                f"{name} is for variant={' or '.join(readers)}"
            )


def _items(arg: str | None) -> list[tuple[str, str, str]]:
    """(name, "=" or "", value as text) of each part of a string argument."""
    parts = filter(None, (part.strip() for part in (arg or "").split(",")))
    return [(name.strip(), equals, text.strip()) for name, equals, text in (p.partition("=") for p in parts)]


def load_config(spec: str | Path) -> ml_collections.ConfigDict:
    """Load "path/to/config.py" or "path/to/config.py:arg": run the file's `get_config(arg)`.

    The file may import its neighbours: `from . import recipe`.

    Raises:
        UserError: no such file, the file does not run, it has no `get_config`, or it takes no argument; a
            misspelt or mistyped key in the file (with its line).
    """
    filename, _, arg = str(spec).partition(":")
    file = Path(filename)
    if not file.is_file():
        raise UserError(f"config file {filename}: not found (looked in {Path.cwd()})")
    if file.suffix != ".py":
        raise UserError(f"config file {filename}: expected a Python file (.py) that defines get_config(arg)")
    module_spec = importlib.util.spec_from_file_location(f"{_folder_package(file)}.{file.stem}", file)
    assert module_spec is not None  # holds for every .py file
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except _MISTAKES as error:
        raise _mistake_in(file, filename, error) from error
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise UserError(f"config file {filename}: defines no function get_config(arg)")
    takes_arg = bool(inspect.signature(get_config).parameters)
    if arg and not takes_arg:
        raise UserError(f"config file {filename}: takes no argument, got ':{arg}'")
    try:
        config = get_config(arg) if takes_arg else get_config()
    except _MISTAKES as error:
        raise _mistake_in(file, filename, error) from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(f"config file {filename}: get_config must return a ConfigDict, got {_show(config)}")
    return config


def _folder_package(file: Path) -> str:
    """The name of a package whose modules are the files beside `file`, wherever the program was started.

    It is within the package of the folder above, so that a config can import what lies there, too (`from ..
    import datasets`).
    """
    folder = file.resolve().parent
    above = f"dynpix_configs_{zlib.crc32(str(folder.parent).encode()):08x}"
    own = folder.name if folder.name.isidentifier() else f"{zlib.crc32(folder.name.encode()):08x}"
    for name, path in ((above, folder.parent), (f"{above}.{own}", folder)):
        if name not in sys.modules:
            package = types.ModuleType(name)
            package.__path__ = [str(path)]
            sys.modules[name] = package
    return f"{above}.{own}"


_MISTAKES = (SyntaxError, ImportError, NameError, AttributeError, KeyError, TypeError)
"""What Python and ConfigDict raise for a misspelt or mistyped key in a config file."""


def _mistake_in(file: Path, filename: str, error: Exception) -> UserError:
    """Names the last line of `file` that was running."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).absolute() == file.absolute()
    ]
    where = f"{filename}, line {lines[-1]}" if lines else filename
    text = str(error).replace("\\n", " ").replace("\\'", "'")  # ConfigDict quotes a message within another
    return UserError(f"config file {where}: {type(error).__name__}: {text}")


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping | ml_collections.ConfigDict)


def _get(section: Any, name: str, path: str) -> Any:
    try:
        return section[name]
    except ml_collections.config_dict.RequiredValueError as error:
        raise UserError(f"{path}: missing; the config leaves this required value open") from error


def _convert(kind: Any, value: Any, path: str) -> Any:
    """`value` as type `kind`, or a UserError that names `path`."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is Literal:
        # 1 == True in Python: compare types as well, so that True is not taken for a valid 1.
        if any(value == choice and type(value) is type(choice) for choice in args):
            return value
        message = f"{path}: expected one of {', '.join(map(repr, args))}, got {_show(value)}"
        if isinstance(value, str) and (hint := suggest(value, map(str, args))).startswith("did"):
            message += f"; {hint.split('?')[0]}?"
        raise UserError(message)
    if origin in (Union, types.UnionType):
        return _convert_union(args, value, path)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return value if isinstance(value, kind) else from_config(kind, value, path)
    if kind is tuple or origin is tuple:
        return _convert_tuple(args, value, path)
    if kind is list or origin in (list, collections.abc.Sequence):
        items = _convert_tuple((args[0] if args else Any, ...), value, path)
        return list(items) if origin is not collections.abc.Sequence else items
    if kind is dict or origin in (dict, collections.abc.Mapping):
        if not _is_mapping(value):
            raise _mistyped(kind, value, path)
        item_kind = args[1] if args else Any
        return {key: _convert(item_kind, _get(value, key, f"{path}.{key}"), f"{path}.{key}") for key in value}
    return _convert_scalar(kind, value, path)


def _convert_union(kinds: tuple[Any, ...], value: Any, path: str) -> Any:
    # An exact match wins over a conversion: for `int | float`, 3 stays an int.
    for kind in kinds:
        if isinstance(kind, type) and type(value) is kind:
            return value
    errors = []
    for kind in kinds:
        try:
            return _convert(kind, value, path)
        except UserError as error:
            errors.append((kind, error))
    solid = [(kind, error) for kind, error in errors if kind is not type(None)]
    if len(solid) == 1 and _is_mapping(value):
        raise solid[0][1]  # Optional section: the inner message names the wrong key.
    raise _mistyped(functools.reduce(operator.or_, kinds), value, path)


def _convert_tuple(kinds: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _mistyped(types.GenericAlias(tuple, kinds) if kinds else tuple, value, path)
    if not kinds:
        return tuple(value)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    elif len(kinds) != len(value):
        raise UserError(f"{path}: expected {len(kinds)} values, got {len(value)}: {_show(value)}")
    return tuple(
        _convert(kind, item, f"{path}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
    )


def _convert_scalar(kind: Any, value: Any, path: str) -> Any:
    if kind in (None, type(None)):
        if value is None:
            return None
    elif kind in (int, float):
        # True is an int in Python, and never meant as one in a config.
        number = numbers.Real if kind is float else numbers.Integral
        if not isinstance(value, bool) and isinstance(value, number):
            return kind(value)
    elif isinstance(kind, type) and isinstance(value, kind):
        return value
    raise _mistyped(kind, value, path)


def _mistyped(kind: Any, value: Any, path: str) -> UserError:
    return UserError(f"{path}: expected {_type_name(kind)}, got {_show(value)}")


def _type_name(kind: Any) -> str:
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_type_name(arg) for arg in get_args(kind))
    if kind in (None, type(None)):
        return "None"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, get_args(kind)))}"
    if dataclasses.is_dataclass(kind):
        return "a section"
    return (
        kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind).replace("typing.", "")
    )


def _show(value: Any) -> str:
    text = repr(value.to_dict() if isinstance(value, ml_collections.ConfigDict) else value)
    text = text if len(text) <= 80 else f"{text[:77]}..."
    return f"{text} ({type(value).__name__})"


def _parse_value(name: str, text: str, default: Any) -> Any:
    """`text` as the type of `default`."""
    if isinstance(default, tuple):
        kind = default[0] if default else ""
        return tuple(_parse_value(name, part, kind) for part in text.split("+")) if text else ()
    if isinstance(default, str):
        return text
    if isinstance(default, bool):
        choices = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if text.lower() in choices:
            return choices[text.lower()]
    elif isinstance(default, int | float):
        try:
            return type(default)(text)
        except ValueError:
            pass
    else:
        kind = type(default).__name__
        raise TypeError(
            f"parse_arg: '{name}' has a default of type {kind}; use bool, int, float, str or tuple"
        )
    raise UserError(f"config argument '{name}': expected {type(default).__name__}, got '{text}'")
