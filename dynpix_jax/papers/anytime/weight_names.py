"""Maps names of HRNet's official checkpoints to ours: segmentation, classification, pose, anytime.

Sources: HRNet/HRNet-Semantic-Segmentation (lib/models/seg_hrnet.py), HRNet-Image-Classification, HRNet's pose
code, liuzhuang13/anytime. They share their names; heads differ.
"""

from __future__ import annotations

import functools
import re

from dynpix_jax.backbones.hrnet import ARCHITECTURES, HRNetConfig
from dynpix_jax.backbones.pretrained import (
    Architecture,
    Target,
    Tensors,
    conv_kernel,
    norm_target,
    without_wrappers,
)
from dynpix_jax.core.errors import UserError
from dynpix_jax.papers.anytime.config import AdaptivityConfig, AnytimeConfig, HeadConfig
from dynpix_jax.papers.anytime.network import AnytimeNetwork

# Tensors of classifiers and of the OCR branch, and the constant distances of interpolation.
_DROPPED = re.compile(
    r"(incre_modules|downsamp_modules|classifier|final_layer\.\d|conv3x3_ocr|ocr_gather_head|ocr_distri_head"
    r"|aux_head|cls_head)\..*|.*\.square_dis"
)

_LAYER1 = r"layer1\.(?P<b>\d+)\."
_BLOCK = r"stage(?P<s>[234])\.(?P<m>\d+)\.branches\.(?P<r>\d)\.(?P<b>\d+)\."
_FUSE = r"stage(?P<s>[234])\.(?P<m>\d+)\.fuse_layers\.(?P<i>\d)\.(?P<j>\d)\."
_FUSED = "backbone/stage{s}_{m}/fuse_{i}_{j}"

# (their module, ours); {letters} are groups of the pattern. Units hold conv/conv and bn.
_UNITS = (
    (r"transition1\.0\.", "backbone/transition1_0"),
    (r"transition(?P<s>[123])\.(?P<b>\d)\.0\.", "backbone/transition{s}_{b}"),
    (_FUSE, _FUSED),
    (_FUSE + r"(?P<k>\d)\.", _FUSED + "_{k}"),
)
_CONVS = (
    (r"conv(?P<k>[12])", "backbone/conv{k}/conv/conv"),
    (_LAYER1 + r"conv(?P<k>[123])", "backbone/layer1_{b}/conv{k}"),
    (_LAYER1 + r"downsample\.0", "backbone/layer1_{b}/projection"),
    (_BLOCK + r"conv(?P<k>[12])", "backbone/stage{s}_{m}/branch{r}_{b}/conv{k}/conv/conv"),
    *((theirs + "0", ours + "/conv/conv") for theirs, ours in _UNITS),
    (r"last_layer\.0", "exit4/unit/conv/conv"),
    (r"last_layer\.3", "exit4/classify/conv"),
    (r"final_layer", "exit4/classify/conv"),
)
_NORMS = (
    (r"bn(?P<k>[12])", "backbone/conv{k}/bn"),
    (_LAYER1 + r"bn(?P<k>[123])", "backbone/layer1_{b}/bn{k}"),
    (_LAYER1 + r"downsample\.1", "backbone/layer1_{b}/projection_bn"),
    (_BLOCK + r"bn(?P<k>[12])", "backbone/stage{s}_{m}/branch{r}_{b}/conv{k}/bn"),
    *((theirs + "1", ours + "/bn") for theirs, ours in _UNITS),
    (r"last_layer\.1", "exit4/unit/bn"),
)
# Exit e is a sequence: its n-th convolution has index 4 n + 1, its norm the next one (see RedesignedHead).
_EXIT = re.compile(r"exit(?P<e>[123])\.(?P<at>\d+)")


def architecture(name: str) -> Architecture:
    """The architecture of that name.

    "hrnet_w48" (segmentation or classification), "hrnet_w32_pose", or "anytime_w48" (the full model).
    """
    kind, arch, *_ = name.split("_")
    pose, anytime = name.endswith("_pose"), kind == "anytime"
    config = AnytimeConfig(
        "anytime",
        "pose" if pose else "segmentation",
        backbone=HRNetConfig(arch, form="pose" if pose else "segmentation"),
        exits=(1, 2, 3, 4) if anytime else (4,),
        weights=(1.0,) * (4 if anytime else 1),
        heads=HeadConfig(
            plain="single" if pose else "two_layers",
            inputs="highest" if pose else "concat",
            features=128 if arch == "w48" else 64,
        ),
        adaptivity=AdaptivityConfig() if anytime else None,
    )
    return Architecture(
        lambda classes: AnytimeNetwork(config, classes),
        translate,
        "HRNet's names (conv1.weight, layer1.0.conv1.weight, stage2.0.branches.0.0.conv1.weight, ...)",
        ("final_layer.weight" if pose else "last_layer.3.weight", "params/exit4/classify/conv/kernel"),
        is_dropped,
        functools.partial(check_blocks, arch),
    )


def check_blocks(arch: str, tensors: Tensors) -> Tensors:
    """The tensors without wrappers' prefixes, after a check of the architecture.

    A longer network has all names and shapes of a shorter one, so modules and blocks are compared.

    Raises:
        UserError: The modules and blocks are not those of ``arch``.
    """
    tensors = without_wrappers(tensors)
    blocks = [match for name in tensors if (match := re.match(_BLOCK, name))]
    if not blocks:
        return tensors
    found = (
        tuple(len({match["m"] for match in blocks if match["s"] == stage}) for stage in "234"),
        len({match["b"] for match in blocks}),
    )
    shape = ARCHITECTURES[arch]
    if found != (shape.modules, shape.blocks):
        theirs, ours = ("/".join(map(str, modules)) for modules in (found[0], shape.modules))
        raise UserError(
            f"the tensors have {theirs} modules of {found[1]} blocks; "
            f"HRNet {arch} has {ours} of {shape.blocks}"
        )
    return tensors


def is_dropped(name: str) -> bool:
    """Whether the tensor is left out on purpose."""
    return _DROPPED.fullmatch(name) is not None


def translate(name: str) -> Target | None:
    """Target of an HRNet's tensor; None for an unknown name."""
    module, _, leaf = name.rpartition(".")
    if match := _EXIT.fullmatch(module):
        return _exit(int(match["e"]), int(match["at"]), leaf)
    for pattern, ours in _CONVS:
        if match := re.fullmatch(pattern, module):
            place = ours.format(**match.groupdict())
            return _conv(place, leaf)
    for pattern, ours in _NORMS:
        if match := re.fullmatch(pattern, module):
            return norm_target(ours.format(**match.groupdict()), leaf)
    return None


def _conv(place: str, leaf: str) -> Target | None:
    if leaf == "weight":
        return Target(f"params/{place}/kernel", 4, conv_kernel)
    if leaf == "bias":
        return norm_target(place, leaf)
    if leaf == "Lambda":
        return Target(f"params/{place.removesuffix('/conv')}/lam", -1, lambda array: array.reshape(()))
    return None


def _exit(exit_: int, at: int, leaf: str) -> Target | None:
    depth = 4 - exit_
    number, part = divmod(at - 1, 4)
    if number > 2 * depth - 1 or part not in (0, 1):
        return None
    layer = f"exit{exit_}/down_{number}" if number < depth else f"exit{exit_}/up_{number - depth}"
    if number == 2 * depth - 1:
        return _conv(f"exit{exit_}/classify/conv", leaf) if part == 0 else None
    if part == 0:
        return _conv(f"{layer}/conv/conv", leaf)
    return norm_target(f"{layer}/bn", leaf)
