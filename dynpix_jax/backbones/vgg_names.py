"""Maps names and layouts of VGG-16's tensors, torchvision's or Caffe's, to ours.

torchvision numbers the layers of one sequence, ReLU and pooling included: ``features.0`` is conv1_1 (source:
torchvision.models.vgg, `vgg16` and `vgg16_bn`). Caffe and MatConvNet have the paper's names:
``conv1_1.weight``, or ``.0`` and ``.1`` for the two blobs of a layer.
"""

from __future__ import annotations

import functools
import re

import numpy as np

from dynpix_jax.backbones.pretrained import (
    Architecture,
    Target,
    conv_kernel,
    dense_kernel,
    norm_target,
    vector,
)
from dynpix_jax.backbones.vgg import VGG, VGGConfig

_CONVOLUTIONS = (2, 2, 3, 3, 3)
_FC6_CELLS = (7, 7)
_CLASSIFIER = {"classifier.0": "fc6", "classifier.3": "fc7"}
# Caffe's name of the first and the second blob of a layer.
_BLOBS = {"0": "weight", "1": "bias"}


def architecture(name: str) -> Architecture:
    """The architecture of that name, "vgg16" or "vgg16_bn"."""
    config = VGGConfig(batch_norm=name.endswith("_bn"))
    return Architecture(
        model=lambda _: VGG(config, taps=("fc7",)),
        translate=functools.partial(translate, batch_norm=config.batch_norm),
        example="torchvision's names (features.0.weight, ..., classifier.0.weight), Caffe's (conv1_1.0, ...)",
        settings={"preprocessing": "torch"},
        stem="params/conv1_1/kernel",
    )


def translate(name: str, *, batch_norm: bool) -> Target | None:
    """Target of a VGG-16 tensor; None for an unknown name (such as the classifier's)."""
    module, _, leaf = name.rpartition(".")
    layer = _torchvision(batch_norm=batch_norm).get(module, module)
    if re.fullmatch(r"bn\d_\d", layer):
        return norm_target(layer, leaf)
    leaf = _BLOBS.get(leaf, leaf)
    if not re.fullmatch(r"conv\d_\d|fc[67]", layer) or leaf not in ("weight", "bias"):
        return None
    if leaf == "bias":
        return Target(f"params/{layer}/bias", 1, vector)
    # fc6 and fc7 are published as matrices, or as kernels in "fully convolutional" files.
    convert = {"fc6": fc6_kernel, "fc7": fc7_kernel}.get(layer, conv_kernel)
    return Target(f"params/{layer}/kernel", -1 if layer.startswith("fc") else 4, convert)


def fc6_kernel(array: np.ndarray) -> np.ndarray:
    """(out, channels * 7 * 7) or (out, channels, 7, 7) -> (7, 7, channels, out)."""
    if array.ndim == 2 and array.shape[1] % (_FC6_CELLS[0] * _FC6_CELLS[1]) == 0:
        array = array.reshape(len(array), -1, *_FC6_CELLS)
    return conv_kernel(array) if array.ndim == 4 else array


def fc7_kernel(array: np.ndarray) -> np.ndarray:
    """(out, in) or (out, in, 1, 1) -> (1, 1, in, out)."""
    return dense_kernel(array)[None, None] if array.ndim == 2 else fc6_kernel(array)


def _torchvision(*, batch_norm: bool) -> dict[str, str]:
    """torchvision's modules -> ours."""
    modules, place = dict(_CLASSIFIER), 0
    for block, count in enumerate(_CONVOLUTIONS, 1):
        for index in range(1, count + 1):
            modules[f"features.{place}"] = f"conv{block}_{index}"
            if batch_norm:
                modules[f"features.{place + 1}"] = f"bn{block}_{index}"
            place += 3 if batch_norm else 2
        place += 1
    return modules
