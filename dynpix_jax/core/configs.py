"""Config files: how one is loaded, and how it reads its string argument."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import inspect
import sys
import traceback
import types
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import ml_collections

from dynpix_jax.core.errors import UserError, suggest
from dynpix_jax.core.sections import show


@dataclasses.dataclass(frozen=True)
class Choice:
    """Default of an argument that takes one of a few values; see `one_of`."""

    default: Any
    values: tuple[Any, ...]


def one_of(*values: Any, default: Any = None) -> Choice:
    """An argument that takes one of these values, by default the first."""
    return Choice(values[0] if default is None else default, values)


def parse_arg(arg: str | None, **spec: Any) -> ml_collections.ConfigDict:
    """Read a config's string argument "variant=gated,rho=0.7" with the types of the defaults in `spec`.

    A bool may be given by its name alone. A tuple default takes values joined by "+", each of the type of the
    default's first element (str if the default is empty); "name=" gives the empty tuple.

    Args:
        arg: Comma-separated `name=value`; None or "" gives the defaults.
        **spec: Every valid name with its default, of type bool, int, float, str or tuple, or a `Choice`.

    Raises:
        UserError: Unknown name, repeated name, or a value that is not of the default's type, or no choice.
    """
    choices = {name: default for name, default in spec.items() if isinstance(default, Choice)}
    spec |= {name: choice.default for name, choice in choices.items()}
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
                raise UserError(f"config argument '{name}' needs a value: {name}={show(spec[name])}")
            text = "true"
        values[name] = _parse_value(name, text, spec[name])
        if name in choices and values[name] not in choices[name].values:
            valid = map(str, choices[name].values)
            raise UserError(f"config argument {name}={text}: {suggest(text, filter(None, valid))}")
    return ml_collections.ConfigDict(values)


def given_args(arg: str | None) -> frozenset[str]:
    """The names that a string argument gives; in the result of `parse_arg` they look like defaults."""
    return frozenset(name for name, _, _ in _items(arg))


def check_least(args: Mapping[str, Any], least: Mapping[str, float]) -> None:
    """Refuses an argument of a config that is less than it may be.

    Raises:
        UserError: Names the first such argument.
    """
    for name, value in least.items():
        if not args[name] >= value:
            raise UserError(f"config argument {name}={args[name]:g}: expected at least {value:g}")


def refuse_args(arg: str | None, names: Collection[str], who: str) -> None:
    """Refuses arguments of a recipe that one of its configs does not read.

    Raises:
        UserError: Names the first that is given.
    """
    for name in names:
        if name in given_args(arg):
            raise UserError(f"config argument {name}: {who} not read it")


def check_read_by_variant(
    arg: str | None, args: Mapping[str, Any], read_by: Mapping[str, Collection[str]]
) -> None:
    """Refuses an argument that is given and that the variant does not read: it would change nothing.

    Args:
        arg: The string argument.
        args: What `parse_arg` made of it, with a `variant`.
        read_by: Argument -> variants that read it; all variants read arguments without an entry.

    Raises:
        UserError: Names the first such argument, and the variants that read it.
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


def shipped_configs() -> Path:
    """The folder of the configs that come with the library: in a clone at its top, else in the package."""
    clone, package = (Path(__file__).resolve().parents[up] / "configs" for up in (2, 1))
    return clone if (clone / "quickstart.py").is_file() else package


def find_config(filename: str) -> Path:
    """The file of a config: as named, or with that name ("pag/camvid.py") among those that ship.

    Raises:
        UserError: There is no such file.
    """
    file, shipped = Path(filename), shipped_configs()
    if file.is_file():
        return file
    inside = shipped / Path(filename).as_posix().removeprefix("configs/")
    if not file.is_absolute() and inside.is_file():
        return inside
    names = [path.relative_to(shipped).as_posix() for path in shipped.rglob("*.py")]
    near = difflib.get_close_matches(filename.removeprefix("configs/"), names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UserError(
        f"config file {filename}: not found (looked in {Path.cwd()} and among the configs that ship){hint}"
    )


def load_config(spec: str | Path) -> ml_collections.ConfigDict:
    """Load "path/to/config.py" or "path/to/config.py:arg": run the file's `get_config(arg)`.

    The file may import its neighbours: `from . import recipe`. A config that ships needs no path
    ("pag/camvid.py").

    Raises:
        UserError: No such file, the file does not run, it has no `get_config`, or it takes no argument; a
            misspelt or mistyped key in the file (with its line).
    """
    filename, _, arg = str(spec).partition(":")
    file = find_config(filename)
    if file.suffix != ".py":
        raise UserError(f"config file {filename}: expected a Python file (.py) that defines get_config(arg)")
    module_spec = importlib.util.spec_from_file_location(f"{_folder_package(file)}.{file.stem}", file)
    assert module_spec is not None  # holds for every .py file
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise _mistake_in(file, filename, error) from error
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise UserError(f"config file {filename}: defines no function get_config(arg)")
    takes_arg = bool(inspect.signature(get_config).parameters)
    if arg and not takes_arg:
        raise UserError(f"config file {filename}: takes no argument, got ':{arg}'")
    try:
        config = get_config(arg) if takes_arg else get_config()
    except UserError:
        raise
    # A config is a program, and may raise anything.
    except (Exception, SystemExit) as error:
        raise _mistake_in(file, filename, error) from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(f"config file {filename}: get_config must return a ConfigDict, got {show(config)}")
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


def _mistake_in(file: Path, filename: str, error: BaseException) -> UserError:
    """Names the last line of `file` that was running."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).absolute() == file.absolute()
    ]
    where = f"{filename}, line {lines[-1]}" if lines else filename
    text = str(error).replace("\\n", " ").replace("\\'", "'")  # ConfigDict quotes a message within another
    return UserError(f"config file {where}: {type(error).__name__}: {text}")


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
