"""Scores predicted joints (N, 16, 2) of people against annotations in MPII's joint order.

example:
  dynpix eval-pose --pred preds.h5 --gt valid.h5
  dynpix eval-pose --pred pred.mat --gt annot/gt_valid.mat --threshold 0.5 0.2

PCKh, in %: the share of labelled joints that are predicted within a share of the person's head size (0.6 of
the diagonal of the head's box). "all" leaves out pelvis and thorax and weighs every joint by how often it is
labelled; the other columns are means of left and right. @0.11 is what HRNet's code prints as "Mean@0.1", and
papers report so. Files: .h5 with part and normalize (predictions: preds), or .mat as gt_valid.mat of HRNet's
annotations.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from dynpix_jax.cli.tables import print_table
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.text import a_path
from dynpix_jax.data.pckh_files import read_predictions, read_truth
from dynpix_jax.tasks.pose import THRESHOLDS, pck_counts, pck_scores
from dynpix_jax.tasks.skeletons import MPII


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("--pred", required=True, type=a_path, metavar="FILE", help="predicted joints")
    parser.add_argument("--gt", required=True, type=a_path, metavar="FILE", help="annotated joints")
    parser.add_argument(
        "--threshold",
        nargs="+",
        type=float,
        default=list(THRESHOLDS),
        metavar="A",
        help="head sizes that a joint may be off (default: 0.5 0.1 0.11)",
    )
    parser.add_argument("--json", action="store_true", help="print all scores, also of every joint, as JSON")


def run(args: argparse.Namespace) -> int:
    """Evaluates and prints; returns 0."""
    for threshold in args.threshold:
        if not 0 < threshold < float("inf"):
            raise UserError(f"--threshold {threshold:g}: expected a number of head sizes above 0")
    found = scores(args.pred, args.gt, args.threshold)
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    heads = ["PCKh, %", "all", *(name for name, _ in MPII.groups)]
    rows = [
        [f"@{row['threshold']:g}", *(f"{row[name]:.2f}" for name in ("mean", *(n for n, _ in MPII.groups)))]
        for row in found["scores"]
    ]
    print(f"{found['people']} people, {found['joints']} labelled joints")
    print_table(heads, rows)
    return 0


def scores(predictions: Path, truth: Path, thresholds: list[float]) -> dict[str, Any]:
    """Numbers of people and joints, and for each threshold the scores of all, of groups and of joints, in %.

    Raises:
        UserError: Files that cannot be read, of different people, or without a labelled joint.
    """
    joints, sizes = read_truth(truth)
    predicted = read_predictions(predictions)
    if len(predicted) != len(joints):
        raise UserError(f"--pred {predictions} has {len(predicted)} people, --gt {truth} {len(joints)}")
    hits, count = pck_counts(predicted, joints, sizes, thresholds)
    if not count.sum():
        raise UserError(f"--gt {truth}: no labelled joint of a person with a head size")
    rows = []
    for threshold, found in zip(thresholds, hits, strict=True):
        values = {name: 100 * value for name, value in pck_scores(found, count, MPII).items()}
        by_joint = {
            name: 100 * float(one / total) if total else None
            for name, one, total in zip(MPII.joints, found, count, strict=True)
        }
        rows.append({"threshold": threshold, **values, "by_joint": by_joint})
    return {"people": len(joints), "joints": int(count.sum()), "scores": rows}
