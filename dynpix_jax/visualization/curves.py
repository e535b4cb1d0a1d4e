"""Curves: precision against recall, accuracy against computation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dynpix_jax.core.errors import UserError
from dynpix_jax.visualization.pictures import new_figure

ISO_F = tuple(round(0.1 * k, 1) for k in range(1, 10))
"""The F-measures along which `plot_pr_curve` draws its grid."""

HUMAN = (0.7235, 0.9014)
"""Recall and precision of BSDS500's annotators against each other, on test, as published plots have them."""


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


@dataclasses.dataclass(frozen=True)
class CostPoint:
    """One point of the accuracy against computation curve.

    Attributes:
        label: Written beside it.
        macs: Multiply-accumulates an image.
        accuracy: The score.
        gated: Whether the network has gates.
        chance: Whether its masks are of chance.
    """

    label: str
    macs: float
    accuracy: float
    gated: bool = True
    chance: bool = False

    @property
    def kind(self) -> str:
        """What the legend calls it."""
        if not self.gated:
            return "without gates"
        return "by chance" if self.chance else "with gates"


def pr_figure(scores: CurveScores | Mapping[str, CurveScores], *, human: bool = False) -> Figure:
    """Precision against recall of the whole data set over lines of equal F; dots mark ODS.

    Args:
        scores: Scores of one system, or of several by label; a score that is nan is left out.
        human: Draws the annotators of BSDS500, too.
    """
    curves = dict(scores) if isinstance(scores, Mapping) else {"": scores}
    figure = new_figure(5, 5)
    axes = figure.add_subplot()
    for f in ISO_F:
        # F = 2PR / (P + R): precision as a function of recall, from the recall where precision is 1.
        # Steps grow with the distance to the asymptote at f / 2, for the line is steep there.
        recall = f / 2 + np.geomspace(f**2 / (4 - 2 * f), 1 - f / 2, 100)
        axes.plot(recall, f * recall / (2 * recall - f), color="0.85", linewidth=0.8, zorder=0)
        end = (1.0, f / (2 - f))
        axes.annotate(f"{f:.1f}", end, xytext=(2, 0), textcoords="offset points", color="0.55", size=7)
    for number, (label, curve) in enumerate(curves.items()):
        colour = "tab:red" if len(curves) == 1 else f"C{number}"
        points = [row for row in curve.per_threshold if row.precision > 0]
        axes.plot(
            [row.recall for row in points], [row.precision for row in points], linewidth=2, color=colour
        )
        known = {"ODS": curve.ods, "OIS": curve.ois, "AP": curve.ap}
        numbers = "  ".join(f"{name} {value:.3f}" for name, value in known.items() if value == value)
        axes.plot(
            [curve.ods_recall],
            [curve.ods_precision],
            "o",
            color=colour,
            label=f"{label}\n{numbers}" if label else numbers,
        )
    if human:
        f = 2 * HUMAN[0] * HUMAN[1] / sum(HUMAN)
        axes.plot([HUMAN[0]], [HUMAN[1]], "D", color="tab:green", label=f"human, F {f:.2f}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.legend(loc="lower left", framealpha=1, fontsize=10 if len(curves) == 1 else 8)
    return figure


def accuracy_macs_figure(points: Sequence[CostPoint], score: str = "boundary F (ODS)") -> Figure:
    """Accuracy against MACs an image.

    Gated points are joined in the order of their MACs; each point has its label.
    """
    if not points:
        raise ValueError("accuracy_macs_figure: no points")
    figure = new_figure(5, 4)
    axes = figure.add_subplot()
    ordered = sorted(points, key=lambda point: point.macs)
    series = {"with gates": ("-o", "C0"), "by chance": ("x", "0.45"), "without gates": ("s", "C3")}
    for kind, (marker, colour) in series.items():
        shown = [(point.macs / 1e9, point.accuracy) for point in ordered if point.kind == kind]
        if shown:
            axes.plot(*zip(*shown, strict=True), marker, color=colour, label=kind)
    axes.set(xlabel="MACs per image, 10⁹ (less is cheaper)", ylabel=score)
    # Room at the top and at the sides for the labels, whose widths the limits do not know.
    axes.margins(x=0.25, y=0.3)
    axes.set_xlim(left=0)  # or a saving of a quarter looks like all
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    for number, point in enumerate(ordered):
        # In turn above and below, so that neighbours do not write over each other.
        above = number % 2 == 0
        axes.annotate(
            point.label,
            (point.macs / 1e9, point.accuracy),
            xytext=(0, 8 if above else -8),
            textcoords="offset points",
            ha="center",
            va="bottom" if above else "top",
            size=8,
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
        )
    if len({point.kind for point in ordered}) > 1:
        axes.legend(loc="best", framealpha=1, fontsize=8)
    return figure


def plot_pr_curve(
    scores: CurveScores | Mapping[str, CurveScores], path: str | Path, *, human: bool = False
) -> None:
    """Writes `pr_figure` as a picture; the suffix of `path` says in which format (.png, .svg, .pdf, ...).

    Raises:
        UserError: A format that matplotlib does not write, or a place where no file can be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pr_figure(scores, human=human).savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write the curve to {path}: {error}") from None
