"""Depth in a few bins: what depth-aware gating predicts, and what ground truth gates by."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import jax
import jax.numpy as jnp

from dynpix_jax.core.typing import Array

NO_BIN = 255
"""Class of a pixel without a depth."""

NYU_EDGES = (0.001, 1.5, 2.1, 3.0, 4.7, 100.0)
"""Metres (released code): bins of about equal population."""

CITYSCAPES_EDGES = (0.0, 11.0, 12.5, 13.2, 13.9, 20.0)
"""Of log2 of a 16-bit disparity (released code)."""

CITYSCAPES_FOCAL_BASELINE = 0.209313 * 2262.52
"""Metres times pixels: depth in metres = this / disparity in pixels."""


def quantize(values: Array, edges: tuple[float, ...]) -> Array:
    """Bin k, from 1, holds the values above ``edges[k - 1]`` up to and including ``edges[k]``; 0 is outside.

    Args:
      values: any shape.
      edges: rising.

    Returns:
      int32 of the shape of ``values``.
    """
    above = (values[..., None] > jnp.asarray(edges, values.dtype)).sum(-1, dtype=jnp.int32)
    return jnp.where(above < len(edges), above, 0)


def log_disparity(stored: Array) -> Array:
    """log2 of a disparity as Cityscapes stores it, 256 * pixels + 1; 0 (no bin) up to 10, as released."""
    return jnp.log2(jnp.where(stored > 10, stored, 1).astype(jnp.float32))


@dataclass(frozen=True)
class DepthBins:
    """Section ``model.bins``. Classes count from the farthest bin, 0, to the nearest.

    edges: rising; one more than bins. of: what they are edges of, ``depth`` in metres or ``disparity``: log2
    of what Cityscapes' files hold, found from the metres by focal_baseline (metres times pixels).
    """

    edges: tuple[float, ...] = NYU_EDGES
    of: Literal["depth", "disparity"] = "depth"
    focal_baseline: float = CITYSCAPES_FOCAL_BASELINE

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
