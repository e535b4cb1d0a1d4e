from __future__ import annotations

import json
import re
import time
from types import SimpleNamespace

import numpy as np
import pytest

from dynpix_jax.bench import bottleneck, break_even, budgets, loader, model, pooling, train_step
from dynpix_jax.bench.arg_specs import ConvSpec, find
from dynpix_jax.bench.network import Network
from dynpix_jax.bench.timed import Program, Settings, Timed
from dynpix_jax.cli import bench, main
from dynpix_jax.evaluation.timing import Timing
from dynpix_jax.run_config import read_run
from dynpix_jax.training import inputs
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


def test_networks_tell_in_which_types_they_compute(tiny, capsys, monkeypatch):
    monkeypatch.setattr(model, "programs", lambda *_: [Program("ungated", lambda: None)])
    options = ["model", f"--config={tiny}", "--size=32x48", "--runs=1"]
    assert numbers(capsys, *options)["dtype"] == "float32"
    rules = (
        ("model.compute_dtype=bfloat16", "bfloat16"),
        ("model.compute_dtype=[['head.*','float32'],['.*','bfloat16']]", "bfloat16 and float32"),
    )
    for change, dtype in rules:
        assert numbers(capsys, *options, "--set", change)["dtype"] == dtype
    assert main.main(["bench", *options, "--set", rules[0][0]]) == 0
    assert "; forward, bfloat16, batch 1" in capsys.readouterr().out.splitlines()[0]


def test_bottlenecks(capsys, monkeypatch):
    seen = []

    def programs(spec, settings, *, scope):
        seen.append((spec.name, settings, scope))
        return [Program("plain", lambda: None), Program("sparse", lambda: None, 0.5, 0.25)]

    monkeypatch.setattr(bottleneck, "programs", programs)
    arguments = ["--spec", "res4_321x481", "--density", ".5", "--runs=1"]
    assert numbers(capsys, "bottleneck", *arguments)["backward"] is False
    got = numbers(capsys, "bottleneck", *arguments, "--backward", "--scope=conv3x3")
    assert got["backward"] is True
    assert [(row["layer"], row["label"]) for row in got["rows"]] == [
        ("res4_321x481", "plain"), ("res4_321x481", "sparse"),
    ]  # fmt: skip
    assert seen == [
        ("res4_321x481", Settings((0.5,), runs=1), "residual"),
        ("res4_321x481", Settings((0.5,), runs=1, backward=True), "conv3x3"),
    ]


def test_break_even(tmp_path, capsys, monkeypatch):
    """A line a layer, with the times that are measured: of gather, and in brackets of what None picks."""

    def measure(layer, programs, runs):
        assert (layer, runs) == (SMALLEST, 3)
        dense, *others = [(program.label, program.mac_ratio) for program in programs]
        assert dense == ("dense", 1.0)
        assert [label for label, _ in others] == ["gather", "auto"] * 6
        factors = {"dense": 1.0, "gather": 2.0, "auto": 0.5}
        shares = [1.0, *(density for density in break_even.DENSITIES for _ in range(2))]
        return [
            Timed(layer, program.label, share, Timing(8.0, 8.0, 8.0, 8.0), factors[program.label] * share, 1)
            for program, share in zip(programs, shares, strict=True)
        ]

    monkeypatch.setattr(break_even, "LAYERS", (SMALLEST,))
    monkeypatch.setattr(break_even, "measure", measure)
    folder = tmp_path / "new"
    assert main.main(["bench", "break-even", f"--out={folder}", "--mask=blobs", "--runs=3"]) == 0
    head, _, names, _, line, *_ = capsys.readouterr().out.splitlines()
    assert "masks of kind blobs" in head
    assert names.split(" | ")[3:9] == ["0.1", "0.3", "0.5", "0.7", "0.9", "1"]
    cells = line.strip("| ").split(" | ")
    assert cells[:5] == [SMALLEST, "256", "8.0", "0.20 (0.05)", "0.60 (0.15)"]
    assert cells[8] == "2.00 (0.50)"
    assert 0 <= float(cells[9]) <= 1
    assert (folder / "sparse-execution.png").is_file()


def test_loader(tiny, capsys):
    arguments = ["--workers", "0", "--batches", "1", "--set", "training.batch_size=2"]
    assert main.main(["bench", "loader", f"--config={tiny}", *arguments]) == 0
    heads, row = capsys.readouterr().out.splitlines()
    assert heads.split("  ")[0] == "workers"
    workers, start, images, processor = map(float, row.split())
    assert workers == 0
    assert min(start, processor) >= 0 < images


def test_loaders_by_the_clock(tiny, capsys, monkeypatch):
    """Three images in 20 ms, after a first batch in 100 ms that is no part of the speed."""

    class Batches:
        def start(self):
            return self

        def __iter__(self):
            return self

        def __next__(self):
            time.sleep(0.02 if self.begun else 0.1)
            self.begun = True
            return {"image": np.zeros((3, 1, 1, 3))}

        def close(self):
            self.begun = False

        begun = False

    monkeypatch.setattr(inputs, "train_loader", lambda config: Batches())
    found = loader.timed(read_run(tiny), 5)
    assert found.images == 15
    assert found.start >= 0.1
    assert found.seconds >= 0.1
    assert found.cpu < 0.1  # it slept
    monkeypatch.setattr(loader, "timed", lambda config, batches: loader.Timed(1.5, 30, 2.0, 0.6))
    assert main.main(["bench", "loader", f"--config={tiny}", "--workers", "0", "2"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == [["0", "1.5", "15.0", "20.0"], ["2", "1.5", "15.0", "20.0"]]


def test_training_steps(capsys, monkeypatch):
    asked = []

    def programs(size, batch, frozen):
        asked.append((size, batch, frozen))
        return dict.fromkeys(("dynpix", "torch"), lambda: None)

    def timed(listed, runs):
        assert (list(listed), runs) == (["dynpix", "torch"], 3)
        return {name: Timing(ms, ms, ms, ms - 1) for name, ms in (("dynpix", 50.0), ("torch", 40.0))}

    monkeypatch.setattr(train_step, "programs", programs)
    monkeypatch.setattr(train_step, "timed", timed)
    options = ["--size=32x48", "--batch", "1", "2", "--frozen", "stem", "res2", "--runs=3"]
    assert main.main(["bench", "train-step", *options]) == 0
    assert asked == [((32, 48), batch, ["stem", "res2"]) for batch in (1, 2)]
    text = capsys.readouterr().out
    assert "resnet50, 32x48, batch 2, all but stem, res2 trained" in text
    assert text.count("| dynpix | 50 | 49 | 1.25 |\n| torch | 40 | 39 | 1.00 |") == 2
    assert "--runs 0 --batch 1: expected at least 1" in refusal(
        capsys, "train-step", "--runs=0", "--batch", "1"
    )


class InSteps:
    """As much of a network that predicts in steps as `bench budgets` calls itself."""

    def init(self, key, batch):
        return {"params": batch["image"].shape}

    def steps(self, variables, images, inputs, routing):
        raise NotImplementedError


def test_budgets(tiny, capsys, monkeypatch):
    def arrivals(predictor, image, inputs, routing, *, runs):
        assert (image.shape, runs) == ((1, 4, 6, 3), 2)
        assert (routing.mode, dict(routing.masks)) == ("dense", {"stage2": ("blobs", 0.25)})
        return 10.0, 20.0, 40.0

    def kept(predictor, *arguments, budgets_ms, runs):
        assert budgets_ms == [10.0, 30.0]
        return [budgets.InBudget(10.0, (1, 1), (9.0, 10.0)), budgets.InBudget(30.0, (3, 2), (20.0, 33.0))]

    monkeypatch.setattr(budgets, "read_network", lambda args: Network("toy", InSteps(), (4, 6), None))
    monkeypatch.setattr(budgets, "gate_shapes", lambda system, size: {"stage2": (1, 1, 2)})
    masks = lambda system, kind, key, shapes, density: dict.fromkeys(shapes, (kind, density))  # noqa: E731
    monkeypatch.setattr(budgets, "draw_masks", masks)
    monkeypatch.setattr(budgets, "StepPredictor", lambda *_: SimpleNamespace(run=lambda *_: iter(())))
    monkeypatch.setattr(budgets, "arrivals", arrivals)
    monkeypatch.setattr(budgets, "kept", kept)
    options = ["--size=4x6", "--mode=dense", "--density=.25", "--budgets", ".25", ".75", "--runs=2"]
    assert main.main(["bench", "budgets", f"--config={tiny}", *options]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[2:5] == [["1", "10.0", "25.0%"], ["2", "20.0", "50.0%"], ["3", "40.0", "100.0%"]]
    assert rows[6:] == [["10.0", "25%", "1", "1.00"], ["30.0", "75%", "2,3", "1.10"]]
    monkeypatch.undo()
    line = refusal(capsys, "budgets", f"--config={tiny}", "--size=32x48")
    assert "its network does not predict in steps" in line


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
        (["break-even", "--out=x", "--runs=0"], "--runs 0: expected at least 1"),
        (["break-even", f"--out={__file__}"], f"--out: {__file__}: cannot be made: File exists"),
        (["row-costs", "--runs=0"], "--runs 0: expected at least 1"),
        (["row-costs", "--width=0"], "--width 0: expected at least 1"),
        (["row-costs", "--blocks=0"], "--blocks 0: expected at least 1"),
        (["row-costs", "--density", ".5", "2"], "--density 2: expected a share of positions in [0, 1]"),
        (["loader", "--config=x.py", "--batches=0"], "--batches 0: expected at least 1"),
        (
            ["loader", "--config=x.py", "--set", "seed=1", "training.workers=7"],
            "--set training.workers: this program sets it; give --workers instead",
        ),
        (
            ["precision", "--config=x.py", "--workdir=x", "--set", "model.compute_dtype=float32"],
            "--set model.compute_dtype: this program trains with each of float32, bfloat16",
        ),
        (["device", "--minutes=-1"], "--minutes -1: expected a number from 0 on"),
        (["device", "--minutes=nan"], "--minutes nan: expected a number from 0 on"),
        (
            ["device", "--only=predictions", "--implementation", "gather"],
            "--implementation: predictions are of the kernels of the platform; leave it out",
        ),
        (["budgets", "--config=x.py", "--size=32x48", "--runs=0"], "--runs 0: expected at least 1"),
        (["budgets", "--config=x.py", "--size=32x48", "--density=2"], "--density 2: expected a share"),
        (
            ["budgets", "--config=x.py", "--size=32x48", "--budgets", ".5", "0"],
            "--budgets 0: expected a share of the full time, above 0",
        ),
        (["pixelnet-sampling", "--small", "--runs=-1"], "--runs -1: expected at least 0"),
        (["pixelnet-sampling", "--width=0"], "--width 0: expected at least 1"),
        (["pixelnet-sampling", "--small", "--out=/"], "--out /: is a folder; expected a file"),
        (
            ["pixelnet-sampling", "--small", f"--out={__file__}/numbers.json"],
            f"--out: {__file__}: cannot be made: File exists",
        ),
        (["runtimes", "--out", __file__], f"--out: {__file__}: cannot be made: File exists"),
        (["device", "--small", "--out", __file__], f"--out: {__file__}: cannot be made: File exists"),
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
