"""Pictures of predictions that are made one after another (the anytime paper's figures 1 and 5)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from PIL import Image

from dynpix_jax.visualization.pictures import HEAT

RIGHT, WRONG, SKIPPED, UNKNOWN = (255, 255, 255), (0, 0, 0), (60, 180, 75), (128, 128, 128)
"""Colours of figure 5, and grey where there is no label."""


@dataclass(frozen=True)
class Exit:
    """One exit and an image.

    Attributes:
        confidence: (H, W), larger is surer.
        skipped: bool (H, W), where nothing is computed from here on; None after the last exit, or without
            adaptivity.
        macs: Up to it.
    """

    confidence: np.ndarray
    skipped: np.ndarray | None
    macs: float


def confidence_picture(confidence: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint8 (H, W, 3): dark blue at ``low``, yellow at ``high``, as the paper colours confidence."""
    share = np.clip((confidence - low) / max(high - low, 1e-12), 0, 1)
    return np.rint(255 * matplotlib.colormaps[HEAT](share)[..., :3]).astype(np.uint8)


def correctness_picture(
    prediction: np.ndarray, truth: np.ndarray, ignored: np.ndarray, skipped: np.ndarray | None
) -> np.ndarray:
    """Figure 5's bottom row, uint8 (H, W, 3): right white, wrong black, skipped from here on green.

    Args:
        prediction: Classes (H, W).
        truth: Classes (H, W).
        ignored: bool (H, W), without a label: grey.
        skipped: bool (H, W) or None.
    """
    picture = np.where((prediction == truth)[..., None], _colour(RIGHT), _colour(WRONG))
    picture = np.where(ignored[..., None], _colour(UNKNOWN), picture)
    return picture if skipped is None else np.where(skipped[..., None], _colour(SKIPPED), picture)


def _colour(colour: tuple[int, int, int]) -> np.ndarray:
    return np.array(colour, np.uint8)


def player_gif(
    photo: np.ndarray,
    predictions: Sequence[np.ndarray],
    macs: Sequence[float],
    *,
    seconds: float = 4.0,
    hold: float = 2.0,
) -> bytes:
    """An animated GIF: the photo, then each prediction when its MACs are done, again and again.

    Args:
        photo: uint8 (H, W, 3).
        predictions: Pictures of them, of the photo's size.
        macs: Up to each prediction.
        seconds: Until the last one.
        hold: How long that stays, in seconds.

    Raises:
        ValueError: Another number of MACs than predictions, or none.
    """
    if len(predictions) != len(macs) or not macs:
        counts = f"{len(predictions)} predictions and {len(macs)} MACs"
        raise ValueError(f"player_gif: {counts}; expected as many, at least one")
    times = np.diff([0.0, *macs]) / macs[-1] * 1e3 * seconds
    # A hundredth of a second is what a GIF can tell apart, and browsers make 20 ms of less.
    durations = [max(20, 10 * round(time / 10)) for time in times] + [10 * round(100 * hold)]
    frames = [Image.fromarray(np.ascontiguousarray(frame)) for frame in (photo, *predictions)]
    frames = [frame.convert("P", palette=Image.Palette.ADAPTIVE) for frame in frames]
    file = io.BytesIO()
    frames[0].save(
        file, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=False
    )
    return file.getvalue()
