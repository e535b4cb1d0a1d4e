from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from dynpix_jax.cli import eval_boundaries
from dynpix_jax.cli.main import main

Folders = tuple[Path, Path]


def write_truth(path: Path, masks: list[np.ndarray]) -> None:
    """A .mat file in the official layout: a cell array of structs with `Segmentation` and `Boundaries`."""
    cells = np.empty((1, len(masks)), object)
    for index, mask in enumerate(masks):
        cells[0, index] = {
            "Segmentation": np.ones(mask.shape, np.uint16),
            "Boundaries": mask.astype(np.uint8),
        }
    savemat(path, {"groundTruth": cells})


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """Two perfect maps."""
    pred, truth = tmp_path / "pred", tmp_path / "truth"
    pred.mkdir()
    truth.mkdir()
    for name, row in (("one", 12), ("two", 20)):
        mask = np.zeros((40, 50), bool)
        mask[row, 8:40] = True
        write_truth(truth / f"{name}.mat", [mask, mask])
        Image.fromarray(mask.astype(np.uint8) * 255).save(pred / f"{name}.png")
    return pred, truth


def call(folders: Folders, *options: str) -> int:
    places = ["--pred", str(folders[0]), "--gt", str(folders[1])]
    return main(["eval-boundaries", *places, "--workers", "1", "--thresholds", "3", *options])


def test_perfect_maps_score_one(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(folders, "--no-nms", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["ods"] == result["ois"] == 1
    assert [row["name"] for row in result["per_image"]] == ["one", "two"]
    assert call(folders, "--no-nms", "--curve", str(folders[0].parent / "pr.png")) == 0
    assert "ODS F      1.0000" in capsys.readouterr().out
    assert (folders[0].parent / "pr.png").is_file()


def test_curves_beside_each_other(
    folders: Folders, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The benchmark's published files, a run's eval.json, what --json printed, and the annotators' point."""
    drawn = {}

    def draw(curves, path, *, human):
        drawn.update(curves, human=human)

    monkeypatch.setattr(eval_boundaries, "plot_pr_curve", draw)
    folder = folders[0].parent / "hed"
    folder.mkdir()
    # Columns of the benchmark: threshold, recall, precision, F; then the best, OIS (R, P, F) and the area.
    (folder / "eval_bdry_thr.txt").write_text("0.25 0.8 0.5 0.615385\n0.5 0.5 0.8 0.615385\n")
    (folder / "eval_bdry.txt").write_text("0.37 0.65 0.65 0.65 0.7 0.75 0.724138 0.6\n")
    alone = folders[0].parent / "other.txt"
    alone.write_text((folder / "eval_bdry_thr.txt").read_text())
    assert call(folders, "--no-nms", "--json") == 0
    saved = folders[0].parent / "saved.json"
    saved.write_text(capsys.readouterr().out)
    run = folders[0].parent / "run" / "eval.json"
    run.parent.mkdir()
    run.write_text(json.dumps({"rows": [{"modes": {"dense": json.loads(saved.read_text())}}]}))
    files = (str(folder / "eval_bdry_thr.txt"), f"plain={alone}", str(saved), str(run))
    assert main(["eval-boundaries", "--curve=x.png", "--human", "--beside", *files]) == 0
    assert drawn.pop("human") is True
    assert list(drawn) == ["hed", "plain", "saved", "run"]
    assert (drawn["hed"].ods, drawn["hed"].ois, drawn["hed"].ap) == (0.65, 0.724138, 0.6)
    # Half way between the two thresholds both are .65; the benchmark looks at 100 points.
    assert drawn["plain"].ods == pytest.approx(0.65, abs=1e-4)
    assert np.isnan(drawn["plain"].ois)
    assert [point.recall for point in drawn["plain"].per_threshold] == [0.8, 0.5]
    assert drawn["saved"].ods == drawn["run"].ods == 1
    assert call(folders, "--no-nms", "--curve=x.png", "--beside", str(saved)) == 0
    assert set(drawn) == {"hed", "plain", "saved", "run", "pred", "human"}
    # One of two curves with the same label would not be drawn.
    capsys.readouterr()
    for own, texts in (([], [f"hed={alone}", files[0]]), (["--no-nms"], [f"pred={alone}"])):
        places = ["--pred", str(folders[0]), "--gt", str(folders[1])] if own else []
        assert main(["eval-boundaries", *places, *own, "--curve=x.png", "--beside", *texts]) == 2
        label = "pred" if own else "hed"
        assert f"--beside {texts[-1]}: another curve is called '{label}'" in capsys.readouterr().err
    alone.write_text("1 2 3\n")
    for options, message in (
        (["--beside", str(saved)], "draws into the picture of --curve"),
        (["--curve=x.png"], "--pred DIR is missing"),
        (["--curve=x.png", "--gt=x", "--beside", str(saved)], "one without the other"),
        (["--curve=x.png", "--beside", str(alone)], "other.txt: no precision-recall curve; expected"),
        (["--curve=x.png", "--beside", "none.txt"], "cannot read none.txt: No such file"),
        (["--curve=x.png", "--beside", str(alone), "--max-dist=.1"], "--max-dist: is for the maps of --pred"),
        (["--curve=x.png", "--beside", str(alone), "--workers=2"], "--workers: is for the maps of --pred"),
        (["--pred=x", "--gt=y", "--no-nms", "--no-smooth"], "--no-smooth: beside --no-nms nothing is"),
    ):
        assert main(["eval-boundaries", *options]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "ods"),
    [
        (("--no-nms", "--max-dist=.02"), 0),
        ((), 0),
        (("--max-dist=.02",), 1),
        (("--no-smooth",), 1),
    ],
)
def test_suppression_thins_a_thick_ridge_to_its_crest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], ods: float
) -> None:
    """Five columns, of which the first is the crest: thinned without suppression, the third is left.

    Smoothing moves the crest to the second, of (1 + 2 * .96 + .92) / 4. .02 of the diagonal is one pixel.
    """
    pred, truth = tmp_path / "pred", tmp_path / "truth"
    pred.mkdir()
    truth.mkdir()
    ridge, crest = np.zeros((40, 50), np.uint8), np.zeros((40, 50), bool)
    ridge[:, 20:25] = (255, 245, 235, 224, 214)
    crest[2:38, 20] = True  # suppression fades rows at the border: of the outer two no threshold is reached
    Image.fromarray(ridge).save(pred / "ridge.png")
    write_truth(truth / "ridge.mat", [crest])
    assert call((pred, truth), "--json", *options) == 0
    assert json.loads(capsys.readouterr().out)["ods"] == ods


def test_sixteen_bits(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    picture = np.asarray(Image.open(folders[0] / "one.png")).astype(np.uint16) * 257
    Image.fromarray(picture).save(folders[0] / "one.png")
    assert call(folders, "--no-nms", "--json") == 0
    assert json.loads(capsys.readouterr().out)["ods"] == 1


def test_mistakes_end_with_one_line_that_names_the_file(
    folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    pred, truth = folders

    def fails(*expected: str, options: tuple[str, ...] = ()) -> None:
        assert call(folders, *options) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        for text in expected:
            assert text in error

    fails("--thresholds 0", options=("--thresholds", "0"))
    fails("--max-dist 0", options=("--max-dist", "0"))
    fails("--max-dist nan", options=("--max-dist", "nan"))
    fails("--workers 0", options=("--workers", "0"))
    good = (pred / "two.png").read_bytes()
    (pred / "two.png").write_bytes(good[: len(good) // 2])
    fails("two.png")
    Image.fromarray(np.zeros((39, 50), np.uint8)).save(pred / "two.png")
    fails("two.png", "39x50", "two.mat", "40x50")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(
        pred / "two.png"
    )
    fails("two.png", "colours")
    (pred / "two.png").write_bytes(good)
    (truth / "two.mat").write_bytes(b"not a mat file")
    fails("two.mat")
    (truth / "two.mat").unlink()
    fails("two.png", "two.mat", "no ground truth")
    for path in pred.glob("*.png"):
        path.unlink()
    fails("no .png files", str(pred))
    pred.rmdir()
    fails("folder not found", str(pred))


def test_official_outputs_are_reproduced(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Five maps for which the official benchmark's outputs are published."""
    bench = shared / "data" / "bsds_bench"
    if not bench.is_dir():
        pytest.skip(f"no such folder: {bench}")
    folders = ["--pred", str(bench / "png"), "--gt", str(bench / "groundTruth")]
    assert (
        main(["eval-boundaries", *folders, "--thresholds", "5", "--no-nms", "--workers", "2", "--json"]) == 0
    )
    result = json.loads(capsys.readouterr().out)
    # threshold, recall, precision, F of ODS; recall, precision, F of OIS; AP
    ours = [result[f"ods{key}"] for key in ("_threshold", "_recall", "_precision", "")]
    ours += [result[f"ois{key}"] for key in ("_recall", "_precision", "")] + [result["ap"]]
    np.testing.assert_allclose(ours, np.loadtxt(bench / "test_2" / "eval_bdry.txt"), atol=1e-3)
    keys = ("threshold", "recall", "precision", "f")
    images = [[row[key] for key in keys] for row in result["per_image"]]
    np.testing.assert_allclose(images, np.loadtxt(bench / "test_2" / "eval_bdry_img.txt")[:, 1:], atol=2e-3)
    points = [[row[key] for key in keys] for row in result["per_threshold"]]
    np.testing.assert_allclose(points, np.loadtxt(bench / "test_2" / "eval_bdry_thr.txt"), atol=2e-3)
    assert result["ods"] == pytest.approx(0.7046, abs=1e-3)
    assert result["ois"] == pytest.approx(0.7087, abs=1e-3)
    assert result["ap"] == pytest.approx(0.3076, abs=1e-3)
