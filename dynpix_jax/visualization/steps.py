"""Pictures of networks that work in steps, and of what their pixels choose: loops, exits, pooling sizes."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dynpix_jax.visualization.pictures import picture_grid
from dynpix_jax.visualization.task_pictures import Colour, TaskPictures

CHOICE_COLOURS = "turbo"
"""Colour map of choices: from blue, the first branch, to red, the last."""
NO_CHOICE: Colour = (0, 0, 0)
"""Colour of pixels of which nothing is known."""


def choice_colours(count: int) -> list[Colour]:
    """A colour for each of ``count`` branches, in their order."""
    places = (np.arange(count) + 0.5) / count
    red, green, blue = np.rint(255 * matplotlib.colormaps[CHOICE_COLOURS](places)[:, :3].T).astype(int)
    return [(int(r), int(g), int(b)) for r, g, b in zip(red, green, blue, strict=True)]


def choice_picture(choice: np.ndarray, count: int) -> np.ndarray:
    """uint8 (H, W, 3) of which of ``count`` branches each pixel takes, int (H, W); other numbers: unknown."""
    known = (choice >= 0) & (choice < count)
    colours = np.array(choice_colours(count), np.uint8)[np.where(known, choice, 0)]
    return np.where(known[..., None], colours, np.array(NO_CHOICE, np.uint8))


def choice_note(choice: np.ndarray, names: tuple[str, ...]) -> str:
    """Shares of the branches that are chosen, the greatest first: "dilation 4 62%, dilation 1 38%"."""
    count = len(names)
    shares = np.bincount(choice[(choice >= 0) & (choice < count)].ravel(), minlength=count) / choice.size
    order = np.argsort(-shares, kind="stable")
    return ", ".join(f"{names[index]} {shares[index]:.0%}" for index in order if shares[index] >= 0.005)


def choices_figure(maps: Mapping[str, np.ndarray], names: tuple[str, ...], *, columns: int = 3) -> Figure:
    """Which branch each pixel takes, one picture for each module whose pixels choose, with a legend for all.

    Args:
        maps: Module ("res5_2") -> int (H, W), at least one.
        names: Names of the branches.
        columns: Most pictures side by side.
    """
    height, width = next(iter(maps.values())).shape
    figure, axes = picture_grid(len(maps), min(columns, len(maps)), 2.6, height / width)
    for place, (name, chosen) in zip(axes, maps.items(), strict=False):
        place.imshow(choice_picture(chosen, len(names)), interpolation="nearest")
        place.set_title(name, size=9)
    colours = np.array(choice_colours(len(names))) / 255
    handles = [Patch(color=colour, label=name) for colour, name in zip(colours, names, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(names), 3), fontsize=8)
    return figure


def change_picture(
    before: np.ndarray, after: np.ndarray, pictures: TaskPictures, reference: np.ndarray, photo: np.ndarray
) -> tuple[np.ndarray, str]:
    """What a step changed in a prediction: uint8 (H, W), and a note.

    Classes: white where another one is predicted. Everything else: how far its pictures' colours are apart.

    Args:
        before: Decoded prediction of an image.
        after: The prediction of the next step.
        pictures: How the task is drawn.
        reference: See `TaskPictures.picture`.
        photo: The image, (H, W, 3) uint8.
    """
    if np.issubdtype(before.dtype, np.integer):
        changed = before != after
        return np.where(changed, 255, 0).astype(np.uint8), f"{changed.mean():.1%} of the pixels"
    old, new = (pictures.picture(value, reference, photo).astype(int) for value in (before, after))
    apart = np.abs(new - old)
    apart = apart.max(-1) if apart.ndim == 3 else apart
    return apart.astype(np.uint8), "the brighter, the more its colour changed"
