from __future__ import annotations

import base64
import dataclasses
import io
import re

import numpy as np
import pytest
from PIL import Image

from dynpix_jax import tasks
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.text import write_text
from dynpix_jax.evaluation.boundary import BoundaryScores, CurveScore
from dynpix_jax.visualization.curves import CostPoint, accuracy_macs_figure, plot_pr_curve, pr_figure
from dynpix_jax.visualization.example import Example, RowPrediction
from dynpix_jax.visualization.pictures import png_bytes
from dynpix_jax.visualization.report import Budget, outcome, report_html
from dynpix_jax.visualization.task_pictures import BoundaryPictures, ClassPictures, NormalPictures

TASKS = {"boundaries": tasks.build("boundaries", {}, "")}
PICTURES = {"boundaries": BoundaryPictures()}


def scores(ods: float) -> BoundaryScores:
    rows = tuple(CurveScore(t, 1 - t, t, 2 * t * (1 - t)) for t in (0.25, 0.5, 0.75))
    return BoundaryScores(ods, 0.5, 0.5, 0.5, 0.6, 0.6, 0.6, 0.4, (), rows)


def png_size(file) -> tuple[int, int]:
    """(width, height) of a whole picture."""
    with Image.open(file) as picture:
        picture.load()
        return picture.size


def budgets() -> list[Budget]:
    base, gates = {"ods": 0.75, "ois": 0.6, "ap": 0.4}, {"ods": 0.74, "ois": 0.6, "ap": 0.4}
    return [
        Budget("base", 1.0, None, 2e9, 2e9, base, {"dense": (30.0, 29.0, 33.0)}, scores(0.75)),
        Budget(
            "<gates>", 0.5, 0.523, 1.5e9, 2e9, gates,
            {"dense": (31.0, 30.0, 34.0), "sparse": (21.0, 20.0, 25.0)}, scores(0.74),
        ),
    ]  # fmt: skip


def example() -> Example:
    photo, half = np.zeros((12, 16, 3), np.uint8), np.full((12, 16), 0.5)
    masks = {"res2_1": np.ones((3, 4)), "res3_1": np.zeros((3, 4))}
    maps = {"boundaries": half}
    predictions = [
        RowPrediction("base", maps, {}, {}),
        RowPrediction("gates", maps, {"res2": half, "total": half}, masks),
    ]
    return Example("100 & 75", photo, maps, predictions)


def test_accuracy_macs_figure_has_every_point_labelled():
    points = [CostPoint("base", 2e9, 0.75, False), CostPoint("a", 1e9, 0.7), CostPoint("b", 1.5e9, 0.74)]
    figure = accuracy_macs_figure(points)
    (axes,) = figure.axes
    assert {text.get_text() for text in axes.texts} == {"base", "a", "b"}
    gated, plain = axes.lines
    np.testing.assert_allclose(gated.get_xydata(), [[1.0, 0.7], [1.5, 0.74]])
    np.testing.assert_allclose(plain.get_xydata(), [[2.0, 0.75]])
    assert axes.get_xlim()[0] == 0
    png_bytes(figure)


def test_accuracy_macs_figure_of_one_point():
    png_bytes(accuracy_macs_figure([CostPoint("base", 2e9, 0.75, False)]))
    with pytest.raises(ValueError, match="no points"):
        accuracy_macs_figure([])


def test_the_outcome_is_one_sentence():
    rows = budgets()
    f = tasks.all_scores(TASKS)[0]
    line = f"<gates>, rho 0.5: 25% fewer MACs than base, {f.label} -0.010, 1.43 times as fast."
    assert outcome(f, rows) == line
    assert outcome(f, rows[:1]) == outcome(f, rows[1:]) == ""
    other = dataclasses.replace(rows[1], stage="rho0.55")
    assert other.label == "rho0.55, rho 0.5"
    dearer = dataclasses.replace(rows[1], macs=3e9, stage="rho0.5", milliseconds={})
    assert outcome(f, [rows[0], dearer]) == f"rho0.5: 50% more MACs than base, {f.label} -0.010."


def test_pr_figure_of_several():
    figure = pr_figure({"base": scores(0.75), "gates": scores(0.74)})
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == [
        "base\nODS 0.750  OIS 0.600  AP 0.400",
        "gates\nODS 0.740  OIS 0.600  AP 0.400",
    ]
    unknown = dataclasses.replace(scores(0.75), ois=float("nan"))
    axes = pr_figure({"theirs": unknown}, human=True).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "theirs\nODS 0.750  AP 0.400",
        "human, F 0.80",
    ]


def test_pr_figure_of_one(tmp_path):
    (text,) = pr_figure(scores(0.75)).axes[0].get_legend().get_texts()
    assert text.get_text() == "ODS 0.750  OIS 0.600  AP 0.400"
    plot_pr_curve(scores(0.75), tmp_path / "new" / "pr.png")
    assert png_size(tmp_path / "new" / "pr.png") == (750, 750)
    with pytest.raises(UserError, match="cannot write the curve"):
        plot_pr_curve(scores(0.75), tmp_path / "pr.nonsense")


def test_report_tells_the_numbers_and_escapes_names():
    text = report_html("a <b>", {"device": "x & y"}, TASKS, budgets(), [example()], PICTURES)
    assert "<title>a &lt;b&gt;</title>" in text
    assert "x &amp; y" in text
    assert "100 &amp; 75" in text
    rows = re.findall(r"<tr>(.*?)</tr>", text, flags=re.DOTALL)
    cells = [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in rows]
    assert cells[1][:3] == ["base", "1", "no gates"]
    assert cells[0][4:7] == ["F (ODS)", "OIS", "AP"]
    assert cells[1][4:7] == ["0.750", "0.600", "0.400"]
    assert cells[1][-1] == "&ndash;"  # was not run in sparse mode
    assert cells[2][:3] == ["&lt;gates&gt;", "0.5", "0.523"]
    assert "75% of gates open" in cells[2][3]
    assert cells[2][-1] == "21<small>20 &ndash; 25</small>"


def test_pictures_of_the_report_decode():
    text = report_html("t", {}, TASKS, budgets(), [example()], PICTURES)
    encoded = re.findall(r'<figure><img([^>]*) src="data:image/png;base64,([^"]+)">', text)
    sizes = [png_size(io.BytesIO(base64.b64decode(data))) for _, data in encoded]
    # Two curves; photo and truth; two predictions; ponder maps in total and of res2; two masks.
    assert sizes[2:] == [(16, 12)] * 2 + [(16, 12)] * 4 + [(4, 3)] * 2
    assert ["crisp" in attributes for attributes, _ in encoded[-2:]] == [True, True]


def test_report_without_pictures_or_gates(tmp_path):
    text = report_html("t", {}, TASKS, budgets()[:1], [], PICTURES)
    assert "<h2>Images</h2>" not in text
    assert "ponder map" not in text.lower()
    with pytest.raises(UserError, match="cannot write"):
        write_text(tmp_path, text)


def test_report_of_classes():
    """A table a score with a row a class, a legend, no precision-recall curve."""
    task = tasks.build("segmentation", {"classes": 2}, "")
    numbers = {"miou": 0.25, "pixel_accuracy": 0.5, "mean_accuracy": 0.5}
    row = Budget("base", 1.0, None, 2e9, 2e9, numbers, {}, per_class={"iou": [0.5, None]})
    truth = np.array([[0, 1], [255, 1]], np.int32)
    labels = {"segmentation": truth}
    picture = Example("x", np.zeros((2, 2, 3), np.uint8), labels, [RowPrediction("base", labels, {}, {})])
    pictures = {"segmentation": ClassPictures(("a & b", "c"))}
    text = report_html("t", {}, {"segmentation": task}, [row], [picture], pictures)
    assert "Precision against recall" not in text
    assert "<th>mIoU</th><th>pixel acc</th><th>class acc</th>" in text
    assert "<tr><th>a &amp; b</th><td>0.500</td></tr><tr><th>c</th><td>&ndash;</td></tr>" in text
    assert re.search(r'<i style="background: rgb\(\d+, \d+, \d+\)"></i>a &amp; b</span>', text)
    assert "Up is better" in text


def test_report_of_two_tasks_with_classes():
    """Each task's classes have the names of their own task (ASTMT on PASCAL: segmentation and parts)."""
    both = {
        "segmentation": tasks.build("segmentation", {"classes": 3}, ""),
        "parts": tasks.build("parts", {"classes": 2}, ""),
    }
    numbers = {score.name: 0.5 for score in tasks.all_scores(both)}
    per_class = {"iou": [0.11, 0.12, 0.13], "parts/iou": [0.21, 0.22]}
    row = Budget("base", 1.0, None, 2e9, 2e9, numbers, {}, per_class=per_class)
    pictures = {"segmentation": ClassPictures(("sky", "tree", "road")), "parts": ClassPictures(("no", "leg"))}
    page = report_html("x", {}, both, [row], [], pictures)
    rows = re.findall(r"<tr><th>(\w+)</th><td>(0\.\d+)</td></tr>", page)
    assert rows == [
        *(("sky", "0.110"), ("tree", "0.120"), ("road", "0.130")),
        *(("no", "0.210"), ("leg", "0.220")),
    ]


def test_report_of_angles_says_that_less_is_better():
    task = tasks.build("normals", {}, "")
    row = Budget("base", 1.0, None, 2e9, 2e9, {score.name: 12.3456 for score in task.scores}, {})
    text = report_html("t", {}, {"normals": task}, [row], [], {"normals": NormalPictures()})
    assert "Down is better" in text
    assert "<td>12.3</td>" in text
