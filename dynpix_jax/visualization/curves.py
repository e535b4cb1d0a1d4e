"""Curves: precision against recall."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dynpix_jax.utils.errors import UserError

ISO_F = tuple(round(0.1 * k, 1) for k in range(1, 10))
"""The F-measures along which `plot_pr_curve` draws its grid."""


class CurvePoint(Protocol):
    """One threshold: recall and precision in [0, 1]."""

    @property
    def recall(self) -> float: ...
    @property
    def precision(self) -> float: ...


class CurveScores(Protocol):
    """What a curve needs; `evaluation.boundary.BoundaryScores` has it."""

    @property
    def per_threshold(self) -> Sequence[CurvePoint]: ...
    @property
    def ods(self) -> float: ...
    @property
    def ods_recall(self) -> float: ...
    @property
    def ods_precision(self) -> float: ...
    @property
    def ois(self) -> float: ...
    @property
    def ap(self) -> float: ...


def pr_figure(scores: CurveScores) -> Figure:
    """Precision against recall of the whole data set over lines of equal F; a dot marks ODS."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    FigureCanvasAgg(figure)  # a canvas of its own: pyplot and its global state are not involved
    axes = figure.add_subplot()
    for f in ISO_F:
        # F = 2PR / (P + R): precision as a function of recall, from the recall where precision is 1.
        # Steps grow with the distance to the asymptote at f / 2, for the line is steep there.
        recall = f / 2 + np.geomspace(f**2 / (4 - 2 * f), 1 - f / 2, 100)
        axes.plot(recall, f * recall / (2 * recall - f), color="0.85", linewidth=0.8, zorder=0)
        end = (1.0, f / (2 - f))
        axes.annotate(f"{f:.1f}", end, xytext=(2, 0), textcoords="offset points", color="0.55", size=7)
    points = [row for row in scores.per_threshold if row.precision > 0]
    axes.plot([row.recall for row in points], [row.precision for row in points], linewidth=2, color="tab:red")
    axes.plot(
        [scores.ods_recall],
        [scores.ods_precision],
        "o",
        color="tab:red",
        label=f"ODS {scores.ods:.3f}  OIS {scores.ois:.3f}  AP {scores.ap:.3f}",
    )
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.legend(loc="lower left", framealpha=1)
    return figure


def plot_pr_curve(scores: CurveScores, path: str | Path) -> None:
    """Writes `pr_figure` as a picture; the suffix of `path` says in which format (.png, .svg, .pdf, ...).

    Raises:
      UserError: a format that matplotlib does not write, or a place where no file can be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pr_figure(scores).savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write the curve to {path}: {error}") from None
