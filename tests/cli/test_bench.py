from __future__ import annotations

import json
import re

import pytest

from dynpix_jax.bench import model, pooling
from dynpix_jax.bench.arg_specs import ConvSpec, find
from dynpix_jax.bench.timed import Program, Settings
from dynpix_jax.cli import bench, main
from tests.tiny import TINY_CONFIG

SMALLEST = "hrnet_w32_branch4_256x256"


@pytest.fixture
def tiny(tmp_path):
    file = tmp_path / "tiny.py"
    file.write_text(TINY_CONFIG)
    return str(file)


def numbers(capsys, *arguments: str) -> dict:
    assert main.main(["bench", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refusal(capsys, *arguments: str) -> str:
    assert main.main(["bench", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


def test_convolutions(capsys):
    arguments = ["perforated-conv", "--spec", SMALLEST, "--density", ".25", "1", "--runs", "2"]
    got = numbers(capsys, *arguments, "--implementation", "gather", "auto")
    assert {key: got[key] for key in ("runs", "batch", "mask", "dtype", "backward")} == {
        "runs": 2, "batch": 1, "mask": "random", "dtype": "float32", "backward": False,
    }  # fmt: skip
    assert [(row["label"], row["density"]) for row in got["rows"]] == [
        ("dense", 1.0), ("gather", 0.25), ("auto", 0.25), ("gather", 1.0), ("auto", 1.0),
    ]  # fmt: skip
    dense, sparse = got["rows"][:2]
    assert dense["layer"] == SMALLEST
    assert sparse["time_ratio"] == pytest.approx(sparse["timing"]["median"] / dense["timing"]["median"])
    assert sparse["time_over_macs"] == pytest.approx(sparse["time_ratio"] / 0.25)
    assert sparse["timing"]["p10"] <= sparse["timing"]["median"] <= sparse["timing"]["p90"]


def test_pooling(capsys, monkeypatch):
    small = ConvSpec("pooling_small", (4, 5), 4, 4)
    monkeypatch.setattr(pooling, "SPECS", (small,))
    rows = numbers(capsys, "pooling", "--runs", "1")["rows"]
    assert [(row["label"], row["mac_ratio"]) for row in rows] == [
        ("all branches", 1.0), ("arg-max, dense", 0.2), ("arg-max, sparse", 0.2),
    ]  # fmt: skip
    assert "pooling_smal: no such layer" in refusal(capsys, "pooling", "--spec", "pooling_smal")


def test_by_default_all_that_can_run_here(capsys):
    arguments = [
        "--spec",
        SMALLEST,
        "--density",
        "0",
        "--runs",
        "1",
        "--dtype",
        "bfloat16",
        "--mask",
        "blobs",
    ]
    assert main.main(["bench", "perforated-conv", *arguments]) == 0
    machine, blank, layer, heads, *rows = capsys.readouterr().out.splitlines()
    assert "bfloat16, batch 1, masks of kind blobs, 1 runs in turn" in machine
    assert blank == ""
    assert layer == f"{SMALLEST}: 8x8, 256 -> 256 channels, 3x3; 0.0377e9 MACs"
    assert heads.split() == ["program", "density", "ms", "(p10-p90)", "time", "MACs", "time", "/", "MACs"]
    labels = [row.split()[0] for row in rows]
    assert labels[0] == "dense"
    assert {"auto", "masked", "gather"} <= set(labels)
    assert "pallas_tpu" not in labels
    assert rows[1].split()[-1] == "-"  # nothing to compute


def test_networks(tiny, capsys, monkeypatch):
    """The command gives system, size and settings to `model.programs`, which has a test of its own."""

    def programs(system, size, settings, names):
        assert system.config.gate.kind == "pixel"
        assert (size, settings) == ((32, 48), Settings((0.5,), "blobs", batch=2, runs=1))
        assert names == ["auto", "gather"]
        return [Program("ungated", lambda: None), Program("sparse", lambda: None, 0.5, 0.25)]

    monkeypatch.setattr(model, "programs", programs)
    options = [f"--config={tiny}", "--size=32x48", "--density", ".5", "--mask=blobs"]
    got = numbers(capsys, "model", *options, "--batch=2", "--runs=1", "--implementation", "auto", "gather")
    assert [row["label"] for row in got["rows"]] == ["ungated", "sparse"]
    assert got["rows"][1]["layer"] == tiny
    assert got["rows"][1]["time_over_macs"] == pytest.approx(4 * got["rows"][1]["time_ratio"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["perforated-conv", "--density", "1.5"], "--density 1.5: expected a share of positions in [0, 1]"),
        (["perforated-conv", "--density", "nan"], "--density nan: expected a share"),
        (["perforated-conv", "--runs", "0"], "--runs 0: expected at least 1"),
        (["bottleneck", "--batch", "0"], "--batch 0: expected at least 1"),
        (
            ["perforated-conv", "--spec", "res4_321x48"],
            "--spec res4_321x48: no such layer here; did you mean",
        ),
        (["bottleneck", "--spec", SMALLEST], f"--spec {SMALLEST}: no such layer here; valid: res2_321x481"),
        (["perforated-conv", "--implementation", "gathr"], "--implementation gathr: there is none; did you"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    assert f"dynpix bench: {message}" in refusal(capsys, *arguments)


def test_an_implementation_that_cannot_run(capsys):
    line = refusal(capsys, "perforated-conv", "--spec", SMALLEST, "--implementation", "auto", "pallas_tpu")
    assert "implementation 'pallas_tpu' cannot run: " in line
    assert "masked" in line.partition("these can: ")[2]


def test_networks_that_cannot_be_measured(tiny, capsys):
    options = ["model", f"--config={tiny}"]
    assert "stage 'base': its network has no gates" in refusal(
        capsys, *options, "--size=32x48", "--stage=base"
    )
    assert "--size 32: expected height x width" in refusal(capsys, *options, "--size=32")


def test_what_to_measure_is_required(capsys):
    with pytest.raises(SystemExit) as end:
        main.main(["bench"])
    assert end.value.code == 2
    assert "WHAT" in capsys.readouterr().err


@pytest.mark.parametrize("what", bench.PROGRAMS)
def test_help_has_an_example(what, capsys):
    with pytest.raises(SystemExit) as end:
        main.main(["bench", what, "--help"])
    assert end.value.code == 0
    assert re.search(rf"example:\n  (JAX_PLATFORMS=cuda )?dynpix bench {what} ", capsys.readouterr().out)


def test_layers_describe_themselves():
    assert str(find("res4_321x481")) == (
        "res4_321x481: 41x61, 256 -> 256 channels, 3x3, dilation 2; 1.48e9 MACs"
    )
    assert "32 -> 64 channels, 3x3, stride 2;" in str(find("hrnet_w32_down_256x256"))
