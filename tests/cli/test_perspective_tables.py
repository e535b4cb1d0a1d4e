"""dynpix tables perspective: every row of the paper, its config, and the runs that are its."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dynpix_jax.cli import main
from dynpix_jax.core.configs import load_config
from dynpix_jax.evaluation.table_files import read_tables

ROOT = Path(__file__).resolve().parents[2]
TABLES = read_tables("perspective").tables
SIGNALS = {"gt-depth": "gt_depth", "pred-depth": "pred_depth", "attention": "attention", "avg": "average"}


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def table(number: str, source: str):
    (found,) = (one for one in TABLES if (one.number, one.source) == (number, source))
    return found


def test_all_rows_of_the_paper_are_there():
    """Scores read off the paper by hand."""
    assert {(one.number, one.source): len(one.rows) for one in TABLES} == {
        ("Table 1", "nyuv2"): 2,
        ("Section 6.2, footnote", "sun_rgbd"): 1,
        **{("Table 2", source): 8 for source in ("nyuv2", "sun_rgbd", "stanford2d3d", "cityscapes")},
        ("Figure 4", "cityscapes"): 11,
        ("Supplement, table 1", "cityscapes"): 6,
    }
    assert table("Table 1", "nyuv2").rows[1].paper == (0.816, 0.950, 0.989)
    assert table("Table 2", "nyuv2").rows[-1].paper == (0.445, 0.721)
    assert table("Table 2", "sun_rgbd").rows[3].paper == (0.432, 0.793)
    assert table("Table 2", "stanford2d3d").rows[4].paper == (0.747, 0.902)
    assert [row.paper[0] for row in table("Table 2", "cityscapes").rows][5:] == [0.772, 0.776, 0.791]
    assert table("Supplement, table 1", "cityscapes").rows[3].paper == (0.753, 0.561)


def test_scores_of_each_class_stand_beside_a_runs(tmp_path, capsys):
    """The supplement's 19 rows and 12 columns; the averages that it prints are their means."""
    found = table("Supplement, table 1", "cityscapes")
    assert [(one.score, len(one.classes), len(one.networks)) for one in found.classes] == [
        ("iou", 19, 6),
        ("iiou", 8, 6),
    ]
    for index, one in enumerate(found.classes):
        for network in found.rows:
            values = one.networks[network.network]
            misprint = (one.score, network.network) == ("iiou", "tied, avg.")  # the note says which
            assert (sum(values) / len(values) == pytest.approx(network.paper[index], abs=0.0011)) != misprint
    classes = list(found.classes[0].classes)
    own = {"classes": classes, "per_class": {"iou": [0.25] * 18 + [None], "iiou": [None] * 18 + [0.125]}}
    spec = "configs/perspective/cityscapes.py:variant=gt_depth,tied=True"
    evaluated(
        tmp_path / "a", spec, row("gating", "segmentation", scores=own), data="cityscapes val, 500 images"
    )
    assert main.main(["tables", "perspective", f"--runs={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("iou of each class:")
    assert lines[start + 1].endswith("gt-depth, tied, gating here")
    assert lines[start + 2].split() == ["road", "0.980", "0.981", "0.981", "0.982", "0.982", "0.982", "0.250"]
    assert lines[lines.index("iiou of each class:") + 9].split()[-2:] == ["0.594", "0.125"]
    assert main.main(["tables", "perspective", "--json"]) == 0
    (supplement,) = [one for one in json.loads(capsys.readouterr().out) if one["table"].startswith("Supp")]
    assert supplement["rows"][0]["paper_per_class"]["iiou"]["bicycle"] == 0.582


def test_other_authors_are_marked(capsys):
    assert main.main(["tables", "perspective"]) == 0
    (line,) = [
        one
        for one in capsys.readouterr().out.splitlines()
        if one.startswith("RefineNet-Res101  ") and "0.736" in one
    ]
    assert line.split() == ["RefineNet-Res101", "-", "0.736", "-", "by", "Lin", "et", "al.", "[27]"]


@pytest.mark.parametrize("number", sorted({one.number for one in TABLES}))
def test_configs_make_the_networks_of_their_rows(number):
    for one in TABLES:
        for row in one.rows if one.number == number else ():
            config, name = load_config(one.spec(row)), row.network
            assert config.data.eval.source.name == one.source
            pooling, inference = config.model.pooling, config.evaluation.inference
            said = [signal for words, signal in SIGNALS.items() if words in name]
            if one.task == "depth":
                assert config.model.depth.to_dict() == {"gamma": 0.0}
                assert ("blur" in inference) == ("blur" in name)
                # Nothing is trained after it without its loss.
                assert all("loss" not in stage["model"] for stage in config.training.stages)
                continue
            assert pooling.signal == (said[0] if said else "pred_depth" if "loop2" in name else "none")
            assert config.model.loops == (int(name[4]) if name.startswith("loop") else 0)
            assert pooling.get("kind", "multipool") == ("multiscale" if "MultiScale" in name else "multipool")
            assert pooling.get("tied", False) == ("tied" in name and "untied" not in name)
            assert (len(inference.scales) > 1, inference.flip) == (("test-aug" in name,) * 2)


def evaluated(folder: Path, spec: str, *rows: dict, data: str = "nyuv2 test, 654 images") -> None:
    """An eval.json of a run of a config, as eval.py writes it."""
    folder.mkdir()
    config = json.loads(json.dumps(load_config(spec).to_dict()))
    content = {"config": config, "data": data, "rows": rows}
    (folder / "eval.json").write_text(json.dumps(content))


def row(stage: str, *tasks: str, **more) -> dict:
    scores = {"miou": 0.4, "pixel_accuracy": 0.7, "depth/delta1": 0.8, **more.pop("scores", {})}
    return {"stage": stage, "tasks": tasks, "macs_per_image": 1e11, "modes": {"dense": scores}, **more}


def test_a_run_is_of_the_row_with_its_views(tmp_path, capsys):
    """One network, evaluated plainly, then from more views; its arg-max is of no row."""
    spec = "configs/perspective/nyuv2.py:variant=pred_depth,loops=2,budget=gpu"
    better = row("finetune", "segmentation", alternative="argmax", scores={"miou": 0.99})
    evaluated(tmp_path / "a", spec, row("finetune", "segmentation"), better)
    views = row("finetune", "segmentation", scores={"miou": 0.43})
    evaluated(tmp_path / "b", f"{spec},test_aug=True", views)
    depth = "configs/perspective/nyuv2.py:variant=pred_depth,regression=True,budget=gpu,blur=4"
    evaluated(tmp_path / "c", depth, row("gating", "segmentation", "depth"))
    assert main.main(["tables", "perspective", "--json", f"--runs={tmp_path}"]) == 0
    tables = json.loads(capsys.readouterr().out)
    found = {
        one["network"]: one["measured"]["scores"] for t in tables for one in t["rows"] if one.get("measured")
    }
    assert {name: scores["miou"] for name, scores in found.items()} == {
        "loop2": 0.4,
        "loop2 (test-aug)": 0.43,
        "ours + blur": 0.4,
    }
    assert main.main(["tables", "perspective", f"--runs={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Table 1: depth on NYUv2"
    assert lines[3].split()[:7] == ["ours", "+", "blur", "0.8160", "0.9500", "0.9890", "0.8000"]
