"""Maps names of published MobileNetV2s, with squeeze-and-excitation (ASTMT) or without, to ours.

The layers of a block have two numberings: torchvision's (``features.2.conv.1.0``) and an older, flat one
(``features.2.conv.3``), which ASTMT uses too; `flat_to_torchvision` converts the second to the first. ASTMT's
multi-task checkpoints, with a task's name before the leaf, are those of `papers.astmt.weight_names`.
"""

from __future__ import annotations

import re

from dynpix_jax.backbones.mobilenet import MobileNetConfig, MobileNetV2
from dynpix_jax.backbones.pretrained import Architecture, Target, Tensors, conv_kernel, norm_target
from dynpix_jax.backbones.resnet_names import excitation

_SE = re.compile(r"features\.(?P<block>[1-9]|1[0-7])\.se\.fc\.(?P<layer>[02])\.(?P<leaf>weight|bias)")
# Modules of a MobileNetV2 block, as torchvision numbers them, without and with expansion.
_FIRST = {"0.0": "depthwise", "0.1": "depthwise_bn", "1": "project", "2": "project_bn"}
_OTHERS = {
    "0.0": "expand", "0.1": "expand_bn", "1.0": "depthwise", "1.1": "depthwise_bn",
    "2": "project", "3": "project_bn",
}  # fmt: skip
_FLAT_FIRST = {"0": "0.0", "1": "0.1", "3": "1", "4": "2"}
_FLAT_OTHERS = {"0": "0.0", "1": "0.1", "3": "1.0", "4": "1.1", "6": "2", "7": "3"}
_IN_BLOCK = re.compile(r"features\.(?P<block>[1-9]|1[0-7])\.conv\.(?P<module>\d(\.\d)?)\.(?P<leaf>\w+)")


def architecture(name: str) -> Architecture:
    """The architecture of that name, "mobilenetv2" or "se_mobilenetv2"."""
    se = name.startswith("se_")
    config = MobileNetConfig(output_stride=32, se=se)
    return Architecture(
        model=lambda _: MobileNetV2(config),
        translate=translate,
        example="torchvision's names (features.0.0.weight, features.1.conv.0.0.weight, ...)",
        is_dropped=is_classifier,
        prepare=lambda tensors, _: flat_to_torchvision(tensors),
        settings={"preprocessing": "" if se else "torch"},
        stem="params/stem_conv/kernel",
    )


def translate(name: str) -> Target | None:
    """Target of a MobileNetV2 tensor under torchvision's numbering; None for an unknown name."""
    if match := _SE.fullmatch(name):
        return excitation(f"block_{match['block']}/se", match["layer"], match["leaf"])
    if match := re.fullmatch(r"features\.0\.([01])\.(\w+)", name):
        return _place("stem_conv" if match[1] == "0" else "stem_bn", match[2])
    if match := _IN_BLOCK.fullmatch(name):
        module = (_FIRST if match["block"] == "1" else _OTHERS).get(match["module"])
        return None if module is None else _place(f"block_{match['block']}/{module}", match["leaf"])
    return None


def is_classifier(name: str) -> bool:
    """Whether the tensor belongs to the layers above the blocks, which a dense network does not use."""
    return name.startswith(("features.18.", "classifier."))


def flat_to_torchvision(tensors: Tensors) -> Tensors:
    """MobileNetV2's tensors under torchvision's numbering, from either numbering."""
    if "features.2.conv.0.weight" not in tensors:
        return tensors
    renamed = {}
    for name, array in tensors.items():
        if match := _IN_BLOCK.fullmatch(name):
            numbers = _FLAT_FIRST if match["block"] == "1" else _FLAT_OTHERS
            module = numbers.get(match["module"], match["module"])
            name = f"features.{match['block']}.conv.{module}.{match['leaf']}"
        renamed[name] = array
    return renamed


def _place(module: str, leaf: str) -> Target | None:
    if module.endswith("bn"):
        return norm_target(module, leaf)
    # The same transposition turns a depthwise kernel (channels, 1, 3, 3) into (3, 3, 1, channels).
    return Target(f"params/{module}/kernel", 4, conv_kernel) if leaf == "weight" else None
