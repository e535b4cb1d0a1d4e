"""The dtypes in which a network computes, by rules on the paths of its modules.

Layers compute in the dtype of their input: kernels are cast to it; norms compute in float32 and give it back,
moments included. So it is enough to say in which dtype a module gets its maps. Parameters, optimizer state,
losses, softmax, and all that lies between networks (predictions, masks, a solver's iterates) stay float32.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from typing import Any, Literal, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.trees import named_leaves
from dynpix_jax.core.typing import Params

Dtype = Literal["float32", "bfloat16"]
ComputeDtype = Dtype | tuple[tuple[str, Dtype], ...]
"""One dtype for the whole network, or (regex, dtype) for modules by path; the first that matches counts."""

Tree = TypeVar("Tree")


class Policy:
    """In which dtype each module of a network gets its maps (B, H, W, C).

    A rule whose regex matches a module's path ("backbone/res4_1") holds for all within it; what no rule
    matches computes in float32.

    Args:
        compute_dtype: The setting ``model.compute_dtype``.
        float32: Regexes of modules that compute in float32 in any case: those that make a gate's logits.

    Raises:
        UserError: A rule that is no regular expression.
    """

    def __init__(self, compute_dtype: ComputeDtype = "float32", float32: tuple[str, ...] = ()):
        given = ((".*", compute_dtype),) if isinstance(compute_dtype, str) else compute_dtype
        self._given = {pattern: _within(pattern) for pattern, _ in given}
        kept = [(_within(pattern), "float32") for pattern in float32]
        self._rules = [*kept, *((self._given[pattern], dtype) for pattern, dtype in given)]

    @cached_property
    def plain(self) -> bool:
        """Whether all of the network computes in float32."""
        return all(dtype == "float32" for _, dtype in self._rules)

    def dtype(self, path: str) -> jnp.dtype:
        """The dtype of the maps that a module gets."""
        found = (dtype for rule, dtype in self._rules if rule.fullmatch(path))
        return jnp.dtype(next(found, "float32"))

    def in_force(self, root: str = "") -> AbstractContextManager[object]:
        """A context in which Flax modules get their maps in their dtype; ``root``: path of an applied module.

        A network itself gets its arguments as they are: images in 0..255 are not to be rounded.
        """
        return nullcontext() if self.plain else nn.intercept_methods(partial(self._call, root))

    def check(self, params: Params, following: tuple[str, ...] = ()) -> None:
        """Sees that every rule of the settings matches a module that reads it.

        Args:
            params: Of the network.
            following: Regexes of modules that compute in the dtype of what they read, whatever the rules say.

        Raises:
            UserError: One does not.
        """
        paths = {path.rpartition("/")[0] for path, _ in named_leaves(params)}
        free = {path for path in paths if not any(re.fullmatch(one, path) for one in following)}
        for pattern, rule in self._given.items():
            if any(rule.fullmatch(path) for path in free):
                continue
            what = "matches no module with parameters"
            if found := sorted(path for path in paths if rule.fullmatch(path)):
                what = f"has no effect: '{found[0]}' computes in the dtype of the maps that it reads"
            raise UserError(f"config.model.compute_dtype: '{pattern}' {what}")

    def _call(
        self,
        root: str,
        method: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        path = "/".join(filter(None, (root, *context.module.path)))
        if path:
            args, kwargs = jax.tree.map(partial(_as_map_of, self.dtype(path)), (args, kwargs))
        return method(*args, **kwargs)


def widen(tree: Tree) -> Tree:
    """A tree with its bfloat16 arrays as float32."""

    def leaf(value: Any) -> Any:
        return value.astype(jnp.float32) if getattr(value, "dtype", None) == jnp.bfloat16 else value

    wide: Tree = jax.tree.map(leaf, tree)
    return wide


def _within(pattern: str) -> re.Pattern[str]:
    """Matches the paths that a rule names, and all below."""
    try:
        return re.compile(rf"(?:{pattern})(?:/.*)?")
    except re.error as error:
        what = f"'{pattern}' is not a regular expression: {error}"
        raise UserError(f"config.model.compute_dtype: {what}") from error


def _as_map_of(dtype: jnp.dtype, value: Any) -> Any:
    is_map = isinstance(value, jax.Array) and value.ndim == 4 and jnp.issubdtype(value.dtype, jnp.floating)
    return value.astype(dtype) if is_map else value
