from __future__ import annotations

import json
from pathlib import Path

import pytest

from dynpix_jax.cli import main
from dynpix_jax.cli.flops import parts_of
from dynpix_jax.flops import MacReport
from dynpix_jax.nn.residual import BlockSpec
from tests.tiny import TINY_CONFIG

ASTMT_TASKS = ("boundaries", "segmentation", "normals", "depth", "saliency")
BSDS = Path(__file__).resolve().parents[2] / "configs" / "pag" / "bsds500.py"


@pytest.fixture
def tiny(tmp_path):
    file = tmp_path / "tiny.py"
    file.write_text(TINY_CONFIG)
    return str(file)


def count(capsys, *arguments: str) -> dict:
    assert main.main(["flops", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_backbone_agrees_with_the_published_count(capsys):
    """Dilated ResNet-50 (output stride 8) at 424x560: 9.03e10 MACs, by hand from the layers' shapes."""
    numbers = count(capsys, f"--config={BSDS}", "--size=424x560")
    assert numbers["backbone"] == pytest.approx(9.03e10, rel=0.01)
    assert numbers["parameters_backbone"] == pytest.approx(
        23.5e6, rel=0.01
    )  # 25.6 million less the classifier
    assert numbers["backbone"] + numbers["parts"]["head"] == pytest.approx(numbers["macs"])
    assert numbers["flops"] == 2 * numbers["macs"]
    assert numbers["macs_gibi"] == pytest.approx(numbers["macs"] / 2**30)
    assert numbers["gated"] == {}
    assert numbers["macs_at_target_rho"] == numbers["macs"]


def test_gated_layers_by_hand(tiny, capsys):
    numbers = count(capsys, f"--config={tiny}", "--size=48x64")
    assert (numbers["stage"], numbers["size"], numbers["target_rho"]) == ("gates", [48, 64], 0.5)
    # Scope "residual" saves the 3x3 and the last 1x1. Res2 has 8 features and 32 channels at stride 4; Res3
    # and Res4 twice as many at half the resolution, which is the same product; Res5 stays at stride 16.
    res2 = 12 * 16 * (9 * 8 * 8 + 8 * 32)
    expected = dict.fromkeys((f"res{s}_{i}" for s in (2, 3, 4) for i in (1, 2)), res2)
    assert numbers["gated"] == {**expected, "res5_1": 4 * res2, "res5_2": 4 * res2}
    saved = 0.5 * sum(numbers["gated"].values())
    assert numbers["macs_at_target_rho"] == pytest.approx(numbers["macs"] - saved)


def test_stage_by_name(tiny, capsys):
    base = count(capsys, f"--config={tiny}", "--size=48x64", "--stage=base")
    assert (base["stage"], base["gated"], base["gates"], base["target_rho"]) == ("base", {}, 0, 1.0)


def test_branches_of_multipool_count_as_one_convolution(tiny, capsys):
    arguments = [f"--config={tiny}", "--size=48x64", "--stage=base", "--set"]
    base = count(capsys, *arguments[:-1])
    file = Path(tiny)
    file.write_text(
        TINY_CONFIG.replace(
            '"head_features": 4',
            '"head_features": 4, "multipool": {"blocks": ("res4_2",), "dilations": (0, 1, 2)}',
        )
    )
    pool = count(capsys, *arguments[:-1])
    assert list(pool["gated"]) == ["res4_2/dilation_1", "res4_2/dilation_2"]
    assert pool["macs_gates_open"] == pytest.approx(base["macs"] + pool["gates"])


@pytest.mark.parametrize(
    ("config", "above"),
    [
        ("pag/scenes.py:variant=multipool", ["head"]),
        ("perspective/scenes.py", ["res6", "feedforward", "resize"]),
        ("pixelnet/scenes.py", ["mlp"]),
        ("anytime/scenes.py", ["exit1", "exit2", "exit3", "exit4"]),
        ("mdeq/scenes.py", ["stem", "cell", "head"]),
        (
            "astmt/scenes.py",
            ["decoder", "resize", *(f"head_{task}" for task in ASTMT_TASKS)],
        ),
    ],
)
def test_the_parts_of_every_system_make_up_the_whole(capsys, config, above):
    config = f"configs/{config}"
    numbers = count(capsys, f"--config={config}", "--size=64x64")
    parts = numbers["parts"]
    assert {part for part in parts if not part.startswith("backbone/")} == set(above)
    assert all(parts[part] > 0 for part in above)
    assert numbers["backbone"] + sum(parts[part] for part in above) == pytest.approx(numbers["macs"])
    # A part that a network does not have is not told as one that costs nothing.
    assert "head" not in numbers
    assert main.main(["flops", f"--config={config}", "--size=64x64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    printed = [line.split()[0] for line in lines if line and not line.startswith(" ")]
    assert [part for part in above if part not in printed] == []
    assert ("(backbone" in lines[3]) == (numbers["parameters_backbone"] > 0)


def test_the_gates_stand_after_all_that_has_them(capsys):
    """The MultiPool of Res6 is above the backbone, and has the only gate of this network."""
    arguments = ["--config=configs/pag/nyuv2.py:variant=multipool,multipool=res6,budget=gpu", "--size=64x64"]
    numbers = count(capsys, *arguments)
    assert numbers["gates"] > 0
    assert main.main(["flops", *arguments]) == 0
    lines = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line]
    assert lines.index("(gates,") == lines.index("head") + 1 > lines.index("res6")


def test_lines_state_their_units(tiny, capsys):
    assert main.main(["flops", f"--config={tiny}:rho=0.7", "--size=48x64"]) == 0
    out = capsys.readouterr().out
    assert "FLOPs" in out
    assert "(2 x MACs)" in out
    assert "MACs / 2^30" in out
    assert "MACs at target density 0.7" in out
    assert "one skipped % saves" in out


def test_parts_by_hand():
    """Scopes as Flax and einsum name them: the network's class, methods, modules, products."""
    scopes = {
        "PagNetwork/backbone/res2_1/res2_1.reduce/conv1/bhwc,cd->bhwd": 1.0,
        "PagNetwork/head/reduce/bhwc,cd->bhwd": 2.0,
        "Loops/Loops.start/Loops._top/backbone/stem_conv": 3.0,
        "resize/ph,bhwc->bpwc": 5.0,
        "Loops/Loops.start": 6.0,
        "": 7.0,
    }
    blocks = [BlockSpec("res2_1", "res2", 4, 4, 4)]
    assert parts_of(MacReport(24.0, {}, scopes), blocks) == {
        "backbone/res2": 1.0,
        "head": 2.0,
        "backbone/stem": 3.0,
        "resize": 5.0,
        "other": 13.0,
    }
    scopes = {"Exits/Exits.advance/backbone.stage/stage3/stage3_0/conv": 4.0}
    assert parts_of(MacReport(4.0, {}, scopes)) == {"backbone/stage3": 4.0}


def test_parts_and_steps_of_a_network_that_loops(tmp_path, capsys):
    """Methods of its modules are no parts; by hand, with arg-max gates, one branch a pixel."""
    file = tmp_path / "loops.py"
    file.write_text(
        TINY_CONFIG.replace(
            "def get_config",
            """def get_config(arg=None):
    config = pag(arg)
    config.model = dict(
        system="perspective", segmentation=dict(classes=3), loops=2, features=8,
        backbone=dict(depth=18, width=4), pooling=dict(signal="attention", gate="argmax"),
    )
    config.training.stages = (dict(config.training.stages[0], model=dict()),)
    config.evaluation = dict(limit=2)
    return config


def pag""",
        )
    )
    numbers = count(capsys, f"--config={file}", "--size=48x64")
    assert set(numbers["parts"]) == {
        *(f"backbone/{name}" for name in ("stem", "res2", "res3", "res4", "res5")),
        *("res6", "feedforward", "loop", "resize"),
    }
    assert numbers["backbone"] == sum(macs for part, macs in numbers["parts"].items() if "/" in part)
    assert sum(numbers["parts"].values()) == numbers["macs"] == numbers["steps"][-1]
    assert numbers["steps"][2] - numbers["steps"][1] == numbers["steps"][1] - numbers["steps"][0]
    # Five branches 8 -> 8 at 6 x 8 cells in each of three passes: four of five are left out.
    assert numbers["macs"] - numbers["macs_gates_open"] == 3 * 4 * 9 * 8 * 8 * 48
    assert main.main(["flops", f"--config={file}", "--size=48x64"]) == 0
    out = capsys.readouterr().out
    assert "MACs up to each prediction" in out
    assert "MACs with one branch a pixel" in out
    assert "gates open" not in out


@pytest.mark.parametrize("size", ["321", "0x4", "4x-4", "321x481x3", "axb", ""])
def test_bad_size(tiny, size, capsys):
    assert main.main(["flops", f"--config={tiny}", f"--size={size}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"dynpix flops: --size {size}".rstrip())
    assert "for example 321x481" in line


def test_unknown_stage(tiny, capsys):
    assert main.main(["flops", f"--config={tiny}", "--size=48x64", "--stage=gate"]) == 2
    assert "did you mean 'gates'?" in capsys.readouterr().err


def test_counts_of_a_table_beside_the_printed_ones(tmp_path, tiny, capsys):
    """The paper's reading of PAG: the backbone without its gates; and everything."""
    tables = tmp_path / "own.toml"
    tables.write_text(f"""
[[tables]]
number = "Table 1"
title = "budgets"
config = "{tiny}"
source = "scenes"
task = "boundaries"
metrics = ["ods"]
columns = ["network", "argument", "ods", "macs"]
rows = [["half", "rho=0.5", 0.7, 0.0005], ["unprinted", "rho=0.7", 0.7, "-"]]
""")
    arguments = ["flops", "--table", str(tables), "Table 1", "--size=48x64"]
    assert main.main([*arguments, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    numbers = count(capsys, f"--config={tiny}:rho=0.5", "--size=48x64")
    beside = numbers["parts"]["head"] + numbers["gates"]
    assert row["executed"] == numbers["macs_at_target_rho"]
    assert row["counted"] == pytest.approx(row["executed"] - beside)
    assert row["off"] == pytest.approx(row["counted"] / 5e5 - 1)
    assert main.main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("| half | 0.0 |")
    for wrong in (["--stage=base"], ["--table", str(tables), "Table 2"]):
        assert main.main([*arguments, *wrong]) == 2
    assert main.main(["flops", f"--config={tiny}", "--size=48x64", "--args=rho=0.5"]) == 2


def test_the_reading_of_the_paper_stands_beside_the_whole(tiny, capsys):
    assert main.main(["flops", f"--config={tiny}:rho=0.7", "--size=48x64"]) == 0
    assert "MACs as the paper's tables count (a part of the network)" in capsys.readouterr().out
