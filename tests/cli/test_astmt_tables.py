"""dynpix tables astmt: every row has its configs, and runs of a task each make one row, with their drop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dynpix_jax.cli import main
from dynpix_jax.core.configs import load_config
from dynpix_jax.evaluation.paper_tables import EACH_TASK
from dynpix_jax.evaluation.table_files import read_tables
from dynpix_jax.run_config import read_run

ROOT = Path(__file__).resolve().parents[2]
TABLES = read_tables("astmt").tables
DATA = "nyud_multitask val, 654 images"


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.number)
def test_configs_make_the_networks_of_their_rows(table):
    depths = {"R-26": 26, "R-50": 50, "R-101": 101, "UberNet": 50}
    for row in table.rows:
        name, kind = row.network.replace(",", "").split(maxsplit=1)
        for task in table.tasks if EACH_TASK in row.argument else ("",):
            config = read_run(table.spec(row).replace(EACH_TASK, task))
            model, source = config.stages[-1].model, config.data.train.source
            assert set(model.tasks) == ({task} if task else set(table.tasks))
            assert source.name == table.source
            assert set(model.tasks) <= set(source.options.fields)
            assert (model.backbone.name == "mobilenetv2") == (name == "MobileNet")
            assert name == "MobileNet" or model.backbone.depth == depths[name]
            assert model.decoder.kind == ("uber" if name == "UberNet" else "deeplab")
            assert (model.adversarial is not None) == (kind == "SEA")
            assert model.encoder.se == (kind in ("SEA", "SE enc dec"))
            if name != "UberNet":
                assert model.decoder.se == (kind in ("SEA", "SE dec", "SE enc dec"))
            scored = table.source == "nyud_multitask" and "boundaries" in model.tasks
            assert config.evaluation.max_dist == (0.011 if scored else 0.0075)
            assert config.evaluation.reference == ""


def evaluated(folder: Path, argument: str, scores: dict[str, float]) -> None:
    """An eval.json of a run of a config of NYUD, as eval.py writes it."""
    folder.mkdir(parents=True)
    config = json.loads(json.dumps(load_config(f"configs/astmt/nyud.py:{argument}").to_dict()))
    row = {
        "stage": config["training"]["stages"][-1]["name"],
        "tasks": list(config["model"]["tasks"]),
        "macs_per_image": 2e9,
        "modes": {"dense": {"milliseconds": 3.0, **scores}},
    }
    (folder / "eval.json").write_text(json.dumps({"config": config, "data": DATA, "rows": [row]}))


def rows(capsys, *arguments: str) -> dict[str, dict]:
    assert main.main(["tables", "astmt", "--json", *arguments]) == 0
    tables = json.loads(capsys.readouterr().out)
    return {row["network"]: row for table in tables if table["table"] == "Table 1a" for row in table["rows"]}


def test_runs_of_a_task_each_are_one_row(tmp_path, capsys):
    single = {
        "boundaries": {"ods": 0.70, "ap": 0.6},
        "segmentation": {"miou": 0.30},
        "normals": {"mean": 25.0},
        "depth": {"delta1": 0.8, "rmse": 0.60},
    }
    for task, scores in single.items():
        evaluated(tmp_path / task, f"backbone=r26,variant=single,task={task}", scores)
    found = rows(capsys, f"--runs={tmp_path}")
    assert found["R-26 multi"]["measured"] is None
    assert found["R-26 multi"]["paper_delta_m"] == pytest.approx(5.496, abs=1e-3)
    reference = found["R-26 single"]["measured"]
    assert reference["scores"]["depth/rmse"] == 0.60
    assert reference["macs"] == 8e9  # of four networks
    assert reference["data"] == DATA
    multi = {"ods": 0.70, "segmentation/miou": 0.27, "normals/mean": 25.0, "depth/rmse": 0.66}
    evaluated(tmp_path / "multi", "backbone=r26,variant=multi", multi)
    found = rows(capsys, f"--runs={tmp_path}")
    assert found["R-26 multi"]["measured_delta_m"] == pytest.approx((0 + 10 + 0 + 10) / 4)
    assert main.main(["tables", "astmt", f"--runs={tmp_path}"]) == 0
    (line,) = [
        line
        for line in capsys.readouterr().out.splitlines()
        if "r26,variant=multi" in line and "nyud" in line
    ]
    assert line.split()[6:13] == ["5.50", "5.50", "0.7000", "0.2700", "25.00", "0.6600", "5.00"]
    (tmp_path / "depth" / "eval.json").unlink()
    found = rows(capsys, f"--runs={tmp_path}")
    assert found["R-26 multi"]["measured_delta_m"] is None  # a reference of three tasks
    assert found["R-26 single"]["measured"] is None  # what three of its four networks cost is no cost of it
