"""What an import of published weights needs to know of a network; the names files beside this one say it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping

import flax.linen as nn
import numpy as np

Tensors = Mapping[str, np.ndarray]

_WRAPPERS = re.compile(r"^((module|model)\.)+")
_NORM_LEAVES = {
    "weight": "params/{}/scale",
    "bias": "params/{}/bias",
    "running_mean": "batch_stats/{}/mean",
    "running_var": "batch_stats/{}/var",
}


@dataclasses.dataclass(frozen=True)
class Target:
    """Where a tensor goes.

    Attributes:
        name: Our flat name, such as "params/stem_conv/kernel".
        ndim: Number of axes that the tensor must have; -1 for any.
        convert: Change of layout.
    """

    name: str
    ndim: int
    convert: Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A network of which weights are published.

    Attributes:
        model: The network of all tensors that can be imported, with so many classes.
        translate: A tensor's name in the file -> its place with us; None for a name that it does not have.
        example: Names that files have, for messages.
        classifier: (name in the file, our name) of the kernel that has as many outputs as there are classes.
        is_dropped: Whether a name has no counterpart on purpose.
        prepare: Brings a file's names into the form that ``translate`` reads, where there are several. Raises
            UserError, without the file's name, for the tensors of another architecture.
    """

    model: Callable[[int], nn.Module]
    translate: Callable[[str], Target | None]
    example: str
    classifier: tuple[str, str] = ("fc.weight", "params/fc/kernel")
    is_dropped: Callable[[str], bool] = lambda name: False
    prepare: Callable[[Tensors], Tensors] = lambda tensors: tensors


def conv_kernel(array: np.ndarray) -> np.ndarray:
    """(out, in, height, width) -> (height, width, in, out)."""
    return array.transpose(2, 3, 1, 0)


def dense_kernel(array: np.ndarray) -> np.ndarray:
    """(out, in) -> (in, out)."""
    return array.transpose(1, 0)


def vector(array: np.ndarray) -> np.ndarray:
    """(channels,), as it is."""
    return array


def norm_target(module: str, leaf: str) -> Target | None:
    """The place of a normalization's tensor, PyTorch's name of it given; None for another name."""
    return Target(_NORM_LEAVES[leaf].format(module), 1, vector) if leaf in _NORM_LEAVES else None


def without_wrappers(tensors: Tensors) -> dict[str, np.ndarray]:
    """The same without the prefixes ``module.`` and ``model.`` that training programs add."""
    return {_WRAPPERS.sub("", name): array for name, array in tensors.items()}
