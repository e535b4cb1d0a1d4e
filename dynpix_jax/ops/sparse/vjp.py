"""Derivatives of programs without one: Pallas kernels, and loops whose length is known only at run time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp

from dynpix_jax.core.typing import Array
from dynpix_jax.ops.sparse.call import Call

Run = Callable[[Call], Array]


def derivative_of(definition: Run) -> Callable[[Run], Run]:
    """Gives a program the derivative of another program with the same values.

    Differentiable in reverse mode with respect to all floating arrays of a call, under ``jit``, ``vmap`` and
    ``shard_map``.
    """
    return with_pull_back(partial(pull_back, definition))


def with_pull_back(backward: Callable[[Call, Array], list[Array]]) -> Callable[[Run], Run]:
    """Gives a program a derivative.

    Args:
        backward: (call, gradient of the result) -> gradients of the call's floating arrays, in their order.
    """

    def decorate(run: Run) -> Run:
        @wraps(run)
        def differentiable(call: Call) -> Array:
            leaves, structure = jax.tree.flatten(call)
            parts = _Parts(structure, tuple(bool(jnp.issubdtype(v.dtype, jnp.inexact)) for v in leaves))

            @jax.custom_vjp
            def values(floating: list[Array], constant: list[Array]) -> Array:
                return run(parts.join(floating, constant))

            def forward(floating: list[Array], constant: list[Array]) -> tuple[Array, Any]:
                return values(floating, constant), (floating, constant)

            def derivative(saved: tuple[list[Array], list[Array]], gradient: Array) -> tuple[Any, None]:
                return backward(parts.join(*saved), gradient), None

            values.defvjp(forward, derivative)
            return values(*parts.split(leaves))

        return differentiable

    return decorate


# Always compiled as a whole: jax.vjp also computes the values of the definition, which are not used and which
# the compiler drops.
@partial(jax.jit, static_argnums=0)
def pull_back(definition: Run, call: Call, gradient: Array) -> list[Array]:
    """Gradients of the floating arrays of a call, by the derivative of ``definition``."""
    leaves, structure = jax.tree.flatten(call)
    parts = _Parts(structure, tuple(bool(jnp.issubdtype(v.dtype, jnp.inexact)) for v in leaves))
    floating, constant = parts.split(leaves)
    _, vjp = jax.vjp(lambda values: definition(parts.join(values, constant)), floating)
    gradients: list[Array] = vjp(gradient)[0]
    return gradients


@dataclasses.dataclass(frozen=True)
class _Parts:
    """The structure of a call, and which of its arrays have gradients."""

    structure: Any
    floating: tuple[bool, ...]

    def split(self, leaves: Sequence[Array]) -> tuple[list[Array], list[Array]]:
        pairs = list(zip(leaves, self.floating, strict=True))
        return [leaf for leaf, yes in pairs if yes], [leaf for leaf, yes in pairs if not yes]

    def join(self, floating: Sequence[Array], constant: Sequence[Array]) -> Call:
        values, others = iter(floating), iter(constant)
        call: Call = jax.tree.unflatten(
            self.structure, [next(values) if yes else next(others) for yes in self.floating]
        )
        return call
