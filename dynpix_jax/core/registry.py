"""One table for each kind of thing that a config names: gates, backbones, tasks, sources, systems."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from dynpix_jax.core.errors import UserError, suggest

T = TypeVar("T")


class Registry(Generic[T]):
    """Entries by name; ``package.module:Name`` is imported directly.

    An entry may be such a string, too: it is imported at its first use, so that importing a table costs
    nothing.
    """

    def __init__(self, kind: str, entries: Mapping[str, T | str]):
        self.kind = kind
        self._entries: dict[str, T | str] = dict(entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def register(self, name: str, entry: T | str) -> None:
        """Adds an entry, or replaces one."""
        self._entries[name] = entry

    def resolve(self, name: str, path: str) -> T:
        """The entry of a name; a UserError if there is no such entry, module, or name in the module."""
        entry: Any = self._entries.get(name, name if ":" in name else None)
        if entry is None:
            raise UserError(
                f"{path}: there is no {self.kind} {name!r}; {suggest(name, self._entries)}; "
                "your own is named package.module:Name"
            )
        found: T = _imported(entry, path) if isinstance(entry, str) else entry
        return found


def _imported(entry: str, path: str) -> Any:
    module_name, _, name = entry.partition(":")
    if not module_name or module_name.startswith("."):
        raise UserError(f"{path}: {entry!r} names no module; expected package.module:Name")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever a user's module raises
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: cannot import {module_name!r} of {entry!r}: {reason}") from error
    if not hasattr(module, name):
        raise UserError(f"{path}: module {module_name!r} has no {name!r}; {suggest(name, vars(module))}")
    return getattr(module, name)
