"""What a kernel does with the sums of its convolution before it writes them: the layers that follow.

:func:`fusible` says which chains the kernels run as a whole. The vectors of their layers (biases, norms, the
norm of a shortcut) become the rows of a few float32 arrays; :func:`apply` states the arithmetic on any values
with the channels last, in whichever kernel it runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax.numpy as jnp

from dynpix_jax.core.typing import Array
from dynpix_jax.ops.sparse.call import Call
from dynpix_jax.ops.sparse.layers import Affine, Convolution, Relu
from dynpix_jax.ops.sparse.rows import ActiveRows


@dataclasses.dataclass(frozen=True)
class Group:
    """A convolution and the functions of single channels that follow it.

    Attributes:
        convolution: Its bias is the first vector, if it has one.
        rest: The layers up to the next convolution.
    """

    convolution: Convolution
    rest: tuple[Affine | Relu, ...]

    @property
    def steps(self) -> tuple[str, ...]:
        """The arithmetic: "add" takes a vector, "affine" two, "relu" none."""
        names = ["add"] if self.convolution.bias is not None else []
        return (*names, *("affine" if isinstance(layer, Affine) else "relu" for layer in self.rest))

    def vectors(self) -> list[Array]:
        """The vectors that :attr:`steps` take, (features,) each, in float32."""
        found = [] if self.convolution.bias is None else [self.convolution.bias]
        for layer in self.rest:
            found += [layer.multiplier, layer.offset] if isinstance(layer, Affine) else []
        return [vector.astype(jnp.float32) for vector in found]


def fusible(call: Call) -> bool:
    """Whether a chain consists of convolutions, norms and ReLUs only."""
    if isinstance(call.active, ActiveRows):
        return False
    return all(isinstance(layer, Convolution | Affine | Relu) for layer in call.layers)


def groups(call: Call) -> list[Group]:
    """A fusible chain by its convolutions."""
    starts = [i for i, layer in enumerate(call.layers) if isinstance(layer, Convolution)]
    found = []
    for start, end in zip(starts, [*starts[1:], len(call.layers)], strict=True):
        convolution, rest = call.layers[start], call.layers[start + 1 : end]
        assert isinstance(convolution, Convolution)
        found.append(Group(convolution, tuple(x for x in rest if isinstance(x, Affine | Relu))))
    return found


def apply(steps: Sequence[str], values: Array, vector: Callable[[], Array]) -> Array:
    """The steps of a group on float32 values; ``vector`` gives the next vector, spread over the values."""
    for step in steps:
        if step == "relu":
            values = jnp.maximum(values, 0)
        elif step == "add":
            values = values + vector()
        else:
            values = values * vector() + vector()
    return values


def shortcut_steps(call: Call) -> tuple[tuple[str, ...], bool] | None:
    """The arithmetic of the map of a shortcut, and whether a ReLU follows the sum; None: no shortcut."""
    if call.combine is None:
        return None
    return ("affine",) if call.combine.affine is not None else (), call.combine.relu


def shortcut_vectors(call: Call) -> list[Array]:
    """The vectors that the shortcut's steps take."""
    affine = None if call.combine is None else call.combine.affine
    return (
        [] if affine is None else [affine.multiplier.astype(jnp.float32), affine.offset.astype(jnp.float32)]
    )


def join(
    shortcut: tuple[tuple[str, ...], bool] | None, values: Array, current: Array, vector: Callable[[], Array]
) -> Array:
    """What an active position gets: the chain's result, or with a shortcut its sum with the map."""
    if shortcut is None:
        return values
    steps, relu = shortcut
    values = apply(steps, current, vector) + values
    return jnp.maximum(values, 0) if relu else values
