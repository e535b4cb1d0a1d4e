"""Exported programs give what the predictor gives, also in a process without this library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jax import export

import dynpix_jax
from dynpix_jax.cli.main import main
from dynpix_jax.serving.export import to_stablehlo

ROOT = Path(__file__).resolve().parents[2]
IMAGE = np.random.default_rng(1).integers(0, 256, (1, 32, 40, 3), np.uint8)


@pytest.fixture(scope="module")
def predictor(tiny_run):
    return dynpix_jax.load(tiny_run.workdir)


@pytest.fixture(scope="module")
def dense(tiny_run, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("exported") / "tiny.stablehlo"
    assert main(["export", f"--workdir={tiny_run.workdir}", "--to=stablehlo", f"--out={file}"]) == 0
    return file


def test_dense_for_any_size_and_all_platforms(dense, predictor):
    program = export.deserialize(dense.read_bytes())
    assert program.platforms == ("cpu", "cuda", "tpu")
    for images in (IMAGE, np.repeat(IMAGE[:, :24, :32], 2, axis=0)):
        found = program.call(images)
        assert set(found) == {"boundaries"}
        np.testing.assert_allclose(
            found["boundaries"], predictor(images, mode="dense")["boundaries"], atol=1e-5
        )


def test_it_runs_without_the_library(dense, predictor, tmp_path):
    np.save(tmp_path / "image.npy", IMAGE)
    program = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("dynpix_jax", "flax"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
import numpy as np
from jax import export
program = export.deserialize(open(sys.argv[1], "rb").read())
np.save("found.npy", program.call(np.load("image.npy"))["boundaries"])
"""
    command = [sys.executable, "-c", program, str(dense)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = predictor(IMAGE, mode="dense")["boundaries"]
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), expected, atol=1e-5)


def test_sparse_of_one_size(predictor):
    data = to_stablehlo(predictor, size=(32, 40), mode="sparse", platforms=("cpu", "cuda", "tpu"))
    program = export.deserialize(data)
    expected = predictor(IMAGE)["boundaries"]
    np.testing.assert_allclose(program.call(IMAGE)["boundaries"], expected, atol=1e-5)
    with pytest.raises(ValueError, match="shape"):
        program.call(IMAGE[:, :16])


def test_the_platforms_that_are_named(tiny_run, tmp_path):
    file = tmp_path / "tiny.stablehlo"
    command = ["export", f"--workdir={tiny_run.workdir}", "--to=stablehlo", f"--out={file}", "--size=32x40"]
    assert main([*command, "--platforms", "tpu", "cpu"]) == 0
    assert set(export.deserialize(file.read_bytes()).platforms) == {"cpu", "tpu"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to=stablehlo", "--title=x"], "--title: it is for --to safetensors"),
        (["--to=safetensors", "--batch=2"], "--batch: it is for --to stablehlo"),
        (["--to=stablehlo", "--batch=0"], "--batch 0: expected at least 1 image"),
        (["--to=safetensors", "--out=x.npz"], "x.npz: weights are written as .safetensors"),
    ],
)
def test_mistakes(options, message, tiny_run, capsys):
    assert main(["export", f"--workdir={tiny_run.workdir}", *options]) == 2
    assert message in capsys.readouterr().err


def test_without_flatbuffers_the_extra_is_named(tiny_run, tmp_path):
    program = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "flatbuffers":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
from dynpix_jax.cli.common import run_main
from dynpix_jax.cli.main import main
run_main(lambda: main(sys.argv[1:]), "dynpix")
"""
    arguments = ["export", f"--workdir={tiny_run.workdir}", "--to=stablehlo", f"--out={tmp_path / 'x'}"]
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.endswith("needs flatbuffers, which is not installed: pip install 'dynpix_jax[export]'")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x").exists()
