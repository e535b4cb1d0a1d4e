"""Description of a network for the import of published weights; the ``*_names`` modules fill it in."""

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
    """Destination of an imported tensor.

    Attributes:
        name: Our flat name, such as "params/stem_conv/kernel".
        ndim: Required number of axes; -1: any.
        convert: Converts the layout.
    """

    name: str
    ndim: int
    convert: Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A network with published weights.

    Attributes:
        model: Number of classes -> the network with all tensors that can be imported.
        translate: A tensor's name in the file -> its target; None for an unknown name.
        example: Example names of the file's tensors, for messages.
        classifier: (name in the file, our name) of the kernel with one output per class.
        is_dropped: Whether a tensor is left out on purpose.
        prepare: Converts the file's names to the form that ``translate`` reads. Raises UserError, without the
            file's name, for tensors of another architecture.
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
    """(channels,), unchanged."""
    return array


def norm_target(module: str, leaf: str) -> Target | None:
    """Target of a norm's tensor by PyTorch's name of the leaf; None for an unknown name."""
    return Target(_NORM_LEAVES[leaf].format(module), 1, vector) if leaf in _NORM_LEAVES else None


def without_wrappers(tensors: Tensors) -> dict[str, np.ndarray]:
    """The tensors without the prefixes ``module.`` and ``model.`` that training programs add."""
    return {_WRAPPERS.sub("", name): array for name, array in tensors.items()}
