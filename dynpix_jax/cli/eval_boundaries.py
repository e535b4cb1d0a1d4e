"""Scores a folder of boundary maps (.png) against a folder of BSDS ground truth (.mat).

example:
  dynpix eval-boundaries --pred maps --gt BSDS500/data/groundTruth/val --curve pr.png
  dynpix eval-boundaries --curve pr.png --beside runs/a/eval.json HED=hed/eval_bdry_thr.txt --human

Every NAME.png (grey) of --pred is scored against NAME.mat of --gt: ODS, OIS and AP as the BSDS500 benchmark
defines them. Non-maximum suppression comes first, unless --no-nms says that the maps are thin already.
--beside draws curves that were measured before into the same picture, without --pred those alone.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.settings import MAX_DIST, MOST_THRESHOLDS, MOST_WORKERS, THRESHOLDS
from dynpix_jax.core.text import a_path
from dynpix_jax.data.bsds500 import read_boundaries
from dynpix_jax.data.images import read_image
from dynpix_jax.evaluation.boundary import (
    BoundaryScores,
    GroundTruth,
    evaluate_boundaries,
    read_curve,
)
from dynpix_jax.visualization.curves import plot_pr_curve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("--pred", type=a_path, metavar="DIR", help="the maps: NAME.png")
    parser.add_argument("--gt", type=a_path, metavar="DIR", help="the ground truth: NAME.mat")
    parser.add_argument(
        "--thresholds", type=int, default=THRESHOLDS, metavar="N", help=f"how many (default: {THRESHOLDS})"
    )
    parser.add_argument("--no-nms", action="store_true", help="the maps are thin already")
    parser.add_argument("--no-smooth", action="store_true", help="do not smooth the maps before suppression")
    parser.add_argument(
        "--max-dist",
        type=float,
        default=MAX_DIST,
        metavar="F",
        help=f"largest distance of a match in image diagonals (default: {MAX_DIST})",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one a CPU core)")
    parser.add_argument("--curve", type=a_path, metavar="FILE.png", help="draw the precision-recall curve")
    parser.add_argument(
        "--beside",
        nargs="+",
        default=[],
        metavar="[LABEL=]FILE",
        help="curves to draw beside it: the benchmark's eval_bdry_thr.txt, an eval.json, what --json printed",
    )
    parser.add_argument("--human", action="store_true", help="draw BSDS500's annotators, too")
    parser.add_argument("--json", action="store_true", help="print all scores, also per image, as JSON")


def run(args: argparse.Namespace) -> int:
    """Evaluates and prints, draws the curves; returns 0."""
    _check_options(args)
    own = "" if args.pred is None or not args.beside else args.pred.resolve().name
    curves = _all_beside(args.beside, own)
    if args.pred is not None:
        scores = _score(args)
        curves = {own: scores} | curves
        print(json.dumps(scores.to_dict(), indent=2) if args.json else _describe(scores))
    if args.curve is not None:
        plot_pr_curve(curves, args.curve, human=args.human)
    return 0


def _check_options(args: argparse.Namespace) -> None:
    if (args.beside or args.human) and args.curve is None:
        raise UserError(f"{'--beside' if args.beside else '--human'} draws into the picture of --curve FILE")
    _check_numbers(args)
    if args.pred is None and (args.json or not args.beside):
        raise UserError("--pred DIR is missing: the maps to score")
    if (args.pred is None) != (args.gt is None):
        raise UserError("--pred and --gt: one without the other")
    if args.no_nms and args.no_smooth:
        raise UserError("--no-smooth: beside --no-nms nothing is smoothed; give one of them")
    if args.pred is None and (scoring := _of_scoring(args)):
        raise UserError(f"{scoring}: is for the maps of --pred DIR, which is missing")


def _of_scoring(args: argparse.Namespace) -> str:
    """An option that was given and says how maps are scored; "" without."""
    given = {
        "--thresholds": args.thresholds != THRESHOLDS,
        "--no-nms": args.no_nms,
        "--no-smooth": args.no_smooth,
        "--max-dist": args.max_dist != MAX_DIST,
        "--workers": args.workers is not None,
    }
    return next((name for name, is_given in given.items() if is_given), "")


def _check_numbers(args: argparse.Namespace) -> None:
    if not 1 <= args.thresholds <= MOST_THRESHOLDS:
        raise UserError(f"--thresholds {args.thresholds}: expected at least 1 and at most {MOST_THRESHOLDS}")
    if not 0 < args.max_dist <= 1 or not math.isfinite(args.max_dist):
        raise UserError(
            f"--max-dist {args.max_dist:g}: expected a fraction of the diagonal, above 0 and up to 1"
        )
    if args.workers is not None and not 1 <= args.workers <= MOST_WORKERS:
        raise UserError(f"--workers {args.workers}: expected at least 1 and at most {MOST_WORKERS}")
    if args.curve is not None and args.curve.is_dir():
        raise UserError(f"--curve {args.curve}: is a folder; expected a picture to write")


def _all_beside(texts: Sequence[str], own: str) -> dict[str, BoundaryScores]:
    """The curves of --beside by label; a UserError if two, or one and that of --pred, have the same."""
    curves: dict[str, BoundaryScores] = {}
    for text in texts:
        label, curve = _beside(text)
        if label in (own, *curves):
            raise UserError(f"--beside {text}: another curve is called {label!r}; give LABEL=FILE")
        curves[label] = curve
    return curves


def _beside(text: str) -> tuple[str, BoundaryScores]:
    """Label and curve of "LABEL=FILE", or of "FILE", whose label is its name or that of its folder."""
    label, separator, file = text.partition("=")
    if not separator or Path(text).exists():
        label, file = "", text
    path = Path(file)
    named = path.resolve().parent.name if path.stem in ("eval", "eval_bdry_thr") else path.stem
    return label or named, read_curve(path)


def _score(args: argparse.Namespace) -> BoundaryScores:
    """The scores of the maps of --pred."""
    pairs = find_pairs(args.pred, args.gt)
    # Every file is read once before the work starts: a broken one shows at once, not after minutes.
    for prediction, truth in pairs.values():
        _check_pair(prediction, truth)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("images", total=len(pairs))
        return evaluate_boundaries(
            ((name, read_map(prediction)) for name, (prediction, _) in pairs.items()),
            GroundTruth({name: truth for name, (_, truth) in pairs.items()}, read_boundaries),
            thresholds=args.thresholds,
            max_dist=args.max_dist,
            nms=not args.no_nms,
            smooth=not args.no_smooth,
            workers=args.workers,
            progress=lambda done, _: bar.update(task, completed=done),
        )


def find_pairs(predictions: Path, truth: Path) -> dict[str, tuple[Path, Path]]:
    """The map and the ground truth of each image by name, in the order of the names.

    Raises:
        UserError: A missing folder, no .png file, a map without ground truth.
    """
    for option, folder in (("--pred", predictions), ("--gt", truth)):
        if not folder.is_dir():
            raise UserError(f"{option}: folder not found: {folder}")
    maps = sorted(predictions.glob("*.png"))
    if not maps:
        raise UserError(f"--pred: no .png files in {predictions}")
    pairs = {path.stem: (path, truth / f"{path.stem}.mat") for path in maps}
    missing = [(path, mat) for path, mat in pairs.values() if not mat.is_file()]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(f"no ground truth for {missing[0][0]}: expected {missing[0][1]}{more}")
    return pairs


def read_map(path: Path) -> np.ndarray:
    """A boundary map from a grey picture: float64 (H, W), its values over 255 (over 65535 if it has 16 bits).

    Raises:
        UserError: Missing or corrupt file, a picture with colours or of real numbers.
    """
    picture = read_image(path)  # 8 bits, and the errors
    with Image.open(path) as stored:
        if stored.mode == "F":
            raise UserError(f"picture of 8 or 16 bits expected, but this one holds real numbers: {path}")
        if stored.mode.startswith("I"):
            return np.asarray(stored, np.float64) / 65535
    if (picture != picture[..., :1]).any():
        raise UserError(f"grey picture expected, but this one has colours: {path}")
    return picture[..., 0] / 255


def _check_pair(prediction: Path, truth: Path) -> None:
    shape, expected = read_map(prediction).shape, read_boundaries(truth)[0].shape
    if shape != expected:
        raise UserError(
            f"{prediction} has {shape[0]}x{shape[1]} pixels (height x width), its ground truth {truth} "
            f"{expected[0]}x{expected[1]}"
        )


def _describe(scores: BoundaryScores) -> str:
    ods = f"recall {scores.ods_recall:.4f}, precision {scores.ods_precision:.4f}"
    ois = f"recall {scores.ois_recall:.4f}, precision {scores.ois_precision:.4f}"
    return (
        f"images     {len(scores.per_image)}\n"
        f"ODS F      {scores.ods:.4f}  ({ods}, threshold {scores.ods_threshold:.3f})\n"
        f"OIS F      {scores.ois:.4f}  ({ois})\n"
        f"AP         {scores.ap:.4f}"
    )
