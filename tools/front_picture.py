"""Draws the picture at the top of README: a photo, its prediction, where it was computed, the curve of a run.

    python -m tools.front_picture --model scenes --eval runs/quickstart/eval.json --out docs/front.png

Without --photo a room is rendered that no training has seen.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dynpix_jax.cli.common import run_main
from dynpix_jax.data.images import read_image
from dynpix_jax.data.scenes import Scenes, ScenesConfig
from dynpix_jax.evaluation.results import Measured, read_results
from dynpix_jax.serving.predictor import Labelled, load
from dynpix_jax.tasks import Score
from dynpix_jax.visualization.pictures import heat_overlay, new_figure, save_png
from dynpix_jax.visualization.task_pictures import task_pictures


def main(argv: Sequence[str] | None = None) -> int:
    """Draws it; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a network that ships, a workdir or a file")
    parser.add_argument("--photo", type=Path, help="a photo (default: a rendered room)")
    parser.add_argument("--index", type=int, default=3, help="number of the room")
    parser.add_argument("--eval", type=Path, required=True, help="eval.json of the run, with all its stages")
    parser.add_argument("--out", type=Path, required=True, help="the picture")
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    predictor = load(args.model)
    if args.photo is None:
        rooms = Scenes(ScenesConfig(size=(128, 160), fields=("boundaries",)), "test")
        photo = rooms[args.index]["image"]
    else:
        photo = read_image(args.photo, upright=True)
    task = next(iter(predictor.system.tasks.values()))
    drawn = task_pictures(task).files(photo, predictor(photo)[task.name])
    found = predictor.label(photo)
    draw(photo, drawn["map"], found, read_results(args.eval), task.scores[0], args.out)
    return 0


def draw(
    photo: np.ndarray,
    prediction: np.ndarray,
    found: Labelled,
    rows: Sequence[Measured],
    score: Score,
    out: Path,
) -> None:
    """Writes the picture of four panels: with ``rows``, those of an eval.json, by their ``score``."""
    figure = new_figure(11, 2.4)
    axes = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.1))
    computed = heat_overlay(photo, found.ponder["total"])
    panels = (
        ("photo", photo),
        ("prediction", 255 - prediction if prediction.ndim == 2 else prediction),
        (f"computed: {found.density or 1:.0%} of the gated positions", computed),
    )
    for place, (title, picture) in zip(axes, panels, strict=False):
        place.imshow(picture, cmap="gray", vmin=0, vmax=255)
        place.set_title(title, size=9)
        place.set_axis_off()
    axes[3].plot([row.macs / 1e9 for row in rows], [row.scores[score.name] for row in rows], "-o")
    for number, row in enumerate(rows):
        at, offset = (row.macs / 1e9, row.scores[score.name]), (0, 6 if number % 2 else -12)
        axes[3].annotate(row.stage, at, xytext=offset, textcoords="offset points", size=8, ha="center")
    axes[3].set(xlabel="MACs an image, 10⁹", ylabel=score.label, ylim=(0, 1))
    axes[3].set_xlim(left=0, right=1.15 * max(row.macs for row in rows) / 1e9)
    axes[3].set_title(rows[0].data, size=9)
    axes[3].grid(color="0.92")
    save_png(figure, out)


if __name__ == "__main__":
    run_main(main)
