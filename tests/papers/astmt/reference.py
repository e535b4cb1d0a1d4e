"""ASTMT's networks in NumPy, as released: one task's pass through its own SE, norms and adapters.

By our names of variables; structure, strides, dilations and orders are those of facebookresearch/astmt.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tests.numpy_layers import (
    Map,
    batch_norm,
    bilinear,
    conv,
    max_pool,
    normalized,
    relu,
    squeeze_excite,
)


class Weights:
    """Layers of one task: arrays by their paths ("params/backbone/stem_conv/kernel")."""

    def __init__(self, arrays: Mapping[str, np.ndarray], task: str):
        self.arrays = {path: np.asarray(array, np.float64) for path, array in arrays.items()}
        self.task = task

    def conv(self, x: Map, name: str, **how: int) -> Map:
        """By a kernel (k, k, in / groups, out)."""
        kernel = self.arrays[f"params/{name}/kernel"].transpose(3, 2, 0, 1)
        return conv(x, kernel, self.arrays.get(f"params/{name}/bias"), **how)

    def shared_norm(self, x: Map, name: str) -> Map:
        """By stored moments."""
        params = (self.arrays[f"params/{name}/{leaf}"] for leaf in ("scale", "bias"))
        moments = (self.arrays[f"batch_stats/{name}/{leaf}"] for leaf in ("mean", "var"))
        return batch_norm(x, *params, *moments)

    def norm(self, x: Map, name: str) -> Map:
        """The task's own."""
        return self.shared_norm(x, f"{name}/{self.task}")

    def se(self, x: Map, name: str, most: float = np.inf) -> Map:
        """The task's own."""
        place = f"params/{name}/{self.task}"
        layers = (
            (self.arrays[f"{place}/{layer}/kernel"].T, self.arrays[f"{place}/{layer}/bias"])
            for layer in ("reduce", "expand")
        )
        return squeeze_excite(x, *layers, most)


def se_resnet_26(weights: Weights, image: np.ndarray) -> tuple[Map, Map]:
    """(map at stride 4, last map at stride 16) of an image (H, W, 3): two bottlenecks a stage.

    The stride is on the first 1x1; the last stage dilates all its 3x3 by two instead.
    """
    x = relu(
        weights.shared_norm(
            weights.conv(normalized(image), "backbone/stem_conv", stride=2), "backbone/stem_bn"
        )
    )
    x = max_pool(x)
    low = None
    for stage, stride, dilation in ((2, 1, 1), (3, 2, 1), (4, 2, 1), (5, 1, 2)):
        for block in (1, 2):
            name, first = f"backbone/res{stage}_{block}", block == 1
            x = _bottleneck(weights, x, name, stride if first else 1, dilation, projects=first)
        low = x if stage == 2 else low
    return low, x


def _bottleneck(w: Weights, x: Map, name: str, stride: int, dilation: int, *, projects: bool) -> Map:
    y = relu(w.norm(w.conv(x, f"{name}/conv1", stride=stride), f"{name}/bn1"))
    y = w.conv(y, f"{name}/conv2", dilation=dilation) + w.conv(y, f"{name}/adapter/{w.task}")
    y = w.norm(w.conv(relu(w.norm(y, f"{name}/bn2")), f"{name}/conv3"), f"{name}/bn3")
    if projects:
        x = w.norm(w.conv(x, f"{name}/projection", stride=stride), f"{name}/projection_bn")
    return relu(x + w.se(y, f"{name}/se"))


def deeplab(w: Weights, low: Map, high: Map, rates: tuple[int, ...]) -> Map:
    """DeepLab-v3+ decoder: features that the task's last 1x1 reads."""

    def unit(x: Map, name: str, *, adapted: bool = True, dilation: int = 1) -> Map:
        y = w.conv(x, f"decoder/{name}/conv", dilation=dilation)
        if adapted:
            y = y + w.conv(x, f"decoder/{name}/adapter/{w.task}")
        return w.se(relu(w.norm(y, f"decoder/{name}/bn")), f"decoder/{name}/se")

    branches = [unit(high, "aspp/point")]
    branches += [unit(high, f"aspp/atrous_{i}", dilation=rate) for i, rate in enumerate(rates)]
    mean = unit(high.mean((1, 2), keepdims=True), "aspp/pool", adapted=False)
    branches.append(np.broadcast_to(mean, (len(mean), *high.shape[1:])))
    high = bilinear(unit(np.concatenate(branches), "aspp/fuse"), low.shape[1:])
    return unit(unit(np.concatenate([high, unit(low, "reduce")]), "join"), "process")


GROUPS = (
    # expansion, blocks, stride of the first, dilation: at output stride 16 the last stride is a dilation,
    # of all blocks from the 14th on.
    (1, 1, 1, 1), (6, 2, 2, 1), (6, 3, 2, 1), (6, 4, 2, 1), (6, 3, 1, 1), (6, 3, 1, 2), (6, 1, 1, 2),
)  # fmt: skip


def se_mobilenet_v2(w: Weights, image: np.ndarray) -> tuple[Map, Map]:
    """(map at stride 4, last map at stride 16) of an image (H, W, 3)."""
    x = w.conv(normalized(image), "backbone/stem_conv", stride=2)
    x = relu(w.shared_norm(x, "backbone/stem_bn"), 6)
    number, low = 0, None
    for group, (expansion, blocks, first_stride, dilation) in enumerate(GROUPS):
        for block in range(blocks):
            number += 1
            name, stride = f"backbone/block_{number}", 1 if block else first_stride
            y = x if expansion == 1 else relu(w.norm(w.conv(x, f"{name}/expand"), f"{name}/expand_bn"), 6)
            y = w.conv(y, f"{name}/depthwise", stride=stride, dilation=dilation, groups=len(y))
            y = w.conv(relu(w.norm(y, f"{name}/depthwise_bn"), 6), f"{name}/project")
            y = w.se(w.norm(y, f"{name}/project_bn"), f"{name}/se", 6)
            x = x + y if stride == 1 and len(x) == len(y) else y
        low = x if group == 1 else low
    return low, x
