from __future__ import annotations

import json

import pytest

from dynpix_jax.cli import main

CONFIG = """
import ml_collections
from dynpix_jax.core.configs import parse_arg

def get_config(arg=""):
    args = parse_arg(arg, rho=0.5, depth=26)
    return ml_collections.ConfigDict({
        "name": "tiny", "seed": 3,
        "model": {
            "system": "pag", "task": "boundaries",
            "backbone": {"depth": args.depth},
            "gate": {"kind": "none", "rho": args.rho},
        },
        "data": {
            "train": {"source": {"name": "scenes", "split": "train"}},
            "eval": {"source": {"name": "scenes", "split": "val"}},
        },
        "training": {"batch_size": 2, "stages": (
            {"name": "base", "steps": 10, "learning_rate": 0.1},
            {"name": "gates", "steps": 5, "learning_rate": 0.1, "model": {"gate": {"kind": "pixel"}}},
        )},
        "evaluation": {},
    })
"""


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "tiny.py"
    file.write_text(CONFIG)
    return str(file)


def test_summary(config, capsys):
    assert main.main(["check-config", config, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert {key: summary[key] for key in ("name", "seed", "system", "batch_size")} == {
        "name": "tiny",
        "seed": 3,
        "system": "pag",
        "batch_size": 2,
    }
    base, gates = summary["stages"]
    assert (base["name"], base["steps"], gates["name"], gates["steps"]) == ("base", 10, "gates", 5)
    assert (
        gates["parameters"] > base["parameters"] > 10_000_000
    )  # ResNet-26 has 14 million without its classifier


def test_lines(config, capsys):
    assert main.main(["check-config", config, "--set", "training.batch_size=4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{config}: ok"
    assert lines[1] == "  tiny: system pag, seed 3, batch size 4"
    assert [line.split(":")[0] for line in lines[2:]] == ["  stage base", "  stage gates"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([":rho=1.5"], "stage 'base': config.model.gate.rho: 1.5; expected a density in (0, 1]"),
        ([":roh=1"], "'roh' is unknown; did you mean 'rho'?"),
        ([":depth=27"], "stage 'base': config.model.backbone.depth: 27"),
        (["", "--set", "training.batch_sice=4"], "did you mean 'batch_size'?"),
        (
            ["", "--set", "training.stages[0].learning_rate=-1"],
            "config.training.stages[0].learning_rate: expected a positive number",
        ),
        (["", "--set", "seed=1.5"], "config.seed"),
        (["", "--set", "model.system=pga"], "did you mean 'pag'?"),
    ],
)
def test_mistakes_are_one_line_and_2(config, arguments, message, capsys):
    assert main.main(["check-config", config + arguments[0], *arguments[1:]]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("dynpix check-config: ")
    assert message in line


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"evaluation": {}',
            '"evaluatoin": {}',
            "config.evaluatoin: unknown key; did you mean 'evaluation'?",
        ),
        ('"name": "tiny", ', "", "config.name: missing"),
        ('"eval": {', '"evl": {', "config.data.evl: unknown key; did you mean 'eval'?"),
        ('"val"}', '"vla"}', "config.data.eval.source.split: scenes has no split 'vla'; did you mean 'val'?"),
        ('"val"}', '"val", "length": 0}', "config.data.eval.source.length: 0; expected at least 1"),
        (
            '"train"}}',
            '"train"}, "augment": {"crop": (0, 8)}}',
            "config.data.train.augment.crop: (0, 8); expected a positive height and width",
        ),
        (
            '"evaluation": {}',
            '"evaluation": {"thresholds": 0}',
            "config.evaluation.thresholds: expected at least 1, got 0",
        ),
        ('"rho": args.rho', '"roh": args.rho', "roh: unknown key; did you mean 'rho'?"),
        ('{"gate": {"kind"', '{"gat": {"kind"', "did you mean 'gate'?"),
        (
            '"learning_rate": 0.1}',
            '"learning_rate": 0.1, "frozen": ("stm.*",)}',
            "no parameter is matched by 'stm.*'",
        ),
        (
            '"val"}}',
            '"val"}, "agument": None}',
            "config.data.eval.agument: unknown key; did you mean 'augment'?",
        ),
    ],
)
def test_misspelt_config(tmp_path, old, new, message, capsys):
    file = tmp_path / "wrong.py"
    assert old in CONFIG
    file.write_text(CONFIG.replace(old, new))
    assert main.main(["check-config", str(file)]) == 2
    assert message in capsys.readouterr().err
