"""The MACs of the perspective system's steps by closed formulas, against which the counted ones are held."""

from __future__ import annotations

import math
from typing import cast

from dynpix_jax.backbones.resnet import ResNetConfig
from dynpix_jax.papers.perspective.config import PerspectiveConfig, Signal

Size = tuple[int, int]


def backbone_macs(config: ResNetConfig, size: Size) -> float:
    """MACs of a ResNet without its classifier on one (H, W) image."""
    height, width = size

    def positions(stride: int) -> int:
        return math.ceil(height / stride) * math.ceil(width / stride)

    macs = 49.0 * 3 * config.width * positions(2)
    stride = 4
    for spec in config.block_specs:
        before = positions(stride)
        stride *= spec.strides
        after = positions(stride)
        if spec.features == spec.out_features:
            macs += 9.0 * after * spec.features * (spec.in_features + spec.features)
        else:
            reduced = after if spec.stride_in_1x1 else before
            macs += float(reduced * spec.in_features * spec.features)
            macs += after * spec.features * (9.0 * spec.features + spec.out_features)
        if spec.needs_projection:
            macs += float(after * spec.in_features * spec.out_features)
    return macs


def step_macs(
    config: PerspectiveConfig, classes: int, size: Size, *, one_hot: bool = False
) -> tuple[float, float]:
    """MACs of the feed-forward pass and of one loop (0 without loops) on one (H, W) image.

    As ``flops.count_macs`` counts them, up-sampling of the predictions included. one_hot: every position runs
    in one branch only (arg-max gating in sparse mode).
    """
    stride, top = _map(config)
    cells = _cells(size, stride)
    positions, width = math.prod(cells), config.features
    res6 = 9.0 * top * width
    whole = (cells[0] * stride, cells[1] * stride)
    shown = _resize_macs(cells, whole, classes)
    shown += _resize_macs(cells, whole, 0 if config.depth is None else 1)
    head = float(width * classes)

    def pooled(signal: Signal) -> float:
        """Per position: depth branch and pooling."""
        one, two = config.depth_features
        macs = 0.0
        if signal in ("attention", "pred_depth"):
            macs += config.depth_kernel**2 * width * one + 9.0 * one * two
            macs += two * len(config.pooling.sizes) + (0.0 if config.depth is None else 9.0 * two)
        branches = 1 if signal == "none" else len(config.pooling.sizes)
        chosen = one_hot and signal not in ("none", "average")
        return macs + 9.0 * width * width * (1 if chosen else branches)

    signals = config.signals
    first = (
        backbone_macs(cast(ResNetConfig, config.backbone), size)
        + positions * (res6 + pooled(signals[0]) + head)
        + shown
    )
    if config.pooling.kind == "multiscale":
        for scale in config.pooling.scales[1:]:
            scaled = (max(1, round(scale * size[0])), max(1, round(scale * size[1])))
            small = _cells(scaled, stride)
            first += _linear_macs(size, scaled) + backbone_macs(cast(ResNetConfig, config.backbone), scaled)
            first += math.prod(small) * (res6 + 9.0 * width * width) - positions * 9.0 * width * width
            first += _resize_macs(small, cells, width)
    if not config.loops:
        return first, 0.0
    loop = 9.0 * 2 * width * width + pooled(signals[1]) + float(width * width) + head
    return first, positions * loop + shown


def gated_macs(config: PerspectiveConfig, size: Size) -> dict[str, float]:
    """With gate "argmax": per step and branch (``loop_1/dilation_2``) its convolution everywhere."""
    if config.pooling.gate != "argmax":
        return {}
    branch = 9.0 * math.prod(_cells(size, _map(config)[0])) * config.features**2
    return {
        f"loop_{loop}/dilation_{dilation}": branch
        for loop in range(config.loops + 1)
        if config.signals[min(loop, 1)] not in ("none", "average")
        for dilation in config.pooling.dilations
    }


def _map(config: PerspectiveConfig) -> tuple[int, int]:
    """(stride, channels) of the backbone's last map."""
    info = config.backbone.stages[-1]
    return info.stride, info.channels


def _cells(size: Size, stride: int) -> Size:
    return math.ceil(size[0] / stride), math.ceil(size[1] / stride)


def _resize_macs(old: Size, new: Size, channels: int) -> float:
    """Of ops.resize_bilinear, which multiplies by a matrix an axis."""
    rows_first = old[0] * new[1] >= new[0] * old[1]
    rows = 0.0 if old[0] == new[0] else float(new[0] * old[0] * (old[1] if rows_first else new[1]))
    columns = 0.0 if old[1] == new[1] else float(new[1] * old[1] * (new[0] if rows_first else old[0]))
    return channels * (rows + columns)


def _linear_macs(old: Size, new: Size) -> float:
    """Of jax.image.resize, which does the same in the cheaper order; three channels."""
    rows_first = new[0] * old[0] * old[1] + new[1] * old[1] * new[0]
    columns_first = new[1] * old[1] * old[0] + new[0] * old[0] * new[1]
    return 3.0 * min(rows_first, columns_first)
