"""Pictures of predictions, masks and ponder maps, as arrays, matplotlib figures and PNG files.

Figures have an Agg canvas of their own: pyplot and its global state are not involved.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image

from dynpix_jax.core.errors import UserError
from dynpix_jax.data.nms import non_maximum_suppression

HEAT = "viridis"
"""Colour map of ponder maps: dark blue = nothing was computed, yellow = every layer was."""
HEAT_WEIGHT = 0.65
"""Share of the colour in an overlay; the rest is the grey photo."""
MAX_PANEL_HEIGHT = 4.0
"""Inches that a panel for an upright picture is high, at most (unless its title would not fit)."""
LINE_COLOUR = (230, 25, 25)
"""Colour of boundaries drawn on a photo, RGB."""
LINE_REACH = 16
"""Pixels around, beyond which nothing changes whether a boundary is drawn at a pixel."""


def boundary_map(probability: np.ndarray) -> np.ndarray:
    """Grey picture uint8 (H, W) of boundary probabilities (H, W) in [0, 1]; white = certainly a boundary.

    `dynpix eval-boundaries` scores such pictures.
    """
    _check_map("boundary_map", probability)
    return np.rint(255 * np.clip(probability, 0, 1)).astype(np.uint8)


def boundary_overlay(photo: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Boundaries in red on a photo: uint8 (H, W, 3), the more probable the more opaque.

    Lines are drawn: what non-maximum suppression keeps, as the benchmark scores it, faded in the five pixels
    at the border of the photo, where detectors are unreliable. A line is a pixel wide; on photos that are at
    least 800, 1600 or 2400 pixels wide it is 3, 5 or 7.

    Args:
        photo: uint8 (H, W, 3) RGB.
        probability: (H, W) in [0, 1].
    """
    _check_pair("boundary_overlay", photo, probability)
    probability = np.clip(probability, 0, 1)
    # Flanks of a prediction that was enlarged rise by less than the benchmark's one per cent a pixel.
    ridges = non_maximum_suppression(probability, multiplier=1.0001)
    side = 2 * min(photo.shape[1] // 800, 3) + 1
    lines = cv2.dilate(ridges, np.ones((side, side), np.uint8))
    weight = lines[..., None]
    return np.rint(weight * np.array(LINE_COLOUR) + (1 - weight) * photo).astype(np.uint8)


def heat_overlay(photo: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """A ponder map in colours (`HEAT`) on the grey photo: uint8 (H, W, 3).

    Args:
        photo: uint8 (H, W, 3) RGB.
        shares: (H, W) in [0, 1], the share of layers that computed at each pixel.
    """
    _check_pair("heat_overlay", photo, shares)
    colours = 255 * matplotlib.colormaps[HEAT](np.clip(shares, 0, 1))[..., :3]
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)[..., None]
    return np.rint(HEAT_WEIGHT * colours + (1 - HEAT_WEIGHT) * grey).astype(np.uint8)


def mask_picture(mask: np.ndarray) -> np.ndarray:
    """Grey picture uint8 (h, w) of a mask (bool or 0/1); white = computed."""
    _check_map("mask_picture", mask)
    return np.where(np.asarray(mask) > 0.5, 255, 0).astype(np.uint8)


def masks_figure(masks: Mapping[str, np.ndarray], *, columns: int = 4) -> Figure:
    """The masks of all gated blocks of one image in a grid, each titled with its block and density.

    Args:
        masks: Block ("res2_1") -> (h, w), bool or 0/1, at least one; sizes may differ.
        columns: Most pictures side by side.
    """
    if not masks:
        raise ValueError("masks_figure: no masks")
    height, width = next(iter(masks.values())).shape
    figure, axes = picture_grid(len(masks), min(columns, len(masks)), 1.7, height / width)
    for place, (name, mask) in zip(axes, masks.items(), strict=False):
        place.imshow(mask_picture(mask), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        place.set_title(f"{name}: {np.mean(np.asarray(mask) > 0.5):.0%}", size=9)
        place.set_axis_on()  # the frame, for white masks on white paper
        place.set(xticks=(), yticks=())
    figure.suptitle("Where each block computed (white) and its density", size=10)
    return figure


def ponder_figure(photo: np.ndarray, maps: Mapping[str, np.ndarray], *, columns: int = 3) -> Figure:
    """Ponder maps on the photo, in total and one for each macro stage, with one colour bar for all.

    Args:
        photo: uint8 (H, W, 3) RGB.
        maps: Stage ("res2", ..., "total") -> (H, W) in [0, 1], at least one.
        columns: Most pictures side by side.
    """
    if not maps:
        raise ValueError("ponder_figure: no maps")
    figure, axes = picture_grid(len(maps), min(columns, len(maps)), 2.6, photo.shape[0] / photo.shape[1])
    first = sorted(maps.items(), key=lambda item: item[0] != "total")
    for place, (name, shares) in zip(axes, first, strict=False):
        place.imshow(heat_overlay(photo, shares))
        place.set_title(f"{name}: {np.mean(shares):.0%}", size=9)
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 100), HEAT),
        ax=axes,
        location="bottom",
        shrink=0.6,
        aspect=30,
        fraction=0.06,
    )
    bar.set_label("layers that computed at the pixel, %", size=9)
    bar.ax.tick_params(labelsize=8)
    return figure


def png_bytes(picture: np.ndarray | Figure, *, dpi: int = 110) -> bytes:
    """A picture as a PNG file: uint8 (H, W) or (H, W, 3), or a figure at `dpi`."""
    stream = io.BytesIO()
    if isinstance(picture, Figure):
        # tight: what the layout leaves outside (titles over panels of extreme shapes) is not cut off
        picture.savefig(stream, format="png", dpi=dpi, bbox_inches="tight")
    else:
        # Not `optimize`: it takes nine times as long, for a tenth of the size.
        Image.fromarray(picture).save(stream, format="png")
    return stream.getvalue()


def save_png(picture: np.ndarray | Figure, path: str | Path) -> None:
    """Writes `png_bytes`, makes the folder; a UserError where that cannot be."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_bytes(picture))
    except OSError as error:
        raise UserError(f"cannot write the picture {path}: {error.strerror or error}") from None


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size in inches, with an Agg canvas."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def picture_grid(count: int, columns: int, panel_width: float, aspect: float) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels for pictures of height / width `aspect`; places left over are empty."""
    rows = math.ceil(count / columns)
    panel_width = min(panel_width, max(1.2, MAX_PANEL_HEIGHT / aspect))
    # Each panel: the picture and its title; below or above all: the colour bar or the title of the figure.
    figure = new_figure(columns * panel_width, rows * (panel_width * aspect + 0.3) + 0.7)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for place in axes:
        place.set_axis_off()
    return figure, axes


def _check_map(name: str, array: np.ndarray) -> None:
    if np.ndim(array) != 2:
        raise ValueError(f"{name}: expected (H, W), got shape {np.shape(array)}")


def _check_pair(name: str, photo: np.ndarray, array: np.ndarray) -> None:
    _check_map(name, array)
    if photo.dtype != np.uint8 or photo.shape != (*array.shape, 3):
        raise ValueError(
            f"{name}: expected a photo uint8 {(*array.shape, 3)}, got {photo.dtype} {photo.shape}"
        )
