"""Draws accuracy against MACs of anytime predictors that were evaluated on the same images.

Each curve is an eval.json, as eval.py writes it: the earlier predictions (exits, loops, iterations) with the
MACs up to each.

example:
  dynpix bench curves --out docs/anytime-curves.png "MDEQ=runs/scenes/mdeq/eval.json" \\
      "HRNet, RH + CA=runs/scenes/anytime/eval.json"
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.text import a_path, parse_json

_EARLIER = re.compile(r"(iterations|loop|exit)_\d+")
"""Names of earlier predictions that are run on their own."""


@dataclass(frozen=True)
class Point:
    """One prediction."""

    name: str
    macs: float
    accuracy: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the program."""
    parser.add_argument("curves", nargs="+", metavar="LABEL=EVAL.JSON", help="in the order of the legend")
    parser.add_argument("--out", required=True, type=a_path, help="picture; its suffix is the format")
    parser.add_argument("--score", default="miou", help="of eval.json (default: miou)")
    parser.add_argument("--stage", help="of training (default: the last that was evaluated)")
    parser.add_argument("--json", action="store_true", help="print the points")


def run(args: argparse.Namespace) -> int:
    """Writes the picture; gives the exit status."""
    curves: dict[str, list[Point]] = {}
    data = set()
    for text in args.curves:
        label, _, file = text.rpartition("=")
        if not label:
            raise UserError(f"{text}: expected LABEL=EVAL.JSON")
        if label in curves:
            raise UserError(f"{text}: another curve has the label {label!r}")
        try:
            content = parse_json(Path(file).read_text(encoding="utf-8"))
            data.add(content["data"])
            curves[label] = points(content, args.score, args.stage)
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{file}: expected an eval.json of eval.py ({reason})") from None
        if not curves[label]:
            raise UserError(f"{file}: no row of that stage has the score {args.score!r}")
    if len(data) > 1:
        raise UserError(f"the curves were measured on different images: {'; '.join(sorted(data))}")
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        draw(curves, f"{args.score}, {data.pop()}").savefig(args.out, dpi=150)
    except (OSError, ValueError) as error:  # a ValueError for a format that there is none of
        raise UserError(f"--out {args.out}: cannot be written: {error}") from None
    if args.json:
        print(json.dumps({label: [asdict(point) for point in curve] for label, curve in curves.items()}))
    return 0


def points(content: dict[str, Any], score: str, stage: str | None = None) -> list[Point]:
    """The predictions of one stage of an eval.json, by their MACs.

    A row may hold earlier predictions ("exits"), or be one of them that was run on its own ("alternative":
    iterations_4, loop_1), which then gives the names. Otherwise the network's own row is the only point.

    Args:
        content: Content of the file.
        score: Name of the score.
        stage: Training stage; None for the last that was evaluated.
    """
    stage = stage or content["rows"][-1]["stage"]
    whole: list[Point] = []
    alone: list[Point] = []
    exits: Sequence[Mapping[str, Any]] = ()
    for row in content["rows"]:
        name = row.get("alternative") or ""
        if row["stage"] != stage or score not in _scores(row):
            continue
        if not name:
            whole.append(_point(row, score))
            exits = row.get("exits") or ()
        elif _EARLIER.fullmatch(name):
            alone.append(_point(row, score))
    alone.sort(key=lambda point: point.macs)
    return _named(exits, alone, score) if exits else alone or whole


def _named(exits: Sequence[Mapping[str, Any]], alone: Sequence[Point], score: str) -> list[Point]:
    """The exits by their MACs, with the names that they have as rows of their own, where each has one."""
    pairs = sorted((float(one["macs_per_image"]), float(one[score])) for one in exits)
    counted = [f"exit {number}" for number in range(1, len(exits) + 1)]
    names = [point.name for point in alone] if len(alone) == len(exits) else counted
    return [Point(name, *pair) for name, pair in zip(names, pairs, strict=True)]


def _scores(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The scores of the mode that was run first."""
    scores: Mapping[str, Any] = next(iter(row["modes"].values()))
    return scores


def _point(row: Mapping[str, Any], score: str) -> Point:
    name = (row.get("alternative") or "").replace("_", " ")
    return Point(name, float(row["macs_per_image"]), float(_scores(row)[score]))


def draw(curves: dict[str, list[Point]], title: str) -> Figure:
    """One line for each predictor, over a logarithmic axis of MACs."""
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for number, (label, curve) in enumerate(curves.items()):
        macs, accuracy = [point.macs / 1e9 for point in curve], [point.accuracy for point in curve]
        axes.plot(macs, accuracy, "os^Dv"[number % 5] + "-", color=f"C{number}", label=label)
        for point in curve:
            place = (point.macs / 1e9, point.accuracy)
            axes.annotate(point.name, place, xytext=(4, -9), textcoords="offset points", size=7, color="0.35")
    axes.set(xscale="log", xlabel="MACs per image up to the prediction, 10⁹", ylabel=title)
    axes.margins(x=0.2)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.legend(loc="best", framealpha=1, fontsize=8)
    return figure
