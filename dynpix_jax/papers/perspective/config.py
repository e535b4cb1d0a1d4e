"""Config section of the perspective system (recurrent scene parsing), and depth in a few bins."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from dynpix_jax.backbones import BACKBONES
from dynpix_jax.backbones.base import BackboneConfig
from dynpix_jax.backbones.resnet import ResNetConfig
from dynpix_jax.core.sections import OneOf
from dynpix_jax.core.system import NetworkConfig
from dynpix_jax.core.typing import Array
from dynpix_jax.nn.residual import frozen
from dynpix_jax.tasks.depth import Depth
from dynpix_jax.tasks.segmentation import Segmentation

NO_BIN = 255
"""Class of a pixel without a depth."""

NYU_EDGES = (0.001, 1.5, 2.1, 3.0, 4.7, 100.0)
"""Metres (released code): bins of about equal population."""

CITYSCAPES_EDGES = (0.0, 11.0, 12.5, 13.2, 13.9, 20.0)
"""Edges of log2 of a 16-bit disparity (released code)."""

CITYSCAPES_FOCAL_BASELINE = 0.209313 * 2262.52
"""Metres times pixels: depth in metres = this / disparity in pixels."""


def quantize(values: Array, edges: tuple[float, ...]) -> Array:
    """Bin k, from 1, holds values above ``edges[k - 1]`` up to and including ``edges[k]``; 0 is outside.

    Args:
        values: Any shape.
        edges: Edges of the bins, ascending.
    """
    above = (values[..., None] > jnp.asarray(edges, values.dtype)).sum(-1, dtype=jnp.int32)
    return jnp.where(above < len(edges), above, 0)


def log_disparity(stored: Array) -> Array:
    """log2 of a disparity as Cityscapes stores it, 256 * pixels + 1; 0 (no bin) up to 10, as released."""
    return jnp.log2(jnp.where(stored > 10, stored, 1).astype(jnp.float32))


@dataclass(frozen=True)
class DepthBins:
    """Section ``model.bins``. Classes count from the farthest bin, 0, to the nearest.

    Attributes:
        edges: Edges of the bins, ascending; one more than bins.
        of: Quantity of the edges: ``depth`` in metres, or ``disparity``, the log2 of Cityscapes' stored
            values, computed from the metres by focal_baseline.
        focal_baseline: Metres times pixels.
    """

    edges: tuple[float, ...] = NYU_EDGES
    of: Literal["depth", "disparity"] = "depth"
    focal_baseline: float = CITYSCAPES_FOCAL_BASELINE

    def unread(self) -> Mapping[str, str]:
        """Options that are not read, and why."""
        return {"focal_baseline": "it is of disparities"} if self.of == "depth" else {}

    def __post_init__(self) -> None:
        if len(self.edges) < 3 or any(low >= high for low, high in pairwise(self.edges)):
            raise ValueError(f"edges: {self.edges}; expected at least three rising numbers")
        if not self.focal_baseline > 0:
            raise ValueError(f"focal_baseline: {self.focal_baseline}; expected a positive number")

    @property
    def count(self) -> int:
        """Number of bins."""
        return len(self.edges) - 1

    def classes(self, depth: Array) -> Array:
        """Metres (B, H, W), 0 or not finite = missing -> int32 classes, NO_BIN where missing or outside."""
        known = (depth > 0) & jnp.isfinite(depth)
        depth = jnp.where(known, depth, 1.0).astype(jnp.float32)
        if self.of == "disparity":
            bins = quantize(log_disparity(1.0 + 256.0 * self.focal_baseline / depth), self.edges)
            rank = bins - 1  # the least disparity is the farthest
        else:
            bins = quantize(depth, self.edges)
            rank = self.count - bins
        return jnp.where(known & (bins > 0), rank, NO_BIN)

    def weights(self, depth: Array, stride: int) -> Array:
        """Weights of the bins in the cells of a network's map.

        A pixel's weights are one-hot, and equal where its depth is missing; a cell takes the mean of its
        ``stride`` x ``stride`` pixels.

        Args:
            depth: (B, H, W) metres, 0 or not finite = missing.

        Returns:
            (B, ceil(H / stride), ceil(W / stride), bins) float32, summing to 1.
        """
        classes = self.classes(depth)
        one_hot = jax.nn.one_hot(classes, self.count)  # all 0 for NO_BIN
        weights = jnp.where((classes == NO_BIN)[..., None], 1.0 / self.count, one_hot)
        height, width = depth.shape[1:3]
        rows, columns = math.ceil(height / stride), math.ceil(width / stride)
        pad = ((0, 0), (0, rows * stride - height), (0, columns * stride - width), (0, 0))
        padded = jnp.pad(weights, pad, mode="edge")
        return padded.reshape(-1, rows, stride, columns, stride, self.count).mean((2, 4))


Signal = Literal["none", "average", "gt_depth", "attention", "pred_depth"]
Gate = Literal["softmax", "argmax"]


@dataclass(frozen=True)
class PoolingConfig:
    """Section ``model.pooling``: the second layer above the backbone, and that of the loops.

    Attributes:
        signal: Weights of the pooling sizes: ``none`` (one 3x3 convolution, the baseline), ``average``
            (equal), ``gt_depth`` (bins of a given depth), ``attention`` (learned without a depth),
            ``pred_depth`` (bins that the depth branch predicts).
        loop_signal: The same for the loops; ``same`` takes that of ``signal``.
        kind: ``multipool`` (dilations of one feature map) or ``multiscale`` (the image at several sizes, each
            with its own backbone unless tied).
        tied: One kernel for all pooling sizes.
        dilations: Dilations from the farthest bin to the nearest.
        scales: Sizes of ``multiscale`` relative to the image, the first of them 1, which it has instead of
            dilations.
        gate: How the weights are applied in evaluation: ``softmax`` (all branches, as trained) or ``argmax``
            (only the branch with the largest weight, and sparse mode runs only this).
    """

    signal: Signal = "pred_depth"
    loop_signal: Literal["same", "none", "average", "gt_depth", "attention", "pred_depth"] = "same"
    kind: Literal["multipool", "multiscale"] = "multipool"
    tied: bool = False
    dilations: tuple[int, ...] = (1, 2, 4, 8, 16)
    scales: tuple[float, ...] = ()
    gate: Gate = "softmax"

    @property
    def sizes(self) -> tuple[float, ...]:
        """The pooling sizes: dilations, or scales of the image."""
        return self.scales if self.kind == "multiscale" else self.dilations

    def unread(self) -> Mapping[str, str]:
        """Options that are not read, and why."""
        if {self.signal, self.loop_signal} <= {"none", "same"}:
            reason = "signal 'none' has one branch; set model.pooling.signal"
            return dict.fromkeys(("tied", "dilations", "scales", "gate"), reason)
        unread = {}
        if self.kind == "multipool":
            unread["scales"] = "they are of kind 'multiscale'; set model.pooling.kind"
        else:
            unread["dilations"] = "they are of kind 'multipool'; set model.pooling.kind"
            unread["gate"] = "it chooses among dilations; set model.pooling.kind"
        if {self.signal, self.loop_signal} <= {"none", "same", "average"}:
            unread["gate"] = "the branches of an average weigh the same; set model.pooling.signal"
        return unread

    def __post_init__(self) -> None:
        if len(set(self.dilations)) != len(self.dilations) or min(self.dilations, default=0) < 1:
            raise ValueError(f"dilations: {self.dilations}; expected distinct integers >= 1")
        if self.kind == "multipool":
            return
        if self.signal == "none":
            raise ValueError("kind: 'multiscale' has several branches; signal 'none' is for one")
        if len(self.scales) < 2 or self.scales[0] != 1.0 or min(self.scales) <= 0:
            raise ValueError(
                f"scales: {self.scales}; expected positive numbers, two or more, the first of them 1"
            )


@dataclass(frozen=True)
class LossConfig:
    """Section ``model.loss``, the weights of eq. 1.

    Attributes:
        segmentation: Lambda_s of the feed-forward pass, of loop 1, and so on; the last applies to all later
            loops.
        depth_class: Lambda_c; 0 in the final stage.
        depth: Lambda_r; 0 in the final stage.
        at: Losses are computed at all ``pixels`` (after up-sampling) or at the ``cells`` of the network's map
            (labels of their middle pixels), like the code released for NYU.
    """

    segmentation: tuple[float, ...] = (1.0,)
    depth_class: float = 0.01
    depth: float = 0.001
    at: Literal["pixels", "cells"] = "pixels"

    def __post_init__(self) -> None:
        if not self.segmentation or min(self.segmentation) < 0:
            raise ValueError(f"segmentation: {self.segmentation}; expected at least one weight, all >= 0")
        for name in ("depth_class", "depth"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)}; expected a number >= 0")


@dataclass(frozen=True)
class PerspectiveConfig(NetworkConfig):
    """Section ``model`` of a perspective config.

    Attributes:
        segmentation: Options of that task; None leaves it out.
        depth: Options of that task, the regression of the depth branch; None leaves it out.
        backbone: See backbones; its last stage is read.
        pooling: The gated layers.
        bins: Bins of the depth.
        loss: Weights of eq. 1.
        loops: Number of runs of the refinement module after the feed-forward pass. Its parameters depend only
            on whether there is a loop.
        features: Width of everything above the backbone.
        depth_features: Channels of the depth branch, see DepthBranch.
        depth_kernel: Kernel size of the depth branch.
        dropout: Dropout rate before the classes.
        frozen_norm: Norms above the backbone use their stored moments in training too. No pretrained network
            has these layers: train them before they are frozen.
    """

    system: str
    segmentation: Segmentation | None = None
    depth: Depth | None = None
    backbone: Annotated[BackboneConfig, OneOf(BACKBONES, default="resnet")] = field(
        default_factory=ResNetConfig
    )
    pooling: PoolingConfig = field(default_factory=PoolingConfig)
    bins: DepthBins = field(default_factory=DepthBins)
    loss: LossConfig = field(default_factory=LossConfig)
    loops: int = 2
    features: int = 512
    depth_features: tuple[int, int] = (128, 32)
    depth_kernel: int = 1
    dropout: float = 0.1
    frozen_norm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.segmentation is None and self.depth is None:
            raise ValueError("segmentation: None, and so is depth; expected options of at least one task")
        if self.loops < 0:
            raise ValueError(f"loops: {self.loops}; expected a number >= 0")
        if self.depth_kernel not in (1, 3):
            raise ValueError(f"depth_kernel: {self.depth_kernel}; expected 1 or 3")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout: {self.dropout}; expected a share in [0, 1)")
        if min(self.features, *self.depth_features) < 1:
            raise ValueError(f"features: {self.features}, {self.depth_features}; expected positive numbers")
        signals = set(self.signals)
        if self.depth is not None and signals != {"pred_depth"}:
            raise ValueError(
                f"depth: with pooling.signal {'/'.join(sorted(signals))} no branch is trained to predict it; "
                "expected None, or signal 'pred_depth'"
            )
        if signals & {"gt_depth", "pred_depth"} and self.bins.count != len(self.pooling.sizes):
            sizes = "scales" if self.pooling.kind == "multiscale" else "dilations"
            raise ValueError(
                f"bins.edges: {self.bins.count} bins for {len(self.pooling.sizes)} {sizes}; "
                "expected one for each"
            )
        if self.pooling.kind == "multiscale" and self.loops:
            raise ValueError(f"loops: {self.loops} with pooling.kind 'multiscale'; expected 0")

    def unread(self) -> Mapping[str, str]:
        """Options that are not read, and why."""
        reasons: dict[str, str] = (
            {} if self.loops else {"pooling.loop_signal": "there is no loop; set model.loops"}
        )
        if not {"gt_depth", "pred_depth"} & set(self.signals):
            reasons["bins"] = "no depth gates; set model.pooling.signal"
        if "pred_depth" not in self.signals:
            predicted = ("depth_features", "depth_kernel", "loss.depth_class")
            reasons |= dict.fromkeys(predicted, "no depth is predicted; set model.pooling.signal")
        if self.frozen_norm and frozen(self.backbone.block_specs):
            reasons["norm_group"] = "all norms are frozen"
        if self.depth is None:
            reasons["loss.depth"] = "the depth is not regressed; set model.depth"
        if len(self.loss.segmentation) > self.loops + 1:
            reasons["loss.segmentation"] = f"they are more than passes; model.loops is {self.loops}"
        if self.segmentation is None:
            reasons["loss.segmentation"] = "there are no classes; set model.segmentation"
        return reasons

    @property
    def signals(self) -> tuple[Signal, ...]:
        """Signals of the feed-forward pass and, if there is one, of the loop."""
        pooling = self.pooling
        loop = pooling.signal if pooling.loop_signal == "same" else pooling.loop_signal
        return (pooling.signal, loop) if self.loops else (pooling.signal,)

    @property
    def needs_depth(self) -> bool:
        """Whether a given depth is the signal, and so an input."""
        return "gt_depth" in self.signals
