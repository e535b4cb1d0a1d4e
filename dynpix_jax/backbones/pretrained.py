"""Description of a network for the import of published weights; the ``*_names`` modules fill it in.

Tensors are in PyTorch's terms here, whatever the file's format: kernels are (out, in, height, width), a
norm has ``weight``, ``bias``, ``running_mean`` and ``running_var``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import numpy as np

from dynpix_jax.core.errors import UserError

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
class Layer:
    """A layer of a file that holds its graph (MatConvNet's).

    Attributes:
        name: Its name.
        kind: Its class in MatConvNet, such as "dagnn.Conv".
        inputs: Names of the variables that it reads.
        outputs: Names of the variables that it writes.
        params: Names of its parameters; loops share theirs.
        dilation: Of a convolution; 1 of other layers.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    params: tuple[str, ...]
    dilation: int = 1


Settings = Mapping[str, bool | str]
"""Settings of a backbone that weights were trained for: ``stride_in_1x1``, ``preprocessing``."""

TORCH: Settings = {"stride_in_1x1": False, "preprocessing": "torch"}
"""torchvision's: stride in a bottleneck's 3x3; RGB / 255, mean, standard deviation."""
CAFFE: Settings = {"stride_in_1x1": True, "preprocessing": "caffe"}
"""Caffe's and MatConvNet's: stride in its first 1x1; BGR in 0..255 less the mean."""


def _as_they_are(tensors: Tensors, layers: Sequence[Layer]) -> Tensors:
    return tensors


@dataclasses.dataclass(frozen=True)
class Names:
    """How the names of published files become ours.

    Attributes:
        translate: A tensor's name in the file -> its target; None for an unknown name.
        example: Example names of the file's tensors, for messages.
        is_dropped: Whether a tensor is left out on purpose.
        prepare: Converts the file's names to the form that ``translate`` reads, with the file's layers, if it
            has them. Raises UserError, without the file's name, for tensors of another architecture.
        settings: What PyTorch files of these names expect of a backbone; "" where they do not agree. Only its
            keys are settings that this backbone has.
        stem: Our name of the kernel that reads the image.
    """

    translate: Callable[[str], Target | None]
    example: str
    is_dropped: Callable[[str], bool] = lambda name: False
    prepare: Callable[[Tensors, Sequence[Layer]], Tensors] = _as_they_are
    settings: Settings = dataclasses.field(default_factory=dict)
    stem: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture(Names):
    """A network with published weights that has a name of its own, such as "resnet50".

    Attributes:
        model: Number of classes -> the network with all tensors that can be imported.
        classifier: (name in the file, our name) of the kernel with one output per class.
        variant: Tensors -> name of the architecture of exactly these, "" for this one.
    """

    model: Callable[[int], nn.Module]
    classifier: tuple[str, str] = ("fc.weight", "params/fc/kernel")
    variant: Callable[[Tensors], str] = lambda tensors: ""


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


def layer_target(place: str, leaf: str, *, is_norm: bool) -> Target | None:
    """Target of a convolution's or a norm's tensor; None for an unknown leaf."""
    if is_norm:
        return norm_target(place, leaf)
    if leaf == "weight":
        return Target(f"params/{place}/kernel", 4, conv_kernel)
    return Target(f"params/{place}/bias", 1, vector) if leaf == "bias" else None


def without_wrappers(tensors: Tensors) -> dict[str, np.ndarray]:
    """The tensors without the prefixes ``module.`` and ``model.`` that training programs add.

    Raises:
        UserError: Two tensors have the same name without them.
    """
    found: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    for name, array in tensors.items():
        short = _WRAPPERS.sub("", name)
        if origin.setdefault(short, name) != name:
            raise UserError(
                f"tensors {origin[short]!r} and {name!r} are both {short!r}; expected one of them"
            )
        found[short] = array
    return found


def within(prefix: str, target: Target | None) -> Target | None:
    """The same target in a network that has this one as its part ``prefix``."""
    if target is None:
        return None
    collection, _, place = target.name.partition("/")
    return dataclasses.replace(target, name=f"{collection}/{prefix}/{place}")
