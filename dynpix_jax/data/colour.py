"""Colour jitter and gamma: what changes an image and none of its labels."""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np

from dynpix_jax.core.augmentation import ColourRanges

# Luma and two chroma axes (YIQ); turning the chroma plane turns the hue.
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


@dataclasses.dataclass(frozen=True)
class Colour:
    """Brightness, contrast about the mean grey, saturation, hue (degrees), then gamma."""

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    gamma: float = 1.0

    @staticmethod
    def sample(rng: np.random.Generator, ranges: ColourRanges) -> Colour:
        """Draws five numbers, whatever the ranges, so that one range does not change the others' draws."""
        draws = rng.random(5)
        low, high = math.log(ranges.gamma[0]), math.log(ranges.gamma[1])
        return Colour(
            1 + ranges.brightness * (2 * draws[0] - 1),
            1 + ranges.contrast * (2 * draws[1] - 1),
            1 + ranges.saturation * (2 * draws[2] - 1),
            ranges.hue * (2 * draws[3] - 1),
            math.exp(low + (high - low) * draws[4]),
        )

    def apply(self, image: np.ndarray) -> np.ndarray:
        """The changed image, uint8 (H, W, 3) RGB as given; values are rounded and clipped."""
        if self == Colour():
            return image
        # All but gamma is one affine map of RGB.
        angle = math.radians(self.hue)
        cos, sin = self.saturation * math.cos(angle), self.saturation * math.sin(angle)
        chroma = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
        matrix = np.linalg.inv(_TO_YIQ) @ chroma @ _TO_YIQ
        grey = self.brightness * float(_TO_YIQ[0] @ np.asarray(cv2.mean(image)[:3]))
        shift = matrix @ np.full(3, (1 - self.contrast) * grey)
        affine = np.column_stack([self.contrast * self.brightness * matrix, shift])
        out = cv2.transform(image, affine)
        if self.gamma != 1:
            table = np.round(255 * (np.arange(256) / 255) ** self.gamma).astype(np.uint8)
            out = cv2.LUT(out, table)
        return out
