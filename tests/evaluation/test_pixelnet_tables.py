"""Tables of PixelNet: every row has a config that makes the network of its name; scores as printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dynpix_jax.cli.main import main
from dynpix_jax.core.configs import load_config
from dynpix_jax.evaluation.table_files import read_tables

ROOT = Path(__file__).resolve().parents[2]
TABLES = read_tables("pixelnet").tables


def test_rows_and_scores_are_the_papers():
    rows = {(table.number, row.network): row.paper for table in TABLES[:3] + TABLES[4:] for row in table.rows}
    assert [len(table.rows) for table in TABLES] == [6, 6, 5, 5, 2, 1, 4, 6]
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
            (table["table"], row["network"]) for table in tables for row in table["rows"] if row["measured"]
        }
    # Full size in training, half in evaluation: no row has both.
    assert found == {
        "pixels=2000,images=1": {("Table 2", "2000 x 1")},
        "conv7,train_scales=full": set(),
    }
