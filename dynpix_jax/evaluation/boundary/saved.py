"""Precision-recall curves from files: those that the benchmark publishes of other systems, and our own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.text import parse_json
from dynpix_jax.evaluation.boundary.curve import BoundaryScores, CurveScore, average_precision, best_score


def read_curve(path: Path) -> BoundaryScores:
    """The curve of a file, and its scores; nan for those that the file does not have.

    Args:
        path: The benchmark's ``eval_bdry_thr.txt`` (threshold, recall, precision and F a line; its
            ``eval_bdry.txt`` is read if it lies beside), what ``dynpix eval-boundaries --json`` prints, or an
            eval.json of boundaries (its last row).

    Raises:
        UserError: No such file, or none of these.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    try:
        return _from_json(parse_json(text)) if path.suffix == ".json" else _published(path, text)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, StopIteration):
        raise UserError(
            f"{path}: no precision-recall curve; expected the benchmark's eval_bdry_thr.txt, an eval.json of "
            "boundaries or what dynpix eval-boundaries --json prints"
        ) from None


def _from_json(content: Mapping[str, Any]) -> BoundaryScores:
    if "rows" in content:
        content = next(iter(content["rows"][-1]["modes"].values()))
    points = tuple(CurveScore(**point) for point in content["per_threshold"])
    names = (
        "ods",
        "ods_threshold",
        "ods_recall",
        "ods_precision",
        "ois",
        "ois_recall",
        "ois_precision",
        "ap",
    )
    return BoundaryScores(
        **{name: float(content[name]) for name in names}, per_image=(), per_threshold=points
    )


def _published(path: Path, text: str) -> BoundaryScores:
    thresholds, recall, precision, f = _numbers(text, 4).T
    beside = path.with_name("eval_bdry.txt")
    if beside.is_file():
        ods_threshold, ods_recall, ods_precision, ods, *ois, ap = _numbers(beside.read_text(), 8)[0]
    else:
        best = best_score(thresholds, recall, precision)
        ods_threshold, ods_recall, ods_precision, ods = best.threshold, best.recall, best.precision, best.f
        ois, ap = [math.nan] * 3, average_precision(recall, precision)
    ois_recall, ois_precision, ois_f = map(float, ois)
    return BoundaryScores(
        ods=float(ods),
        ods_threshold=float(ods_threshold),
        ods_recall=float(ods_recall),
        ods_precision=float(ods_precision),
        ois=ois_f,
        ois_recall=ois_recall,
        ois_precision=ois_precision,
        ap=float(ap),
        per_image=(),
        per_threshold=tuple(
            CurveScore(*map(float, row)) for row in zip(thresholds, recall, precision, f, strict=True)
        ),
    )


def _numbers(text: str, columns: int) -> np.ndarray:
    """The lines of a table of shares, float64 (lines, columns); a ValueError if it is none."""
    table = np.array([[float(cell) for cell in line.split()] for line in text.splitlines() if line.strip()])
    if table.ndim != 2 or table.shape[1] != columns or not ((table >= 0) & (table <= 1)).all():
        raise ValueError("not a table of shares")
    return table
