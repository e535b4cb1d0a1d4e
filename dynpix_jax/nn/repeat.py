"""Modules of one form, one after another, as one program that a loop runs: it is compiled once.

The parameters stay where they are, each module its own: they are stacked within the step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

Carry = TypeVar("Carry")

_LOOPS: ContextVar[bool] = ContextVar("loops", default=False)


@contextmanager
def repeats_as_loops(on: bool = True) -> Iterator[None]:
    """Whether `repeated` makes loops of what runs inside of this context; else it writes each module out."""
    token = _LOOPS.set(on)
    try:
        yield
    finally:
        _LOOPS.reset(token)


def repeated(modules: Sequence[nn.Module], x: Carry, *args: Any, **kwargs: Any) -> Carry:
    """``x`` through modules of which each takes what the one before has made; they must draw nothing.

    Args:
        modules: Bound; the same class and fields.
        x: Arrays, whose shapes no module changes in a loop.
        args: Further arguments of each.
        kwargs: Likewise.
    """
    if len(modules) < 2 or not _LOOPS.get() or modules[0].is_initializing():
        for module in modules:
            x = module(x, *args, **kwargs)
        return x
    moving = [name for name in ("batch_stats",) if modules[0].is_mutable_collection(name)]
    variables = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[dict(one.variables) for one in modules])
    form = modules[0].clone(parent=None, name=None)

    def body(x: Carry, variables: Any) -> tuple[Carry, Any]:
        result: Any = form.apply(variables, x, *args, mutable=moving, **kwargs)
        return result

    x, moved = jax.lax.scan(body, x, variables)
    for name in moving:
        for index, module in enumerate(modules):
            own = jax.tree.map(lambda leaf, index=index: leaf[index], moved[name])
            for child, tree in own.items():
                module.put_variable(name, child, tree)
    return x
