"""Every task from its config to pictures: training, the evaluation's numbers and report, predictions."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from dynpix_jax.cli import eval as eval_program
from dynpix_jax.cli import main, train
from dynpix_jax.cli.common import call
from tests.tiny import TINY_CONFIG, TinyRun

SCORES = {
    "segmentation": {"miou", "pixel_accuracy", "mean_accuracy"},
    "depth": {"delta1", "delta2", "delta3", "rmse", "rmse_log", "abs_rel"},
    "normals": {"mean", "median", "rmse", "within_11", "within_22", "within_30"},
}


@pytest.fixture(scope="module", params=SCORES)
def trained(request, tmp_path_factory):
    """(task, run): one step, with gates in the two blocks that are left."""
    folder = tmp_path_factory.mktemp(request.param)
    file = folder / "tiny.py"
    config = TINY_CONFIG.replace('"head_features": 4', '"head_features": 4, "drop_blocks": 6')
    config = config.replace('{"name": "base", "steps": 2, "learning_rate": 1e-5},', "")
    file.write_text(config.replace('"steps": 2', '"steps": 1'))
    run = TinyRun(file, folder / "run")
    assert train.main([f"--config={file}:task={request.param}", f"--workdir={run.workdir}"]) == 0
    return request.param, run


def evaluated(task: str, run: TinyRun, *changes: str) -> dict:
    changes = ("evaluation.limit=3", "evaluation.batch_size=2", *changes)
    argv = [f"--config={run.config}:task={task}", f"--workdir={run.workdir}", "--set", *changes]
    assert eval_program.main(argv) == 0
    return json.loads((run.workdir / "eval.json").read_text())["rows"][0]


def test_trained_step_is_finite(trained):
    task, run = trained
    lines = [json.loads(line) for line in (run.workdir / "metrics.jsonl").read_text().splitlines()]
    (line,) = lines
    assert line["stage"] == "gates"
    assert np.isfinite(line["loss"])
    assert line["grad_norm"] > 0
    assert line[task] > 0
    assert line["density"] > 0
    assert "fusion" not in line


def test_evaluation_and_report(trained, capsys):
    """Three images in batches of two: the last is padded, and counts as little as with batches of one."""
    task, run = trained
    row = evaluated(task, run)
    assert row["tasks"] == [task]
    assert row["images"] == 3
    assert 0 < row["macs_per_image"] <= row["macs_per_image_gates_open"]
    assert row["mode_difference"] < 1e-3
    dense, sparse = row["modes"]["dense"], row["modes"]["sparse"]
    for name in SCORES[task]:
        assert np.isfinite(dense[name])
        assert dense[name] == pytest.approx(sparse[name], rel=1e-3)
    head = capsys.readouterr().out.splitlines()[0]
    assert len(re.split(r"\s{2,}", head)) == 5 + len(SCORES[task]) + 2
    report = (run.workdir / "report.html").read_text()
    # One curve; photo and truth; a prediction, ponder maps of the total and of Res2, two masks.
    assert report.count('src="data:image/png;base64,') == 1 + 2 + 1 + 2 + 2
    assert ("rug</span>" in report) == (task == "segmentation")
    if task == "segmentation":
        assert dense["classes"][:2] == ["floor", "wall"]
        assert len(dense["per_class"]["iou"]) == 8
        one_by_one = evaluated(task, run, "evaluation.batch_size=1", "evaluation.mode=dense")
        assert one_by_one["modes"]["dense"]["per_class"] == dense["per_class"]
        assert one_by_one["macs_per_image"] == pytest.approx(row["macs_per_image"])


def test_views(trained):
    """Mirrored as well: twice the MACs."""
    task, run = trained
    if task != "normals":
        pytest.skip("one task stands for all: tests/evaluation/test_inference.py has the others")
    changes = ("evaluation.mode=dense", "evaluation.limit=1", "evaluation.batch_size=1")
    plain, both = (
        evaluated(task, run, *changes, *more) for more in ((), ("evaluation.inference.flip=True",))
    )
    assert both["macs_per_image_gates_open"] == pytest.approx(2 * plain["macs_per_image_gates_open"])
    assert plain["modes"]["dense"]["mean"] != both["modes"]["dense"]["mean"]


def test_predict(trained, tmp_path, capsys):
    task, run = trained
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(photo)
    argv = ["predict", f"--config={run.config}:task={task}", f"--workdir={run.workdir}", f"--out={tmp_path}"]
    assert main.main([*argv, str(photo), "--mode=dense", "--max-side=32", "--json"]) == 0
    (numbers,) = json.loads(capsys.readouterr().out)
    assert numbers["tasks"] == [task]
    expected = {
        "segmentation": {"map": "L", "overlay": "RGB"},
        "depth": {"map": "I;16", "colours": "RGB"},
        "normals": {"map": "RGB"},
    }[task] | {"ponder": "RGBA"}
    assert set(numbers["files"]) == set(expected)
    for kind, mode in expected.items():
        with Image.open(numbers["files"][kind]) as picture:
            assert picture.mode == mode
            if kind != "ponder":
                assert picture.size == (64, 48)
    if task == "segmentation":
        with Image.open(numbers["files"]["map"]) as picture:
            assert np.asarray(picture).max() < 8


def test_labels_that_the_data_lack(trained, tmp_path, capsys):
    task, run = trained
    wrong = [f"--config={run.config}:task={task}", "--set", "data.train.source.fields=('boundaries',)"]
    status = call("train.py", lambda: train.main([*wrong, f"--workdir={tmp_path}"]))
    assert status == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"config.data.train, source scenes: no '{task}' labels, task {task} needs them" in line
