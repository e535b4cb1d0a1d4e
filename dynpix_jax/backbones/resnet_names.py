"""Maps names of published ResNets to ours: torchvision's, Caffe's under the same names, and SE-ResNets.

Source: torchvision.models.resnet. Their ``layer1.0`` is our ``res2_1``: the papers count the stem as the
first stage, and blocks from one. A layer of squeeze-and-excitation is ``layer1.0.se.fc.0`` (ASTMT). A deep
stem is ``conv1``, ``bn1`` ... ``conv3``, ``bn3`` (the ImageNet networks of PSPNet's PyTorch release).
"""

from __future__ import annotations

import collections
import re

import numpy as np

from dynpix_jax.backbones.base import BackboneConfig
from dynpix_jax.backbones.pretrained import (
    TORCH,
    Architecture,
    Target,
    Tensors,
    conv_kernel,
    dense_kernel,
    layer_target,
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
    bottlenecks = any(spec.out_features > spec.features for spec in config.block_specs)
    settings = {
        key: "" if se else value for key, value in TORCH.items() if bottlenecks or key != "stride_in_1x1"
    }
    return Architecture(
        model=lambda classes: ResNet(config, classes=classes),
        translate=translate,
        example=f"torchvision's names (conv1.weight, layer1.0.{'se.fc.0' if se else 'conv1'}.weight, ...)",
        prepare=lambda tensors, _: check_layout(name, from_caffe(tensors)),
        settings=settings,
        stem="params/stem_conv/kernel",
    )


def translate(name: str) -> Target | None:
    """Target of a PyTorch ResNet's tensor; None for an unknown name."""
    if name in _CLASSIFIER:
        return _CLASSIFIER[name]
    if match := re.fullmatch(_BLOCK + r"se\.fc\.(?P<k>[02])\.(?P<leaf>weight|bias)", name):
        return excitation(_format("res{stage}_{block}/se", match), match["k"], match["leaf"])
    module, _, leaf = name.rpartition(".")
    for pattern, ours in _CONVS:
        if leaf == "weight" and (match := re.fullmatch(pattern, module)):
            return Target(f"params/{_format(ours, match)}/kernel", 4, conv_kernel)
    for pattern, ours in _NORMS:
        if match := re.fullmatch(pattern, module):
            return norm_target(_format(ours, match), leaf)
    return None


_CAFFE = re.compile(
    r"(?P<kind>res|bn|scale)(?P<stage>[2-5])(?P<letter>[a-z])(?P<number>\d*)_branch(?P<layer>1|2[abc])\.(?P<blob>[012])"
)
_CAFFE_STEM = re.compile(r"(?P<kind>conv1|bn_conv1|scale_conv1|fc1000)\.(?P<blob>[012])")
_CAFFE_LAYERS = {
    "1": ("downsample.0", "downsample.1"),
    **{f"2{c}": (f"conv{k}", f"bn{k}") for k, c in enumerate("abc", 1)},
}


def from_caffe(tensors: Tensors) -> Tensors:
    """He et al.'s Caffe models (`res2a_branch2a.0`, `bn2a_branch2a.0`, ...) under torchvision's names.

    Caffe divides the sums of a norm's moments by a third blob, and has scale and bias in a layer of their
    own. ResNet-50's first convolution has a bias, which moves the mean of its norm.
    """
    if "res2a_branch2a.0" not in tensors:
        return tensors
    found: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        place, blob, conv = _caffe_place(name)
        if place == "":
            found[name] = array
        elif conv or name.startswith("scale"):
            found[f"{place}.{'weight' if blob == '0' else 'bias'}"] = array
        elif blob != "2":
            factor = float(tensors.get(f"{name[:-1]}2", np.ones(1)).ravel()[0]) or 1.0
            found[f"{place}.running_{'mean' if blob == '0' else 'var'}"] = array / np.float32(factor)
    if "conv1.bias" in found and "bn1.running_mean" in found:
        found["bn1.running_mean"] = found["bn1.running_mean"] - found.pop("conv1.bias")
    return found


def _caffe_place(name: str) -> tuple[str, str, bool]:
    """(torchvision's module, blob, whether it is a convolution or the classifier); "" for an unknown name."""
    if match := _CAFFE_STEM.fullmatch(name):
        module = {"conv1": "conv1", "fc1000": "fc"}.get(match["kind"], "bn1")
        return module, match["blob"], module != "bn1"
    if match := _CAFFE.fullmatch(name):
        block = int(match["number"]) if match["number"] else ord(match["letter"]) - ord("a")
        conv = match["kind"] == "res"
        layer = _CAFFE_LAYERS[match["layer"]][0 if conv else 1]
        return f"layer{int(match['stage']) - 1}.{block}.{layer}", match["blob"], conv
    return "", "", False


_KONG_BLOCK = r"res(?P<stage>[2-5])_(?P<block>\d+)_"
_KONG = (
    (r"conv1(?:_1)?", "stem_conv", "stem_bn"),
    (r"conv1_(?P<k>[23])", "stem_conv{k}", "stem_bn{k}"),
    (_KONG_BLOCK + r"(?P<k>[123])conv", "res{stage}_{block}/conv{k}", "res{stage}_{block}/bn{k}"),
    (
        _KONG_BLOCK + r"projBranch(?:_conv)?",
        "res{stage}_{block}/projection",
        "res{stage}_{block}/projection_bn",
    ),
)


def check_stem(backbone: BackboneConfig, tensors: Tensors) -> None:
    """Compares the stem with that of a MatConvNet ResNet's tensors.

    Raises:
        UserError: One has three 3x3 convolutions, the other has not.
    """
    deep = "conv1_3.weight" in tensors
    if getattr(backbone, "deep_stem", deep) != deep:
        has = "three convolutions" if deep else "one convolution"
        raise UserError(
            f"the tensors are of a ResNet whose stem has {has}; "
            f"change the config: --set model.backbone.deep_stem={deep}"
        )


def translate_matconvnet(name: str) -> Target | None:
    """Target of a tensor of the MatConvNet ResNets that PAG and recurrent scene parsing are built on.

    Source: the layers' names in both releases' scripts. The norm of a convolution is its ``.norm``, see
    `weights.matconvnet_names`; the names of the stem are those of the release's `conv1_1`.
    """
    for pattern, conv, norm in _KONG:
        if match := re.fullmatch(pattern + r"(?P<norm>\.norm)?\.(?P<leaf>\w+)", name):
            place = (norm if match["norm"] else conv).format(**match.groupdict())
            return layer_target(place, match["leaf"], is_norm=bool(match["norm"]))
    return None


def excitation(place: str, layer: str, leaf: str) -> Target | None:
    """Target of the weight or bias of layer "0" or "2" of a squeeze-and-excitation; None for another leaf."""
    place = f"params/{place}/{_SE_LAYERS[layer]}"
    if leaf == "weight":
        return Target(f"{place}/kernel", 2, dense_kernel)
    return Target(f"{place}/bias", 1, vector) if leaf == "bias" else None


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
