"""Tables of PixelNet: every row has a config that makes the network of its name; scores as printed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dynpix_jax.cli.main import main
from dynpix_jax.core.configs import load_config
from dynpix_jax.evaluation.paper_tables import find_run
from dynpix_jax.evaluation.results import Measured, identity_of
from dynpix_jax.evaluation.table_files import read_tables
from dynpix_jax.run_config import read_run

ROOT = Path(__file__).resolve().parents[2]
TABLES = read_tables("pixelnet").tables


def test_rows_and_scores_are_the_papers():
    rows = {(table.number, row.network): row.paper for table in TABLES[:3] + TABLES[4:] for row in table.rows}
    assert [len(table.rows) for table in TABLES] == [6, 6, 5, 5, 1, 1, 4, 8]
    assert [len(table.others) for table in TABLES] == [0, 0, 7, 1, 3, 3, 0, 14]
    assert TABLES[2].others[0].paper == (0.465, 0.351)
    assert TABLES[5].others[1].paper == (23.7, 15.5, None, 0.392, 0.62, 0.711)
    assert TABLES[-1].others[11].paper == (0.782, 0.804, 0.833)
    assert rows["Table 1", "fc-2"] == (0.017, 0.001)
    assert rows["Table 2", "10000 x 1"] == (0.333, 0.252)
    assert rows["Table 3", "conv7 (0.5-1.0)"] == (0.481, 0.376)
    assert rows["Table 6", "75%"] == (0.790, 0.805, 0.818)
    assert rows["Table 7", "conv7 (50%)-(1.0x)"] == (0.791, 0.803, 0.840)


@pytest.mark.parametrize("budget", ["cpu", "gpu"])
def test_configs_make_the_networks_of_their_rows(budget, monkeypatch):
    monkeypatch.chdir(ROOT)
    for table in TABLES:
        for row in table.rows:
            config = load_config(f"{table.config}:{row.argument},budget={budget}".replace(":,", ":"))
            assert config.data.eval.source.name == table.source
            model, name = config.model, row.network
            assert model.task == table.task
            conv7 = "conv7" in name or table.number in ("Section 4.1", "Table 5")
            assert ("fc7" in model.hypercolumn.layers) == conv7
            if table.number == "Table 1":
                layers = int(name.split("fc-")[1][0]) if "fc-" in name else 3
                width = int(name.split("d-")[1][:4]) if "d-" in name else 4096
                assert model.mlp.hidden == (width,) * (layers - 1)
            if table.number == "Table 2":
                pixels, images = name.removeprefix("baseline (").rstrip(")").split(" x ")
                assert model.sampling.pixels == int(pixels)
                assert config.training.batch_size == int(images)
            if "%" in name:
                share = int(name.split("%")[0].split("(")[-1]) / 100
                assert (model.sampling.strategy, model.sampling.rare_share) == ("biased", share)
            if table.number == "Table 3":
                assert model.task_options["classes"] in (59, 33)
            if "0.5x,1.0x" in name:
                assert config.evaluation.inference.scales == (0.5, 1.0)


def test_a_run_is_of_the_row_that_it_was_trained_as(tmp_path, capsys, monkeypatch):
    """Images a step (table 2) and sizes of training (table 3) tell rows of one network apart."""
    monkeypatch.chdir(ROOT)
    found = {}
    for budget, argument in (("gpu", "pixels=2000,images=1"), ("cpu", "conv7,train_scales=full")):
        spec = f"configs/pixelnet/pascal_context.py:{argument},budget={budget},root=elsewhere,seed=3"
        config = json.loads(json.dumps(load_config(spec).to_dict()))
        stage = config["training"]["stages"][-1]["name"]
        row = dict(stage=stage, tasks=["segmentation"], macs_per_image=1e10, modes={"dense": {"miou": 0.5}})
        content = {"config": config, "data": "pascal_context val, 5105 images", "rows": [row]}
        (tmp_path / "eval.json").write_text(json.dumps(content))
        assert main(["tables", "pixelnet", "--json", f"--runs={tmp_path}"]) == 0
        tables = json.loads(capsys.readouterr().out)
        found[argument] = {
            (table["table"], row["network"])
            for table in tables
            for row in table["rows"]
            if row.get("measured")
        }
    # Full size in training, half in evaluation: no row has both.
    assert found == {
        "pixels=2000,images=1": {("Table 2", "2000 x 1")},
        "conv7,train_scales=full": set(),
    }


def test_a_run_from_nothing_is_not_of_a_row_that_continues(monkeypatch):
    """Table 3's last row is fine-tuned from another; BSDS500's rows name the images that they trained on."""
    monkeypatch.chdir(ROOT)
    table = TABLES[2]
    row = table.rows[-1]
    found = []
    for more in ("", ",continue_from=runs/conv7"):
        run = read_run(f"{table.spec(row)},budget=gpu{more}")
        measured = Measured(
            {"miou": 0.4}, 1e10, "pascal_context val", (), run.stages[-1].name, ("segmentation",)
        )
        found.append(find_run({identity_of(run, run.stages[-1], table.source): measured}, table, row))
    assert [one is not None for one in found] == [False, True]
    run = read_run("configs/pixelnet/bsds500.py", ())
    other = read_run("configs/pixelnet/bsds500.py", ("data.train.source.split=test",))
    assert len({identity_of(one, one.stages[-1], "bsds500") for one in (run, other)}) == 2


def test_what_a_row_continues_from(capsys):
    """It is printed beside the row; VOC's is trained for it, but the paper does not print it."""
    assert main(["tables", "pixelnet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("Section 4.1: segmentation on PASCAL VOC 2012")
    heads, ours, theirs = (re.split(r"  +", line.strip()) for line in lines[start + 1 : start + 4])
    assert heads == ["network", "mIoU", "continues from", "config"]
    assert ours[:3] == ["ours", "0.6970", "conv7@train"]
    assert theirs[:3] == ["Hypercolumns", "0.6270", "-"]
    assert main(["tables", "pixelnet", "--json"]) == 0
    tables = {one["title"]: one["rows"] for one in json.loads(capsys.readouterr().out)}
    after = {row["network"]: row["after"] for row in tables["segmentation on PASCAL-Context, 59 classes"]}
    where = "configs/pixelnet/pascal_context.py:classes=59,conv7@train"
    assert [name for name, one in after.items() if one == where] == [
        "conv7 (0.5-1.0)",
        "conv7 (0.5-0.25,0.5,1.0)",
    ]
    assert [name for name, one in after.items() if one is None][:2] == ["baseline", "conv7 (0.25,0.5)"]
    (voc,) = (row for row in tables["segmentation on PASCAL VOC 2012"] if not row["by"])
    assert voc["after"] == "configs/pixelnet/voc2012.py:conv7@train"


def test_costs_name_the_program_that_measures_them(capsys):
    (table,) = read_tables("pixelnet").benchmarks
    assert table.rows[-1] == (*table.rows[-1][:3], 3, 5152, 2000, 1024, 686, 8.8)
    assert main(["tables", "pixelnet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    line = lines[lines.index(f"Table 4: {table.title}") + 12]
    assert line.split()[:9] == [
        "ours,",
        "fc-3",
        "ours",
        "conv1_2+conv3_3+conv5_3",
        "3",
        "1056",
        "2000",
        "465",
        "144",
    ]
    assert line.endswith('dynpix bench pixelnet-sampling --rows "ours, fc-3"')
    assert main(["reproduce", "pixelnet", "Table 4", "--workdir=runs"]) == 2
    assert "which nothing is trained for: dynpix bench pixelnet-sampling" in capsys.readouterr().err
    assert main(["tables", "pixelnet", "--json"]) == 0
    tables = {one["title"]: one for one in json.loads(capsys.readouterr().out)}
    assert tables[table.title]["rows"][0]["paper"]["memory, MB"] == 2056
    theirs = [row for row in tables["normals on NYUv2"]["rows"] if row["by"]]
    assert [row["config"] for row in theirs] == [None] * 3
    assert theirs[0]["paper"]["mean"] == 35.3
