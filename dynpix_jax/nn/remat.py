"""Rematerialisation: what parts of a network compute is not kept for the backward pass, but computed again.

Networks mark their parts with `remat_unit`; `rematerialized` runs the marked ones, or modules by their paths,
under `jax.checkpoint`. Parameters keep their names, results and gradients their values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, TypeVar

import flax.linen as nn

Level = Literal["stages", "blocks"]
Method = TypeVar("Method", bound=Callable[..., Any])

_LEVELS = "remat_levels"
_root: ContextVar[tuple[str, ...]] = ContextVar("path of an applied module", default=())


def remat_unit(*levels: Level) -> Callable[[Method], Method]:
    """Marks a module's method as a part of the network that is recomputed as a whole, also in subclasses."""

    def mark(method: Method) -> Method:
        setattr(method, _LEVELS, levels)
        return method

    return mark


@contextmanager
def applied_as(path: str) -> Iterator[None]:
    """A context in which a part of a network is applied on its own: paths of modules begin with ``path``."""
    before = _root.set(tuple(path.split("/")))
    try:
        yield
    finally:
        _root.reset(before)


@contextmanager
def rematerialized(remat: str) -> Iterator[set[str]]:
    """Of what networks compute inside of this context, parts keep their inputs and outputs alone.

    Args:
        remat: ``none``, ``stages`` or ``blocks`` (the methods that are marked so), or a regex of the paths of
            modules, whose calls are recomputed ("backbone/res4_.*").

    Yields:
        The paths of the modules that it has met, filled while networks run. Initialisation meets them, too.
    """
    met: set[str] = set()
    inside = False

    def intercept(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        nonlocal inside
        module, name = context.module, context.method_name
        path = "/".join((*_root.get(), *module.path))
        # Within a part all is computed again anyhow: parts of it would be computed a third time.
        if inside or not _is_unit(remat, module, name, path):
            return call(*args, **kwargs)
        met.add(path)
        if module.is_initializing():
            return call(*args, **kwargs)
        inside = True
        try:
            return nn.remat(lambda module: getattr(module, name)(*args, **kwargs))(module)
        finally:
            inside = False

    if remat == "none":
        yield met
    else:
        with nn.intercept_methods(intercept):
            yield met


def _is_unit(remat: str, module: nn.Module, method: str, path: str) -> bool:
    if remat in ("stages", "blocks"):
        marked = (getattr(vars(cls).get(method), _LEVELS, ()) for cls in type(module).__mro__)
        return any(remat in levels for levels in marked)
    return method == "__call__" and re.fullmatch(remat, path) is not None
