"""Maps names of PixelNet's `.caffemodel` files to ours.

Source: aayushbansal/PixelNet, models/*/train.prototxt. VGG-16 has the names of its layers; conv-6 and conv-7
are `fc6_conv` and `fc7_conv` (boundaries: `fc6o`, `fc7o`), the MLP `fc6_new`, `fc7_new` and `cls_score_new`
(boundaries: `fc6n`, `fc7n`, `cls_score`). A layer has the kernel as blob 0 and the bias as blob 1.
"""

from __future__ import annotations

import functools
import re

from dynpix_jax.backbones import vgg_names
from dynpix_jax.backbones.pretrained import Names, Target, dense_kernel, vector, within
from dynpix_jax.papers.pixelnet.config import PixelNetConfig

_FULLY = re.compile(r"(fc[67])(?:_conv|o)\.([01])")
_HIDDEN = re.compile(r"fc(?P<number>[67])(?:_new|n)\.(?P<blob>[01])")
_SCORES = re.compile(r"cls_score(?:_new)?\.(?P<blob>[01])")


def published(config: PixelNetConfig) -> Names:
    """The names of the released files of a network with that MLP."""
    return Names(
        functools.partial(translate, layers=len(config.mlp.hidden) + 1),
        "PixelNet's names (conv1_1.0, fc6_conv.0, fc6_new.0, cls_score_new.0, ...)",
        settings={"preprocessing": "caffe"},
        stem="params/backbone/conv1_1/kernel",
    )


def translate(name: str, *, layers: int) -> Target | None:
    """Target of a blob; None for an unknown name. ``layers``: those of the MLP."""
    if match := _HIDDEN.fullmatch(name):
        number = int(match["number"]) - 5
        return _layer(number, match["blob"]) if number < layers else None
    if match := _SCORES.fullmatch(name):
        return _layer(layers, match["blob"])
    name = _FULLY.sub(r"\1.\2", name)
    return within("backbone", vgg_names.translate(name, batch_norm=False))


def _layer(number: int, blob: str) -> Target:
    """An inner product, which is a 1x1 convolution of ours."""
    if blob == "1":
        return Target(f"params/mlp{number}/bias", 1, vector)
    return Target(f"params/mlp{number}/kernel", 2, lambda array: dense_kernel(array)[None, None])
