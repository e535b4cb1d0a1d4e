"""Users' mistakes at the command line: one line on stderr that names the thing, status 2, no traceback."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from dynpix_jax import papers
from dynpix_jax.cli import eval as eval_program
from dynpix_jax.cli import main
from dynpix_jax.cli import train as train_program
from dynpix_jax.cli.common import call
from dynpix_jax.core.errors import UserError
from dynpix_jax.run_config import read_run
from tests.tiny import SHORT_CONFIG, TINY_CONFIG, TinyRun
from tests.weights import torch_zip

ROOT = Path(__file__).resolve().parents[2]
BSDS500 = ROOT / "configs" / "pag" / "bsds500.py"


def run(program: str, *arguments: object) -> int:
    """The status of `train.py`, `eval.py` or `dynpix`, as their `__main__` gives it."""
    argv = [str(argument) for argument in arguments]
    if program == "dynpix":
        return main.main(argv)
    module = {"train.py": train_program, "eval.py": eval_program}[program]
    return call(program, lambda: module.main(argv))


def refusal(capsys: pytest.CaptureFixture[str], program: str, *arguments: object) -> str:
    """The one line with which a program refuses."""
    capsys.readouterr()
    assert run(program, *arguments) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(program)
    (line,) = errors.splitlines()
    return line


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.py"
    file.write_text(TINY_CONFIG)
    return file


MISSPELT = [
    ('"evaluation": {', '"evaluatoin": {', "config.evaluatoin: unknown key; did you mean 'evaluation'?"),
    ('"name": "tiny", ', "", "config.name: missing"),
    ('"eval": {', '"evl": {', "config.data.evl: unknown key; did you mean 'eval'?"),
    ('"limit": 2', '"limti": 2', "config.evaluation.limti: unknown key; did you mean 'limit'?"),
    ('"keep": 1', '"kepe": 1', "config.training.kepe: unknown key; did you mean 'keep'?"),
]


@pytest.mark.parametrize(("old", "new", "message"), MISSPELT)
def test_misspelt_key(config: Path, old: str, new: str, message: str, capsys, tmp_path) -> None:
    assert old in TINY_CONFIG
    config.write_text(TINY_CONFIG.replace(old, new))
    options = [f"--config={config}", f"--workdir={tmp_path / 'run'}"]
    photo = tmp_path / "photo.jpg"
    for command in (
        ["train.py", *options],
        ["eval.py", *options],
        ["dynpix", "check-config", config],
        ["dynpix", "flops", f"--config={config}", "--size=48x64"],
        ["dynpix", "predict", *options, f"--out={tmp_path / 'out'}", photo],
    ):
        assert message in refusal(capsys, *command)
    assert not (tmp_path / "run").exists()


def test_what_a_later_stage_has_wrong_is_found_first(config: Path, capsys, tmp_path) -> None:
    gates = '"model": {"gate": gate}}'
    assert gates in TINY_CONFIG
    for changed, message in (
        (gates.replace('"gate"', '"gaet"'), "stage 'gates': config.model.gaet: unknown key"),
        (gates.replace("}}", '}, "frozen": ("res9.*",)}'), "no parameter is matched by 'res9.*'"),
        (gates.replace("gate}", '{**gate, "rho": 1.5}}'), "stage 'gates': config.model.gate.rho: 1.5;"),
    ):
        config.write_text(TINY_CONFIG.replace(gates, changed))
        assert message in refusal(capsys, "train.py", f"--config={config}", f"--workdir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("argument", ["rho=1.5", "variant=gated,rho=1.5", "variant=gated,rho=0"])
def test_rho_that_is_no_density(argument: str, capsys, tmp_path) -> None:
    spec, rho = f"{BSDS500}:{argument}", argument.rpartition("=")[2]
    message = f"config argument rho={rho}: expected a density in (0, 1]"
    assert message in refusal(capsys, "train.py", f"--config={spec}", f"--workdir={tmp_path / 'run'}")
    assert message in refusal(capsys, "dynpix", "check-config", spec)


@pytest.mark.parametrize(
    "argument", ["rho=0.7", "variant=multipool,gate_scope=residual", "variant=multipool,drop_blocks=2"]
)
def test_argument_that_the_variant_does_not_read(argument: str, capsys) -> None:
    name = argument.rpartition(",")[2].partition("=")[0]
    line = refusal(capsys, "dynpix", "check-config", f"{BSDS500}:{argument}")
    assert f"config argument {name}: variant=" in line
    assert "does not read it" in line


def test_missing_data_root(capsys, tmp_path) -> None:
    spec = f"{BSDS500}:root={tmp_path / 'nowhere'}"
    for program in ("train.py",):
        line = refusal(capsys, program, f"--config={spec}", f"--workdir={tmp_path / 'run'}")
        assert f"bsds500: folder not found: {tmp_path / 'nowhere'}" in line


@pytest.fixture
def bsds(tmp_path: Path) -> Path:
    """A folder in the official layout with two small images a split; the first of `train` is corrupt."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        images, truth = (tmp_path / "data" / name / split for name in ("images", "groundTruth"))
        images.mkdir(parents=True)
        truth.mkdir(parents=True)
        for number in (11, 12):
            Image.fromarray(rng.integers(0, 256, (32, 48, 3), np.uint8)).save(images / f"{number}.jpg")
            annotator = {"Boundaries": np.eye(32, 48, dtype=np.uint8)}
            cells = np.empty((1, 1), object)
            cells[0, 0] = annotator
            savemat(truth / f"{number}.mat", {"groundTruth": cells})
    broken = tmp_path / "data" / "images" / "train" / "11.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    return tmp_path / "data"


def test_corrupt_jpeg_is_named(config: Path, bsds: Path, capsys, tmp_path) -> None:
    source = f'{{"source": {{"name": "bsds500", "root": {str(bsds)!r}, "split": "train"}}}}'
    config.write_text(TINY_CONFIG.replace('{"source": {**scenes, "split": "train"}}', source))
    line = refusal(
        capsys, "train.py", f"--config={config}", f"--workdir={tmp_path / 'run'}",
        "--set", "training.batch_size=2",
    )  # fmt: skip
    assert str(bsds / "images" / "train" / "11.jpg") in line


def test_weights_of_another_architecture(tiny_run: TinyRun, capsys, tmp_path) -> None:
    other = tmp_path / "tiny.py"
    wider = SHORT_CONFIG.replace('"width": 8', '"width": 16')
    other.write_text(wider.replace('"keep": 1', '"init_from": ""'))
    line = refusal(
        capsys, "train.py", f"--config={other}", f"--workdir={tmp_path / 'run'}",
        "--set", f"training.init_from={tiny_run.workdir}",
    )  # fmt: skip
    assert "train.py: weights: " in line
    assert "has shape (8,)" in line
    assert "expects (16,)" in line

    np.savez(tmp_path / "small.npz", **{"conv1.weight": np.ones((8, 3, 7, 7), np.float32)})
    line = refusal(
        capsys, "dynpix", "import-weights", "--arch=resnet50", f"--source={tmp_path / 'small.npz'}",
        f"--out={tmp_path / 'out.safetensors'}",
    )  # fmt: skip
    assert "conv1.weight" in line


def test_weights_without_moments(config: Path) -> None:
    settings = read_run(config)
    system = papers.build(settings.stages[0].model)
    images = {"image": np.zeros((1, 32, 48, 3), np.uint8)}
    fresh = jax.eval_shape(lambda key: system.init(key, images), jax.random.key(0))
    given = {name: dict(tree["backbone"]) for name, tree in fresh.items()}
    system.adapt(given, fresh)
    del given["batch_stats"]["res3_1"]
    with pytest.raises(UserError, match=r"weights: no res3_1/bn1/mean among their batch_stats"):
        system.adapt(given, fresh)


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.marker}",)


def test_pickle_that_tries_to_run_code(capsys, tmp_path) -> None:
    marker = tmp_path / "ran"
    path = torch_zip.save(tmp_path / "evil.pth", pickled=pickle.dumps({"w": Malicious(marker)}, 2))
    out = tmp_path / "out.safetensors"
    line = refusal(
        capsys, "dynpix", "import-weights", "--arch=resnet50", f"--source={path}", f"--out={out}"
    )  # fmt: skip
    assert str(path) in line
    assert f"{os.system.__module__}.system" in line
    assert not marker.exists()
    assert not out.exists()


def test_workdir_of_another_config(tiny_run: TinyRun, capsys, tmp_path) -> None:
    options = [f"--config={tiny_run.config}", f"--workdir={tiny_run.workdir}"]
    changes = ["--set", "model.head_features=8"]
    photo = tmp_path / "photo.jpg"
    Image.new("RGB", (48, 32)).save(photo)
    for command in (
        ["train.py", *options, *changes],
        ["eval.py", *options, *changes],
        ["dynpix", "predict", photo, *options, f"--out={tmp_path / 'out'}", *changes],
    ):
        line = refusal(capsys, *command)
        assert f"{tiny_run.workdir} holds the run of another config" in line
        assert "config.model.head_features is 4 there and 8 here" in line


def test_workdir_that_cannot_be_written(config: Path, capsys, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    line = refusal(capsys, "train.py", f"--config={config}", f"--workdir={tmp_path / 'file' / 'run'}")
    assert f"workdir {tmp_path / 'file' / 'run'}" in line
    assert "give another --workdir" in line


def test_in_a_process_of_its_own(config: Path, tmp_path) -> None:
    """What `main` gives here is what the shell sees: status 2, one line, nothing on stdout."""
    arguments = ["train.py", f"--config={config}", f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(
        [sys.executable, *arguments, "--set", "training.batchsize=2"],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "batch_size" in line
