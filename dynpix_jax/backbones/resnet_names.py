"""Maps names of published ResNets to ours: torchvision's, Caffe's under the same names, and SE-ResNets.

Source: torchvision.models.resnet. Their ``layer1.0`` is our ``res2_1``: the papers count the stem as the
first stage, and blocks from one. A layer of squeeze-and-excitation is ``layer1.0.se.fc.0`` (ASTMT). A deep
stem is ``conv1``, ``bn1`` ... ``conv3``, ``bn3`` (the ImageNet networks of PSPNet's PyTorch release).
"""

from __future__ import annotations

import collections
import functools
import re

from dynpix_jax.backbones.pretrained import (
    Architecture,
    Target,
    Tensors,
    conv_kernel,
    dense_kernel,
    norm_target,
    vector,
)
from dynpix_jax.backbones.resnet import ResNet, ResNetConfig
from dynpix_jax.core.errors import UserError

DEPTHS = {
    **{f"resnet{depth}": depth for depth in (18, 26, 34, 50, 101)},
    **{f"se_resnet{depth}": depth for depth in (26, 50, 101)},
    **{f"resnet{depth}_deep": depth for depth in (50, 101)},
}

# (their module, our module); {stage} and {block} are theirs with the offsets of this file's docstring.
_BLOCK = r"layer(?P<stage>[1-4])\.(?P<block>\d+)\."
_CONVS = (
    (r"conv1", "stem_conv"),
    (r"conv(?P<k>[23])", "stem_conv{k}"),
    (_BLOCK + r"conv(?P<k>[123])", "res{stage}_{block}/conv{k}"),
    (_BLOCK + r"downsample\.0", "res{stage}_{block}/projection"),
)
_NORMS = (
    (r"bn1", "stem_bn"),
    (r"bn(?P<k>[23])", "stem_bn{k}"),
    (_BLOCK + r"bn(?P<k>[123])", "res{stage}_{block}/bn{k}"),
    (_BLOCK + r"downsample\.1", "res{stage}_{block}/projection_bn"),
)
_CLASSIFIER = {
    "fc.weight": Target("params/fc/kernel", 2, dense_kernel),
    "fc.bias": Target("params/fc/bias", 1, vector),
}
_SE_LAYERS = {"0": "reduce", "2": "expand"}


def architecture(name: str) -> Architecture:
    """The architecture of that name, one of ``DEPTHS``."""
    se = name.startswith("se_")
    config = ResNetConfig(depth=DEPTHS[name], output_stride=32, se=se, deep_stem=name.endswith("_deep"))
    return Architecture(
        lambda classes: ResNet(config, classes=classes),
        translate,
        f"torchvision's names (conv1.weight, layer1.0.{'se.fc.0' if se else 'conv1'}.weight, ...)",
        prepare=functools.partial(check_layout, name),
    )


def translate(name: str) -> Target | None:
    """Target of a PyTorch ResNet's tensor; None for an unknown name."""
    if name in _CLASSIFIER:
        return _CLASSIFIER[name]
    if match := re.fullmatch(_BLOCK + r"se\.fc\.(?P<k>[02])\.(?P<leaf>weight|bias)", name):
        return excitation(_format("res{stage}_{block}", match), match["k"], match["leaf"])
    module, _, leaf = name.rpartition(".")
    for pattern, ours in _CONVS:
        if leaf == "weight" and (match := re.fullmatch(pattern, module)):
            return Target(f"params/{_format(ours, match)}/kernel", 4, conv_kernel)
    for pattern, ours in _NORMS:
        if match := re.fullmatch(pattern, module):
            return norm_target(_format(ours, match), leaf)
    return None


def excitation(block: str, layer: str, leaf: str) -> Target:
    """Target of the weight or bias of layer "0" or "2" of a block's squeeze-and-excitation."""
    place = f"params/{block}/se/{_SE_LAYERS[layer]}"
    return (
        Target(f"{place}/kernel", 2, dense_kernel) if leaf == "weight" else Target(f"{place}/bias", 1, vector)
    )


def _format(ours: str, match: re.Match[str]) -> str:
    groups = match.groupdict()
    stage, block = int(groups.get("stage") or 0) + 1, int(groups.get("block") or 0) + 1
    return ours.format(stage=stage, block=block, k=groups.get("k"))


def check_layout(name: str, tensors: Tensors) -> Tensors:
    """The tensors, after a check of the depth.

    A deeper network has all names of a shallower one, so the blocks are compared.

    Raises:
        UserError: The blocks are those of another depth.
    """
    blocks: dict[int, set[int]] = {stage: set() for stage in range(1, 5)}
    bottleneck = False
    for tensor in tensors:
        if match := re.match(_BLOCK, tensor):
            blocks[int(match["stage"])].add(int(match["block"]))
            bottleneck |= tensor.endswith(".conv3.weight")
    found = tuple(len(blocks[stage]) for stage in range(1, 5)), bottleneck
    kind = name.rstrip("0123456789")
    same = [other for other in DEPTHS if other.startswith(kind) and _layout(DEPTHS[other]) == found]
    if same and name not in same:
        raise UserError(f"the tensors' names are those of {same[0]}, expected {name}")
    return tensors


def _layout(depth: int) -> tuple[tuple[int, ...], bool]:
    """(blocks of each stage, whether they are bottlenecks)."""
    specs = ResNetConfig(depth=depth).block_specs
    counts = collections.Counter(spec.stage for spec in specs)
    return tuple(counts.values()), specs[0].out_features > specs[0].features
