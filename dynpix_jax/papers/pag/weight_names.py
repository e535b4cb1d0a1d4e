"""Maps names of PAG's MatConvNet files to ours, in the terms of `weights.matconvnet_names`.

Source: aimerykong/Pixel-Attentional-Gating, insertPixelGate_withMildLoss.m, insertPyramidPool.m, demos. The
release's head for normals (res6, up-sampling of its 512 channels, two hidden layers) is not one of ours: its
layers above `res6_conv` have no place here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from dynpix_jax.backbones.pretrained import CAFFE, Layer, Names, Target, Tensors, layer_target, within
from dynpix_jax.backbones.resnet_names import check_stem, translate_matconvnet
from dynpix_jax.core.errors import UserError
from dynpix_jax.papers.pag.config import PagConfig

_TAIL = r"(?P<norm>\.norm)?\.(?P<leaf>\w+)"
# (their layer, our place, the place of its norm).
_LAYERS = (
    (r"(?P<b>res\d_\d+)_attentionConv", "backbone/{b}/gate/logits", ""),
    (
        r"(?P<s>res\d)_pyramid_pool(?P<d>\d+)_conv",
        "backbone/{s}_2/multipool/dilation_{d}/conv",
        "backbone/{s}_2/multipool/dilation_{d}/bn",
    ),
    (
        r"(?P<s>res\d)_AttentionLayerOne_conv",
        "backbone/{s}_2/multipool/gate/conv1",
        "backbone/{s}_2/multipool/gate/bn1",
    ),
    (
        r"(?P<s>res\d)_AttentionLayerTwo_conv",
        "backbone/{s}_2/multipool/gate/conv2",
        "backbone/{s}_2/multipool/gate/bn2",
    ),
    (r"(?P<s>res\d)_AttentionLayer_conv", "backbone/{s}_2/multipool/gate/conv3", ""),
    (r"res6_conv", "res6/conv1", "res6/bn1"),
)
_CHOICES = "_AttentionLayer_conv"
_GATING = "_AttentionGatingLayer"


def published(config: PagConfig) -> Names:
    """The names of the released files of such a network."""

    def prepare(tensors: Tensors, layers: Sequence[Layer]) -> Tensors:
        check_stem(config.backbone, tensors)
        if config.gate.scope != "conv3x3" and any("_attentionConv." in name for name in tensors):
            raise UserError(
                "the tensors are of gates around the 3x3 alone, as released; change the config: --set "
                "model.gate.scope=conv3x3 (config argument gate_scope=conv3x3)"
            )
        found = dict(tensors)
        for layer in layers:
            if layer.name.endswith(_GATING):
                _arrange_pool(config, layer.name.removesuffix(_GATING), layer, layers, found)
        return found

    return Names(
        translate,
        "PAG's names (res2_1_1conv_f, res2_1_attentionConv_f, res5_pyramid_pool8_conv_f, ...)",
        # Constants: bilinear up-sampling, the blur of a gate's logits.
        lambda name: name.endswith(("_interp_f", "_GaussBlur.weight")),
        prepare,
        settings=CAFFE,
        stem="params/backbone/stem_conv/kernel",
    )


def translate(name: str) -> Target | None:
    """Target of a tensor; None for an unknown name."""
    for pattern, place, norm in _LAYERS:
        if match := re.fullmatch(pattern + _TAIL, name):
            where = norm if match["norm"] else place
            where = where.format(**match.groupdict())
            return layer_target(where, match["leaf"], is_norm=bool(match["norm"])) if where else None
    return within("backbone", translate_matconvnet(name))


def _arrange_pool(
    config: PagConfig, stage: str, gating: Layer, layers: Sequence[Layer], tensors: dict[str, np.ndarray]
) -> None:
    """Brings the choices of a MultiPool into our order, and gives the kept 3x3 the name of a branch.

    The gating layer reads one map a choice, in the order of the choices, and then the weights. A MultiPool of
    other dilations than the config's gets no place, and its tensors a name that says why.
    """
    block = f"{stage}_2"
    dilations = config.multipool.dilations
    if block not in config.multipool.blocks:
        raise UserError(f"the tensors have a MultiPool at {block}; set model.multipool.blocks")
    kept = next((layer.dilation for layer in layers if layer.name == f"{block}_2conv"), 1)
    theirs = [_dilation(name, block, kept) for name in gating.inputs[:-1]]
    if sorted(theirs) != sorted(dilations):
        have, want = ("/".join(map(str, sorted(values))) for values in (theirs, dilations))
        parts = rf"{stage}_(pyramid_pool\d+|AttentionLayer\w*)_conv\..*|{block}_2conv\..*"
        why = f"of dilations {have}, the 3x3 that it keeps has {kept}; model.multipool.dilations: {want}"
        _rename(tensors, parts, rf"\g<0> (a MultiPool {why})")
        return
    order = [theirs.index(dilation) for dilation in dilations]
    for leaf in ("weight", "bias"):
        name = f"{stage}{_CHOICES}.{leaf}"
        if name in tensors:
            tensors[name] = tensors[name][order]
    _rename(tensors, rf"{block}_2conv\.(.*)", rf"{stage}_pyramid_pool{kept}_conv.\1")


def _rename(tensors: dict[str, np.ndarray], pattern: str, name: str) -> None:
    """Renames the tensors of a pattern to what ``name`` makes of the match."""
    for match in [match for old in tensors if (match := re.fullmatch(pattern, old))]:
        tensors[match.expand(name)] = tensors.pop(match[0])


def _dilation(variable: str, block: str, kept: int) -> int:
    """The dilation of a choice, by the variable that holds its map; 0: the block's reduced input."""
    if match := re.search(r"_pool(\d+)_", variable):
        return int(match[1])
    return 0 if variable == f"{block}_1relu" else kept
