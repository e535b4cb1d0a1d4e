"""ASTMT's SE-ResNet and decoder in NumPy, from tensors with the official names."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import map_coordinates

Tensors = Mapping[str, np.ndarray]
Map = np.ndarray
"""(C, H, W)."""


def conv(x: Map, kernel: np.ndarray, stride: int = 1, dilation: int = 1) -> Map:
    size = kernel.shape[-1]
    pad, reach = dilation * (size // 2), dilation * (size - 1) + 1
    windows = sliding_window_view(np.pad(x, ((0, 0), (pad, pad), (pad, pad))), (reach, reach), (1, 2))
    windows = windows[:, ::stride, ::stride, ::dilation, ::dilation]
    return np.einsum("chwij,ocij->ohw", windows, kernel.astype(np.float64), optimize=True)


def norm(x: Map, tensors: Tensors, name: str) -> Map:
    scale, bias, mean, var = (
        tensors[f"{name}.{leaf}"][:, None, None].astype(np.float64)
        for leaf in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


def excite(x: Map, tensors: Tensors, name: str) -> Map:
    y = np.maximum(tensors[f"{name}.0.weight"] @ x.mean((1, 2)) + tensors[f"{name}.0.bias"], 0)
    y = tensors[f"{name}.2.weight"] @ y + tensors[f"{name}.2.bias"]
    return x / (1 + np.exp(-y))[:, None, None]


def enlarge(x: Map, size: tuple[int, int]) -> Map:
    """F.interpolate(mode="bilinear", align_corners=False)."""
    grid = [(np.arange(new) + 0.5) * old / new - 0.5 for old, new in zip(x.shape[1:], size, strict=True)]
    places = np.meshgrid(*grid, indexing="ij")
    return np.stack([map_coordinates(one, places, order=1, mode="nearest") for one in x])


def bottleneck(x: Map, tensors: Tensors, at: str, task: str, stride: int, dilation: int) -> Map:
    """The stride is on the first 1x1."""
    y = np.maximum(norm(conv(x, tensors[f"{at}.conv1.weight"], stride), tensors, f"{at}.bn1.{task}"), 0)
    z = conv(y, tensors[f"{at}.conv2.weight"], 1, dilation) + conv(y, tensors[f"{at}.adapt.{task}.weight"])
    z = np.maximum(norm(z, tensors, f"{at}.bn2.{task}"), 0)
    z = norm(conv(z, tensors[f"{at}.conv3.weight"]), tensors, f"{at}.bn3.{task}")
    z = excite(z, tensors, f"{at}.se.fc.{task}")
    if f"{at}.downsample.process.weight" in tensors:
        x = conv(x, tensors[f"{at}.downsample.process.weight"], stride)
        x = norm(x, tensors, f"{at}.downsample.norm.{task}")
    return np.maximum(x + z, 0)


def coupled(x: Map, tensors: Tensors, at: str, task: str, dilation: int = 1) -> Map:
    """ConvCoupledSE: convolution and adapter, norm, ReLU, SE."""
    pooled = f"{at}.process.1.weight" in tensors
    y = conv(
        x.mean((1, 2), keepdims=True) if pooled else x,
        tensors[f"{at}.process.{int(pooled)}.weight"],
        1,
        dilation,
    )
    if not pooled:
        y = y + conv(x, tensors[f"{at}.adapt.{task}.weight"])
    return excite(np.maximum(norm(y, tensors, f"{at}.norm.{task}"), 0), tensors, f"{at}.se.fc.{task}")


def forward(tensors: Tensors, task: str, image: Map) -> Map:
    """(3, H, W) as the network takes it -> logits (channels, H, W); output stride 16, one block a layer."""
    x = np.maximum(norm(conv(image, tensors["conv1.weight"], 2), tensors, "bn1"), 0)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    x = sliding_window_view(padded, (3, 3), (1, 2))[:, ::2, ::2].max((-2, -1))
    maps = []
    for layer, (stride, dilation) in enumerate(((1, 1), (2, 1), (2, 1), (1, 2)), 1):
        x = bottleneck(x, tensors, f"layer{layer}.0", task, stride, dilation)
        maps.append(x)
    low, at = maps[0], "decoder.layer5.conv2d"
    branches = [coupled(x, tensors, f"{at}_list.{i}", task, d) for i, d in enumerate((1, 6, 12, 18, 1))]
    branches[-1] = np.broadcast_to(branches[-1], branches[0].shape)
    high = enlarge(coupled(np.concatenate(branches), tensors, f"{at}_final", task), low.shape[1:])
    joined = np.concatenate([high, coupled(low, tensors, "decoder.low_level_reduce", task)])
    for name in ("conv_concat", "conv_process"):
        joined = coupled(joined, tensors, f"decoder.{name}", task)
    logits = conv(joined, tensors[f"decoder.conv_predict.{task}.weight"])
    logits = logits + tensors[f"decoder.conv_predict.{task}.bias"][:, None, None]
    return enlarge(logits, image.shape[1:])
