from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dynpix_jax.core.errors import UserError
from dynpix_jax.evaluation.boundary import (
    BoundaryScores,
    ImageCounts,
    average_precision,
    best_score,
    evaluate_boundaries,
    evaluate_image,
    f_measure,
    summarize,
    threshold_values,
)
from dynpix_jax.visualization.curves import plot_pr_curve, pr_figure


def counts(name: str, *rows: tuple[int, int, int, int]) -> ImageCounts:
    return ImageCounts(name, *np.array(rows).T)


def scores_by_hand() -> BoundaryScores:
    # (matched truth, truth, matched predicted, predicted) at thresholds 1/3 and 2/3
    return summarize(
        np.array([1 / 3, 2 / 3]),
        [counts("a", (8, 10, 6, 12), (6, 10, 6, 6)), counts("b", (20, 40, 10, 20), (4, 40, 4, 4))],
    )


def test_scores_of_hand_made_counts() -> None:
    scores = scores_by_hand()
    low, high = scores.per_threshold
    # Sums: 28/50 and 16/32 at the first threshold, 10/50 and 10/10 at the second.
    assert (low.recall, low.precision) == (0.56, 0.5)
    assert (high.recall, high.precision) == (0.2, 1.0)
    assert low.f == pytest.approx(2 * 0.56 * 0.5 / 1.06)
    assert high.f == pytest.approx(1 / 3)
    # Between the two, recall falls 0.36 while precision rises 0.5: the best of the 100 points is inside.
    points = [(0.56 - 0.36 * d, 0.5 + 0.5 * d) for d in (k / 99 for k in range(100))]
    best = max(range(100), key=lambda k: 2 * points[k][0] * points[k][1] / sum(points[k]))
    assert 0 < best < 99
    assert scores.ods_threshold == pytest.approx(1 / 3 + best / 99 / 3)
    assert (scores.ods_recall, scores.ods_precision) == pytest.approx(points[best])
    # Image a is best at 2/3 (F .75 against .615), b at 1/3: 26/50 recall, 16/26 precision.
    assert (scores.ois_recall, scores.ois_precision) == pytest.approx((26 / 50, 16 / 26))
    assert scores.ois == pytest.approx(2 * 0.52 * (16 / 26) / (0.52 + 16 / 26))
    # Precision 1 - (r - .2) / .36 * .5 at the 37 recalls .20 ... .56, which is an arithmetic series.
    assert scores.ap == pytest.approx(37 * 0.75 / 100)
    assert [row.name for row in scores.per_image] == ["a", "b"]
    # Here, too, the best of the points between wins: a little more than the F at the threshold itself.
    assert 0.75 < scores.per_image[0].f < 0.76
    assert 0.5 < scores.per_image[1].f < 0.51


def test_average_precision_by_hand() -> None:
    # Equal recalls: the first one counts. Recalls .5 ... 1 have precisions 1 ... .5.
    assert average_precision(np.array([1.0, 1.0, 0.5]), np.array([0.5, 0.9, 1.0])) == pytest.approx(
        51 * 0.75 / 100
    )
    assert average_precision(np.array([0.3, 0.3]), np.array([0.5, 0.9])) == 0.0
    assert average_precision(np.array([0.0, 1.0]), np.array([1.0, 1.0])) == pytest.approx(1.01)


def test_nothing_anywhere_scores_zero_without_warnings() -> None:
    scores = summarize(np.array([0.5]), [counts("empty", (0, 0, 0, 0))])
    assert (scores.ods, scores.ois, scores.ap) == (0, 0, 0)
    assert f_measure(np.array([0.0, 1.0]), np.array([0.0, 1.0])).tolist() == [0, 1]
    assert best_score(np.array([0.2, 0.4]), np.zeros(2), np.zeros(2)).threshold == 0.2
    with pytest.raises(ValueError, match="no images"):
        summarize(np.array([0.5]), [])
    with pytest.raises(ValueError, match="thresholds"):
        summarize(np.array([0.5, 0.6]), [counts("a", (0, 0, 0, 0))])


def test_to_dict_is_json_and_the_picture_is_written(tmp_path: Path) -> None:
    scores = scores_by_hand()
    assert json.loads(json.dumps(scores.to_dict()))["per_image"][0]["name"] == "a"
    plot_pr_curve(scores, tmp_path / "new" / "curve.png")
    assert (tmp_path / "new" / "curve.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = pr_figure(scores).axes
    # Nine lines of equal F, each with F as it says; the curve itself; the dot of ODS.
    assert len(axes.lines) == 11
    for index, line in enumerate(axes.lines[:9]):
        recall, precision = line.get_data()
        np.testing.assert_allclose(f_measure(np.asarray(recall), np.asarray(precision)), (index + 1) / 10)
    with pytest.raises(UserError, match=r"curve\.nonsense"):
        plot_pr_curve(scores, tmp_path / "curve.nonsense")


def test_thresholds() -> None:
    np.testing.assert_allclose(threshold_values(99), np.arange(1, 100) / 100)
    np.testing.assert_allclose(threshold_values(1), [0.5])
    with pytest.raises(ValueError, match="at least 1"):
        threshold_values(0)


def drawing() -> tuple[np.ndarray, list[np.ndarray]]:
    """A map with a strong and a weak line, and two annotators: both drew the first, one the second."""
    soft, one, two = np.zeros((60, 80)), np.zeros((60, 80), bool), np.zeros((60, 80), bool)
    soft[20, 10:70], soft[40, 10:70] = 0.9, 0.4
    one[20, 10:70] = two[20, 10:70] = True
    two[40, 10:40] = True
    return soft, [one, two]


def test_counts_of_a_drawing() -> None:
    """One pixel is the largest distance here, so that every match is obvious."""
    soft, masks = drawing()
    result = evaluate_image("x", soft, masks, thresholds=3, max_dist=0.01, nms=False)
    np.testing.assert_array_equal(result.truth, [150, 150, 150])
    np.testing.assert_array_equal(result.matched_truth, [150, 120, 120])
    np.testing.assert_array_equal(result.predicted, [120, 60, 60])
    # Each predicted pixel once, though two annotators match it.
    np.testing.assert_array_equal(result.matched_predicted, [90, 60, 60])


def test_nms_comes_first_and_can_be_left_out() -> None:
    y = np.mgrid[:60, :80][0] + np.mgrid[:60, :80][1] * 0.31
    soft = np.exp(-((y - 42) ** 2) / 8)
    mask = np.abs(y - 42) <= 0.5
    thick = evaluate_image("x", soft, [mask], thresholds=4, nms=False)
    thin_map = evaluate_image("x", soft, [mask], thresholds=4)
    assert (thin_map.predicted > 0).all()
    assert thin_map.predicted.max() < 1.2 * mask.sum()
    assert thin_map.predicted[0] <= thick.predicted[0] + 15
    assert evaluate_boundaries([("x", soft)], {"x": [mask]}, thresholds=4, workers=1).ods > 0.85


def test_processes_give_what_one_process_gives() -> None:
    soft, masks = drawing()
    maps = [(f"image {k}", np.clip(soft * (0.5 + k / 8), 0, 1)) for k in range(6)]
    truth = dict.fromkeys([name for name, _ in maps], masks)
    seen: list[tuple[int, str]] = []
    alone = evaluate_boundaries(iter(maps), truth, thresholds=5, nms=False, workers=1)
    several = evaluate_boundaries(
        iter(maps),
        truth,
        thresholds=5,
        nms=False,
        workers=2,
        progress=lambda done, name: seen.append((done, name)),
    )
    assert alone == several
    assert seen == [(k + 1, f"image {k}") for k in range(6)]


def test_users_mistakes() -> None:
    soft, masks = drawing()
    with pytest.raises(UserError, match="no ground truth for the prediction 'y'"):
        evaluate_boundaries([("y", soft)], {"x": masks}, workers=1)
    with pytest.raises(UserError, match="no predictions"):
        evaluate_boundaries([], {"x": masks}, workers=1)
    with pytest.raises(UserError, match=r"x: the prediction has 60x79 pixels .* 60x80"):
        evaluate_boundaries([("x", soft[:, 1:])], {"x": masks}, workers=2)  # also out of another process
    with pytest.raises(UserError, match="x: no annotators"):
        evaluate_image("x", soft, [])
    for wrong in (1.5, -0.1, np.nan):
        with pytest.raises(UserError, match=r"outside \[0, 1\]"):
            evaluate_image("x", np.where(soft > 0.8, wrong, soft), masks)
    with pytest.raises(ValueError, match="max_dist"):
        evaluate_boundaries([("x", soft)], {"x": masks}, max_dist=0)
