"""dynpix tables: every row has a config that exists, and a run is found for the rows that it is of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dynpix_jax.cli import main
from dynpix_jax.cli.common import call
from dynpix_jax.cli.paper_tables import cells
from dynpix_jax.core.configs import load_config
from dynpix_jax.evaluation.paper_tables import Table, read_runs
from dynpix_jax.evaluation.table_files import read_tables

ROOT = Path(__file__).resolve().parents[2]
TABLES = read_tables("pag").tables
# Networks in the paper's own tables, a data set each: its rows without those of other authors.
ROWS = {
    ("Table 1", "bsds500"): 6,
    ("Table 1", "nyuv2"): 10,
    ("Figure 5", "bsds500"): 2,
    ("Table 2", "nyuv2"): 10,
    **{("Table 3", source): 6 for source in ("nyuv2", "stanford2d3d", "cityscapes")},
    **{("Table 4", source): 6 for source in ("nyuv2", "stanford2d3d", "cityscapes")},
    **{("Table 5", source): 6 for source in ("nyuv2", "stanford2d3d")},
    ("Table 6", "nyuv2"): 7,
    ("Table 7", "nyuv2"): 4,
    ("Table 8", "nyuv2"): 3,
    ("Table 9", "nyuv2"): 7,
    ("Table 10", "nyuv2"): 4,
}


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def table(number: str, source: str) -> Table:
    (found,) = (table for table in TABLES if (table.number, table.source) == (number, source))
    return found


def test_all_rows_of_the_paper_are_there():
    assert {(table.number, table.source): len(table.rows) for table in TABLES} == ROWS


def test_scores_are_those_of_the_paper():
    """Some of each kind, read off the paper by hand."""
    assert [row.paper[0] for row in table("Table 1", "nyuv2").rows][3] == 0.4652
    assert table("Table 2", "nyuv2").rows[7].paper == (0.4361, 0.7141)
    assert table("Table 2", "nyuv2").rows[7].macs == 8.27e10
    assert table("Table 3", "cityscapes").rows[1].paper == (0.758, 0.569)
    assert table("Table 4", "stanford2d3d").rows[4].paper == (0.754, 0.928, 0.976)
    assert table("Table 5", "stanford2d3d").rows[-1].paper == (17.7, 0.547, 0.714, 0.785)
    assert table("Table 9", "nyuv2").rows[1].paper[0] == 21.9951


@pytest.mark.parametrize("number", sorted({table.number for table in TABLES}))
def test_configs_make_the_networks_of_their_rows(number):
    for each in TABLES:
        if each.number != number:
            continue
        for row in each.rows:
            config = load_config(each.spec(row))
            assert config.model.task == each.task
            assert config.data.eval.source.name == each.source
            model = config.training.stages[-1].get("model", {})
            assert_network(row.network, config, model)


def assert_network(name: str, config, model) -> None:
    """What the name of a row says of it."""
    gate, pool = model.get("gate", {}), model.get("multipool", {})
    if "ρ=" in name and "1.0" not in name and "truncated" not in name:
        rho = float(name.split("ρ=")[1].rstrip(")"))
        # Rows of table 2 are built to a printed budget (tests/papers/pag/test_budgets.py).
        assert gate["rho"] in (rho, {0.5: 0.47, 0.7: 0.78}.get(rho))
        assert gate["kind"] == ("layer" if "skipping" in name else "pixel")
    else:
        assert not gate
    assert bool(config.model.drop_blocks + config.model.drop_layers) == ("truncated" in name)
    if name in ("base", "baseline"):
        assert not pool
    if "MP@Res" in name:
        first, _, last = name.split("MP@Res")[1].split()[0].partition("-")
        stages = {int(block.split("_")[0][3:]) for block in pool["blocks"]}
        assert stages == set(range(int(first), int(last or first) + 1))
    if "w-Avg" in name:
        assert pool["selection"] == "average"
    if "(PAG)" in name:
        assert pool["selection"] == "pag"


def evaluated(folder: Path, spec: str, data: str, scores: dict[str, float], **changes) -> None:
    """An eval.json of a run of a config, as eval.py writes it."""
    folder.mkdir(parents=True)
    config = json.loads(json.dumps(load_config(spec).to_dict()))
    config["model"] |= changes
    modes = {"dense": {"milliseconds": 3.0, **scores}}
    tasks = [config["model"].get("task", "segmentation")]
    stage = config["training"]["stages"][-1]["name"]
    rows = [{"stage": stage, "tasks": tasks, "macs_per_image": 5e10, "modes": modes}]
    (folder / "eval.json").write_text(json.dumps({"config": config, "data": data, "rows": rows}))


def measured(capsys, *arguments: str) -> dict[tuple[str, str, str], dict]:
    assert main.main(["tables", "pag", "--json", *arguments]) == 0
    tables = json.loads(capsys.readouterr().out)
    return {
        (table["table"], row["network"], row["config"].split(":")[0]): row["measured"]
        for table in tables
        for row in table["rows"]
        if row.get("measured")
    }


def test_a_run_is_found_for_the_rows_with_its_network(tmp_path, capsys):
    spec = "configs/pag/nyuv2.py:task=segmentation,variant=gated,rho=0.9,budget=gpu,root=elsewhere,packed"
    evaluated(tmp_path / "a" / "b", spec, "nyuv2 test, 654 images", {"miou": 0.41, "pixel_accuracy": 0.7})
    found = measured(capsys, f"--runs={tmp_path}")
    rows = {(number, "MP@Res5 (ρ=0.9)", "configs/pag/nyuv2.py") for number in ("Table 2", "Table 3")}
    assert found.keys() == rows
    for one in found.values():
        assert one["scores"]["miou"] == 0.41
        assert one["macs"] == 5e10
        assert one["data"] == "nyuv2 test, 654 images"


def test_another_network_is_of_no_row(tmp_path, capsys):
    spec = "configs/pag/cityscapes.py:task=segmentation,variant=gated,rho=0.6"
    evaluated(tmp_path / "a", spec, "cityscapes val, 500 images", {"miou": 0.3})
    spec = spec.replace("0.6", "0.7")
    evaluated(tmp_path / "b", spec, "cityscapes val, 500 images", {"miou": 0.3}, head_features=3)
    assert measured(capsys, f"--runs={tmp_path}") == {}


def test_text(tmp_path, capsys):
    spec = "configs/pag/cityscapes.py:task=segmentation,variant=gated,rho=0.5"
    evaluated(tmp_path / "a", spec, "cityscapes val, 500 images", {"miou": 0.7012, "iiou": 0.5011})
    assert main.main(["tables", "pag", f"--runs={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("Table 3: segmentation on Cityscapes")
    assert lines[start + 1].split()[0] == "network"
    line = lines[start + 7]
    assert line.split()[:6] == ["MP@Res5", "(ρ=0.5)", "0.7080", "0.5320", "0.7012", "0.5011"]
    assert "50.00e9" in line
    assert line.endswith("configs/pag/cityscapes.py:task=segmentation,variant=gated,rho=0.5")
    assert lines[start + 6].split()[2:8] == ["0.7260", "0.5510", "-", "-", "-", "-"]


def test_mistakes(tmp_path, capsys, monkeypatch):
    def fails(*arguments: str) -> str:
        assert call("dynpix", lambda: main.main(["tables", "pag", *arguments])) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "folder of runs not found" in fails(f"--runs={tmp_path / 'none'}")
    (tmp_path / "eval.json").write_text("{}")
    assert "eval.json is not what eval.py writes" in fails(f"--runs={tmp_path}")
    (tmp_path / "eval.json").unlink()


def test_masks_of_chance_stand_beside_the_learned_ones(tmp_path):
    """Those of the score that comes first, under its name; "-" for networks without it, or without gates."""
    of_variants = {
        "multipool": {},
        "gated,rho=0.9": {"shuffled": {"iiou": 0.4321}},
        "gated,rho=0.5": {"shuffled": {"iiou": 0.4, "miou": 0.6543}},
    }
    for variant, chance in of_variants.items():
        spec = f"configs/pag/cityscapes.py:task=segmentation,variant={variant}"
        evaluated(tmp_path / variant, spec, "cityscapes val, 500 images", {"miou": 0.7012, "iiou": 0.5011})
        file = tmp_path / variant / "eval.json"
        content = json.loads(file.read_text())
        content["rows"][0]["chance"] = chance
        file.write_text(json.dumps(content))
    runs = read_runs(tmp_path)
    heads, rows = cells(table("Table 3", "cityscapes"), runs)
    of_chance = {row[0]: row[heads.index("mIoU, shuffled masks")] for row in rows}
    assert of_chance.pop("MP@Res5 (ρ=0.5)") == "0.6543"
    assert set(of_chance.values()) == {"-"}
    assert {row[0] for row in rows if row[heads.index("mIoU here")] == "0.7012"} == {
        "MP@Res5 (PAG)",
        "MP@Res5 (ρ=0.9)",
        "MP@Res5 (ρ=0.5)",
    }
    assert [head for head in heads if "masks" in head] == ["mIoU, shuffled masks"]
    assert "0.6543" not in str(cells(table("Table 3", "nyuv2"), runs))
