"""Names and layouts of ASTMT's ImageNet networks: SE-ResNet, MobileNetV2 with SE or (torchvision's) without.

MobileNetV2 is published under two numberings of a block's layers: torchvision's (``features.2.conv.1.0``) and
an older, flat one (``features.2.conv.3``), which ASTMT has too. `flat_to_torchvision` makes the first of the
second. ASTMT's multi-task networks have a task's name before the leaf; what is imported here is what they
start from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from dynpix_jax.weights import torch_names
from dynpix_jax.weights.torch_names import Target, conv_kernel, dense_kernel, vector

_SE = re.compile(r"(?P<block>.+)\.se\.fc\.(?P<layer>[02])\.(?P<leaf>weight|bias)")
_LAYERS = {"0": "reduce", "2": "expand"}
_NORM = {
    "weight": "params/{}/scale",
    "bias": "params/{}/bias",
    "running_mean": "batch_stats/{}/mean",
    "running_var": "batch_stats/{}/var",
}
# Modules of a MobileNetV2 block, as torchvision numbers them, without and with expansion.
_FIRST = {"0.0": "depthwise", "0.1": "depthwise_bn", "1": "project", "2": "project_bn"}
_OTHERS = {
    "0.0": "expand", "0.1": "expand_bn", "1.0": "depthwise", "1.1": "depthwise_bn",
    "2": "project", "3": "project_bn",
}  # fmt: skip
_FLAT_FIRST = {"0": "0.0", "1": "0.1", "3": "1", "4": "2"}
_FLAT_OTHERS = {"0": "0.0", "1": "0.1", "3": "1.0", "4": "1.1", "6": "2", "7": "3"}
_IN_BLOCK = re.compile(r"features\.(?P<block>[1-9]|1[0-7])\.conv\.(?P<module>\d(\.\d)?)\.(?P<leaf>\w+)")


def translate_se_resnet(name: str) -> Target | None:
    """Our place for a tensor of an SE-ResNet: torchvision's names, and ``layer1.0.se.fc.0.weight``."""
    match = _SE.fullmatch(name)
    if match is None:
        return torch_names.translate(name)
    neighbour = torch_names.translate(f"{match['block']}.bn3.weight")
    return None if neighbour is None else _excite(match, neighbour.name.split("/")[1])


def translate_mobilenet(name: str) -> Target | None:
    """Our place for a tensor of MobileNetV2 under torchvision's numbering."""
    if match := _SE.fullmatch(name):
        block = re.fullmatch(r"features\.([1-9]|1[0-7])", match["block"])
        return None if block is None else _excite(match, f"block_{block[1]}")
    if match := re.fullmatch(r"features\.0\.([01])\.(\w+)", name):
        return _place("stem_conv" if match[1] == "0" else "stem_bn", match[2])
    if match := _IN_BLOCK.fullmatch(name):
        module = (_FIRST if match["block"] == "1" else _OTHERS).get(match["module"])
        return None if module is None else _place(f"block_{match['block']}/{module}", match["leaf"])
    return None


def is_classifier(name: str) -> bool:
    """What stands above the blocks of MobileNetV2, which a dense network has no use for."""
    return name.startswith(("features.18.", "classifier."))


def flat_to_torchvision(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """MobileNetV2's tensors under torchvision's numbering of a block's layers, whichever they have."""
    if "features.2.conv.0.weight" not in tensors:
        return dict(tensors)
    renamed = {}
    for name, array in tensors.items():
        if match := _IN_BLOCK.fullmatch(name):
            numbers = _FLAT_FIRST if match["block"] == "1" else _FLAT_OTHERS
            module = numbers.get(match["module"], match["module"])
            name = f"features.{match['block']}.conv.{module}.{match['leaf']}"
        renamed[name] = array
    return renamed


def _excite(match: re.Match[str], block: str) -> Target:
    layer = f"params/{block}/se/{_LAYERS[match['layer']]}"
    if match["leaf"] == "weight":
        return Target(f"{layer}/kernel", 2, dense_kernel)
    return Target(f"{layer}/bias", 1, vector)


def _place(module: str, leaf: str) -> Target | None:
    if module.endswith("bn"):
        return Target(_NORM[leaf].format(module), 1, vector) if leaf in _NORM else None
    # A depthwise kernel (channels, 1, 3, 3) becomes (3, 3, 1, channels) by the same change of axes.
    return Target(f"params/{module}/kernel", 4, conv_kernel) if leaf == "weight" else None
