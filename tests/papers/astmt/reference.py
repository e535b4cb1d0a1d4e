"""ASTMT's networks in NumPy, as released: one task's pass through its own SE, norms and adapters.

By the names of facebookresearch/astmt's checkpoints, whose code has these strides, dilations and orders.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tests.numpy_layers import Map, batch_norm, bilinear, conv, max_pool, relu, squeeze_excite


class Weights:
    """Layers of one task, from the tensors of a checkpoint."""

    def __init__(self, tensors: Mapping[str, np.ndarray], task: str):
        self.tensors = {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}
        self.task = task

    def conv(self, x: Map, name: str, **how: int) -> Map:
        """Convolution by that name."""
        return conv(x, self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias"), **how)

    def shared_norm(self, x: Map, name: str) -> Map:
        """By stored moments."""
        leaves = ("weight", "bias", "running_mean", "running_var")
        return batch_norm(x, *(self.tensors[f"{name}.{leaf}"] for leaf in leaves))

    def norm(self, x: Map, name: str) -> Map:
        """The task's own."""
        return self.shared_norm(x, f"{name}.{self.task}")

    def se(self, x: Map, name: str, most: float = np.inf) -> Map:
        """The task's own."""
        layers = (f"{name}.se.fc.{self.task}.{layer}" for layer in (0, 2))
        pairs = ((self.tensors[f"{layer}.weight"], self.tensors[f"{layer}.bias"]) for layer in layers)
        return squeeze_excite(x, *pairs, most)


def se_resnet(w: Weights, image: Map, blocks: int) -> tuple[Map, Map]:
    """(map at stride 4, last map at stride 16) of an image as the stem takes it; ``blocks`` a layer.

    The stride is on the first 1x1; the last layer dilates all its 3x3 by two instead.
    """
    x = max_pool(relu(w.shared_norm(w.conv(image, "conv1", stride=2), "bn1")))
    low = None
    for layer, stride, dilation in ((1, 1, 1), (2, 2, 1), (3, 2, 1), (4, 1, 2)):
        for block in range(blocks):
            x = _bottleneck(w, x, f"layer{layer}.{block}", 1 if block else stride, dilation)
        low = x if layer == 1 else low
    return low, x


def _bottleneck(w: Weights, x: Map, name: str, stride: int, dilation: int) -> Map:
    y = relu(w.norm(w.conv(x, f"{name}.conv1", stride=stride), f"{name}.bn1"))
    y = w.conv(y, f"{name}.conv2", dilation=dilation) + w.conv(y, f"{name}.adapt.{w.task}")
    y = w.norm(w.conv(relu(w.norm(y, f"{name}.bn2")), f"{name}.conv3"), f"{name}.bn3")
    if f"{name}.downsample.process.weight" in w.tensors:
        x = w.norm(w.conv(x, f"{name}.downsample.process", stride=stride), f"{name}.downsample.norm")
    return relu(x + w.se(y, name))


def deeplab(w: Weights, low: Map, high: Map, size: tuple[int, int]) -> Map:
    """DeepLab-v3+ decoder and the task's prediction: logits at ``size``."""

    def unit(x: Map, name: str, dilation: int = 1) -> Map:
        y = w.conv(x, f"decoder.{name}.process.0", dilation=dilation)
        y = y + w.conv(x, f"decoder.{name}.adapt.{w.task}")
        return w.se(relu(w.norm(y, f"decoder.{name}.norm")), f"decoder.{name}")

    branches = [unit(high, f"layer5.conv2d_list.{i}", rate) for i, rate in enumerate((1, 6, 12, 18))]
    pool = "decoder.layer5.conv2d_list.4"  # behind the pooling, and without an adapter
    mean = w.norm(w.conv(high.mean((1, 2), keepdims=True), f"{pool}.process.1"), f"{pool}.norm")
    branches.append(np.broadcast_to(w.se(relu(mean), pool), branches[0].shape))
    high = bilinear(unit(np.concatenate(branches), "layer5.conv2d_final"), low.shape[1:])
    joined = unit(np.concatenate([high, unit(low, "low_level_reduce")]), "conv_concat")
    logits = w.conv(unit(joined, "conv_process"), f"decoder.conv_predict.{w.task}")
    return bilinear(logits, size)


GROUPS = (
    # expansion, blocks, stride of the first, dilation: at output stride 16 the last stride is a dilation,
    # of all blocks from the 14th on.
    (1, 1, 1, 1), (6, 2, 2, 1), (6, 3, 2, 1), (6, 4, 2, 1), (6, 3, 1, 1), (6, 3, 1, 2), (6, 1, 1, 2),
)  # fmt: skip


def se_mobilenet_v2(w: Weights, image: Map) -> tuple[Map, Map]:
    """(map at stride 4, last map at stride 16) of an image as the stem takes it."""
    x = relu(w.shared_norm(w.conv(image, "features.0.conv.0", stride=2), "features.0.conv.1"), 6)
    number, low = 0, None
    for group, (expansion, blocks, first_stride, dilation) in enumerate(GROUPS):
        for block in range(blocks):
            number += 1
            name, stride = f"features.{number}", 1 if block else first_stride
            *wide, depthwise, project = range(1, 3 if expansion == 1 else 4)
            y = x
            for k in wide:
                y = relu(w.norm(w.conv(y, f"{name}.conv.conv{k}"), f"{name}.conv.bn{k}"), 6)
            y = w.conv(y, f"{name}.conv.conv{depthwise}", stride=stride, dilation=dilation, groups=len(y))
            y = w.conv(relu(w.norm(y, f"{name}.conv.bn{depthwise}"), 6), f"{name}.conv.conv{project}")
            y = w.se(w.norm(y, f"{name}.conv.bn{project}"), name, 6)
            x = x + y if stride == 1 and len(x) == len(y) else y
        low = x if group == 1 else low
    return low, x
