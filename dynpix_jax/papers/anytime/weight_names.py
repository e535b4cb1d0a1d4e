"""Maps names of HRNet's official checkpoints to ours: segmentation, classification, pose, anytime.

Sources: HRNet/HRNet-Semantic-Segmentation (lib/models/seg_hrnet.py), HRNet-Image-Classification, HRNet's pose
code, liuzhuang13/anytime. They share their names; heads differ.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence

from dynpix_jax.backbones.hrnet import HRNetConfig
from dynpix_jax.backbones.pretrained import (
    Architecture,
    Layer,
    Names,
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
_REDESIGNED = HeadConfig()
_HEADS = {True: "plain exits (EE)", False: "redesigned exits (RH)"}
_ADAPTIVE = {True: "an interpolation's Lambda in its convolutions (CA)", False: "no Lambda (not CA)"}
# (plain exits, adaptive) -> ending of the architecture's name.
_FORMS = {(True, False): "_ee", (False, False): "_rh", (True, True): "_ca", (False, True): ""}

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

    "hrnet_w48" (segmentation or classification), "hrnet_w32_pose", or "anytime_w48", which has redesigned
    exits and adaptive convolutions; "anytime_w48_rh" has the former alone, "anytime_w48_ca" the latter alone,
    "anytime_w48_ee" neither.
    """
    kind, arch, *rest = name.split("_")
    return _anytime(name, arch, rest) if kind == "anytime" else _hrnet(arch, pose=rest == ["pose"])


def _hrnet(arch: str, *, pose: bool) -> Architecture:
    backbone = HRNetConfig(arch, form="pose" if pose else "segmentation")
    heads = HeadConfig(plain="single" if pose else "two_layers", inputs="highest" if pose else "concat")
    config = AnytimeConfig(
        "anytime", backbone.form, backbone=backbone, exits=(4,), weights=(1.0,), heads=heads
    )
    return _architecture(config, "final_layer" if pose else "last_layer.3")


def _anytime(name: str, arch: str, rest: Sequence[str]) -> Architecture:
    forms = {ending: form for form, ending in _FORMS.items()}
    plain, adaptive = forms["".join(f"_{part}" for part in rest)]
    features = 128 if arch == "w48" else 64
    config = AnytimeConfig(
        "anytime",
        "segmentation",
        backbone=HRNetConfig(arch),
        heads=HeadConfig(kind="plain" if plain else "redesigned", features=features),
        adaptivity=AdaptivityConfig() if adaptive else None,
    )
    found = _architecture(config, "last_layer.3")
    if rest:
        return found
    return dataclasses.replace(  # the file tells its form: its exits are not compared
        found,
        prepare=lambda tensors, _: check_blocks(config.backbone, tensors),
        variant=lambda tensors: name + _form(tensors) if _early(tensors) else "",
    )


def _architecture(config: AnytimeConfig, classifier: str) -> Architecture:
    names = published(config)
    return Architecture(
        **{field.name: getattr(names, field.name) for field in dataclasses.fields(names)},
        model=lambda classes: AnytimeNetwork(config, classes),
        classifier=(f"{classifier}.weight", "params/exit4/classify/conv/kernel"),
    )


def published(config: AnytimeConfig) -> Names:
    """The names of HRNet's and the anytime paper's files of that network."""
    early = len(config.exits) > 1

    def prepare(tensors: Tensors, layers: Sequence[Layer]) -> Tensors:
        tensors = check_blocks(config.backbone, tensors)
        if early and _early(tensors):
            check_form(config, tensors)
        return tensors

    return Names(
        functools.partial(translate, heads=config.heads),
        "HRNet's names (conv1.weight, layer1.0.conv1.weight, stage2.0.branches.0.0.conv1.weight, ...)",
        is_dropped,
        prepare,
    )


def _early(tensors: Tensors) -> bool:
    return any(name.startswith("exit1.") for name in tensors)


def _form(tensors: Tensors) -> str:
    plain = "exit1.0.weight" in tensors
    return _FORMS[plain, any(name.endswith(".Lambda") for name in tensors)]


def check_form(config: AnytimeConfig, tensors: Tensors) -> None:
    """Refuses tensors whose exits and adaptivity are not these, by a UserError."""
    ours = config.heads.kind == "plain", config.adaptivity is not None
    theirs = next(key for key, ending in _FORMS.items() if ending == _form(tensors))
    if theirs == ours:
        return
    said = [words[a] for words, a, b in zip((_HEADS, _ADAPTIVE), theirs, ours, strict=True) if a != b]
    has = [words[b] for words, a, b in zip((_HEADS, _ADAPTIVE), theirs, ours, strict=True) if a != b]
    raise UserError(
        f"the tensors are of a network with {' and '.join(said)}; this one has {' and '.join(has)} "
        "(model.heads.kind, model.adaptivity)"
    )


def check_blocks(backbone: HRNetConfig, tensors: Tensors) -> Tensors:
    """The tensors without wrappers' prefixes, after a check of the architecture.

    A longer network has all names and shapes of a shorter one, so modules and blocks are compared.

    Raises:
        UserError: The modules and blocks are not those of the ``backbone``.
    """
    tensors = without_wrappers(tensors)
    blocks = [match for name in tensors if (match := re.match(_BLOCK, name))]
    if not blocks:
        return tensors
    found = (
        tuple(len({match["m"] for match in blocks if match["s"] == stage}) for stage in "234"),
        len({match["b"] for match in blocks}),
    )
    shape = backbone.shape
    if found != (shape.modules, shape.blocks):
        theirs, ours = ("/".join(map(str, modules)) for modules in (found[0], shape.modules))
        raise UserError(
            f"the tensors have {theirs} modules of {found[1]} blocks; "
            f"HRNet {backbone.arch} has {ours} of {shape.blocks}"
        )
    return tensors


def is_dropped(name: str) -> bool:
    """Whether the tensor is left out on purpose."""
    return _DROPPED.fullmatch(name) is not None


def translate(name: str, heads: HeadConfig = _REDESIGNED) -> Target | None:
    """Target of an HRNet's tensor; None for an unknown name. ``heads``: those of its early exits."""
    module, _, leaf = name.rpartition(".")
    if match := _EXIT.fullmatch(module):
        number, at = int(match["e"]), int(match["at"])
        if heads.kind == "plain":
            return _plain_exit(number, at, leaf)
        return _redesigned_exit(number, at, leaf, heads.downsampling[number - 1])
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


def _plain_exit(exit_: int, at: int, leaf: str) -> Target | None:
    """Convolution, norm, ReLU, convolution; the last exit (`last_layer`) is another such."""
    if at == 1:
        return norm_target(f"exit{exit_}/unit/bn", leaf)
    place = {0: "unit/conv/conv", 3: "classify/conv"}.get(at)
    return None if place is None else _conv(f"exit{exit_}/{place}", leaf)


def _redesigned_exit(exit_: int, at: int, leaf: str, depth: int) -> Target | None:
    number, part = divmod(at - 1, 4)
    if number > 2 * depth - 1 or part not in (0, 1):
        return None
    layer = f"exit{exit_}/down_{number}" if number < depth else f"exit{exit_}/up_{number - depth}"
    if number == 2 * depth - 1:
        return _conv(f"exit{exit_}/classify/conv", leaf) if part == 0 else None
    if part == 0:
        return _conv(f"{layer}/conv/conv", leaf)
    return norm_target(f"{layer}/bn", leaf)
