"""Names and layouts of PyTorch ResNets (torchvision's, and Caffe's under the same names) in our terms.

Source: torchvision.models.resnet. Their `layer1.0` is our `res2_1`: the papers count the stem as the first
stage, and blocks from one.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping

import numpy as np


def conv_kernel(array: np.ndarray) -> np.ndarray:
    """(out, in, height, width) -> (height, width, in, out)."""
    return array.transpose(2, 3, 1, 0)


def dense_kernel(array: np.ndarray) -> np.ndarray:
    """(out, in) -> (in, out)."""
    return array.transpose(1, 0)


def vector(array: np.ndarray) -> np.ndarray:
    """(channels,), as it is."""
    return array


@dataclasses.dataclass(frozen=True)
class Target:
    """Where a tensor goes: our flat name, the number of axes it must have, and the change of layout."""

    name: str
    ndim: int
    convert: Callable[[np.ndarray], np.ndarray]


_NORM = {
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}

# (their module, our module); {stage} and {block} are theirs with the offsets of this file's docstring.
_BLOCK = r"layer(?P<stage>[1-4])\.(?P<block>\d+)\."
_CONVS = (
    (r"conv1", "stem_conv"),
    (_BLOCK + r"conv(?P<k>[123])", "res{stage}_{block}/conv{k}"),
    (_BLOCK + r"downsample\.0", "res{stage}_{block}/projection"),
)
_NORMS = (
    (r"bn1", "stem_bn"),
    (_BLOCK + r"bn(?P<k>[123])", "res{stage}_{block}/bn{k}"),
    (_BLOCK + r"downsample\.1", "res{stage}_{block}/projection_bn"),
)
_CLASSIFIER = {
    "fc.weight": Target("params/fc/kernel", 2, dense_kernel),
    "fc.bias": Target("params/fc/bias", 1, vector),
}
# A counter that only serves a cumulative average in training.
_DROPPED = re.compile(r"(.*\.)?num_batches_tracked")


def is_dropped(name: str) -> bool:
    """Whether the tensor has no counterpart on purpose."""
    return _DROPPED.fullmatch(name) is not None


def translate(name: str) -> Target | None:
    """Our place for a PyTorch ResNet's tensor, None for a name that no ResNet has."""
    if name in _CLASSIFIER:
        return _CLASSIFIER[name]
    module, _, leaf = name.rpartition(".")
    for pattern, ours in _CONVS:
        if leaf == "weight" and (match := re.fullmatch(pattern, module)):
            return Target(f"params/{_format(ours, match)}/kernel", 4, conv_kernel)
    for pattern, ours in _NORMS:
        if leaf in _NORM and (match := re.fullmatch(pattern, module)):
            collection, parameter = _NORM[leaf]
            return Target(f"{collection}/{_format(ours, match)}/{parameter}", 1, vector)
    return None


def _format(ours: str, match: re.Match[str]) -> str:
    groups = match.groupdict()
    stage, block = int(groups.get("stage") or 0) + 1, int(groups.get("block") or 0) + 1
    return ours.format(stage=stage, block=block, k=groups.get("k"))


def describe_layout(names: Mapping[str, object]) -> tuple[tuple[int, ...], bool]:
    """(blocks in layer1..layer4, whether they are bottlenecks), read off the names alone."""
    blocks: dict[int, set[int]] = {stage: set() for stage in range(1, 5)}
    bottleneck = False
    for name in names:
        if match := re.match(_BLOCK, name):
            blocks[int(match["stage"])].add(int(match["block"]))
            bottleneck |= name.endswith(".conv3.weight")
    return tuple(len(blocks[stage]) for stage in range(1, 5)), bottleneck
