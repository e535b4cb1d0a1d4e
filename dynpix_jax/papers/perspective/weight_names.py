"""Maps names of recurrent scene parsing's MatConvNet files to ours, as `weights.matconvnet_names` has them.

Source: aimerykong/Recurrent-Scene-Parsing-with-Perspective-Understanding-in-the-loop, train_NYUv2.m and
train_Cityscapes.m. All loops share the tensors of `recurrentModule1`. The scripts do not make the
feed-forward pass: its depth branch has the loop's names without that prefix, the others are taken by their
endings.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from dynpix_jax.backbones.pretrained import CAFFE, Layer, Names, Target, Tensors, layer_target, within
from dynpix_jax.backbones.resnet_names import check_stem, translate_matconvnet
from dynpix_jax.core.errors import UserError
from dynpix_jax.papers.perspective.config import PerspectiveConfig

_TAIL = r"(?P<norm>\.norm)?\.(?P<leaf>\w+)"
_PASS = r"(?P<loop>recurrentModule\d_)?"
# (their layer behind the name of the pass, our place within it, the place of its norm).
_LAYERS = (
    (r"block1_conv", "conv1", "bn1"),
    (r"(?:\w+_)?pyramidAtrous_pool(?P<d>\d+)_conv", "pool/dilation_{d}/conv", "pool/dilation_{d}/bn"),
    (r"block3_conv", "conv3", "bn3"),
    (r"depthEstLayerOne_conv", "depth/conv1", "depth/bn1"),
    (r"depthEstLayerTwo_conv", "depth/conv2", "depth/bn2"),
    (r"depthCls(?:_conv)?", "depth/classes", ""),
    (r"depthReg", "depth/log_depth", ""),
    (r"(?:\w+_)?cls(?:_conv)?|res7(?:_conv)?", "scores", ""),
)
_GATING = "depthGatingLayer"
_MILLIMETRES = float(np.log(1000.0))
"""The release predicts the logarithm of millimetres, ours that of metres."""


def published(config: PerspectiveConfig) -> Names:
    """The names of the released files of such a network."""

    def prepare(tensors: Tensors, layers: Sequence[Layer]) -> Tensors:
        check_stem(config.backbone, tensors)
        found = dict(tensors)
        order = _order(config, layers)
        for name in found:
            if order and re.fullmatch(rf"{_PASS}depthCls(?:_conv)?\.(weight|bias)", name):
                found[name] = found[name][order]
            if re.fullmatch(rf"{_PASS}depthReg\.bias", name):
                found[name] = found[name] - _MILLIMETRES
        return found

    return Names(
        translate,
        "the release's names (res2_1_1conv_f, res6_conv_f, recurrentModule1_block1_conv_f, ...)",
        lambda name: name.endswith("_interp_f"),  # constant: bilinear up-sampling
        prepare,
        settings=CAFFE,
        stem="params/backbone/stem_conv/kernel",
    )


def translate(name: str) -> Target | None:
    """Target of a tensor; None for an unknown name."""
    if match := re.fullmatch("res6_conv" + _TAIL, name):
        place = "res6/bn" if match["norm"] else "res6/conv"
        return layer_target(place, match["leaf"], is_norm=bool(match["norm"]))
    for pattern, place, norm in _LAYERS:
        if match := re.fullmatch(_PASS + f"(?:{pattern})" + _TAIL, name):
            where = norm if match["norm"] else place
            part = "loop" if match["loop"] else "feedforward"
            place = f"{part}/{where.format(**match.groupdict())}"
            return layer_target(place, match["leaf"], is_norm=bool(match["norm"])) if where else None
    return within("backbone", translate_matconvnet(name))


def _order(config: PerspectiveConfig, layers: Sequence[Layer]) -> list[int]:
    """The places of our bins, the farthest first, among theirs; [] if the file does not tell.

    The gating layer reads one map a bin, in the order of the bins, and then the weights. The first bin is the
    nearest on NYUv2, the farthest on Cityscapes.
    """
    for layer in layers:
        if layer.name.endswith(_GATING):
            found = [re.search(r"_pool(\d+)_", name) for name in layer.inputs[:-1]]
            theirs = [int(match[1]) for match in found if match]
            if sorted(theirs) != sorted(config.pooling.dilations):
                have, want = ("/".join(map(str, d)) for d in (sorted(theirs), config.pooling.dilations))
                raise UserError(f"the tensors have dilations {have}, model.pooling.dilations are {want}")
            return [theirs.index(dilation) for dilation in config.pooling.dilations]
    return []
