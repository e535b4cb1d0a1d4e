"""What the toy cannot show: gumbel gates, the real loader and `adapt` on other devices and after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from dynpix_jax.core.trees import named_leaves
from dynpix_jax.training.checkpoints import Checkpoints, load_variables
from tests.training.gated import STEPS, train_gated

ROOT = Path(__file__).resolve().parents[2]


def start(workdir: Path, *options: str, flags: str = "") -> subprocess.Popen[str]:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    environment["XLA_FLAGS"] = f"{os.environ['XLA_FLAGS']} {flags}"
    command = [sys.executable, "-m", "tests.training.gated", str(workdir), *options]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=-1, stderr=-1, text=True)


def finish(process: subprocess.Popen[str], status: int = 0) -> None:
    _, errors = process.communicate(timeout=900)
    assert process.returncode == status, errors


def lines(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def train_here(workdir: Path) -> None:
    workdir.mkdir(exist_ok=True)
    assert train_gated(workdir).finished


def test_gated_run_on_8_devices_and_after_a_kill(tmp_path: Path) -> None:
    one, eight, killed = (tmp_path / name for name in ("one", "eight", "killed"))
    on_8_devices = start(eight, flags="--xla_force_host_platform_device_count=8")
    train_here(one)
    # Killed in the gated stage, two updates after the last checkpoint's. The folder's cache has its programs.
    dying = start(killed, "--kill-at", "4")
    finish(on_8_devices)
    finish(dying, -signal.SIGKILL)

    # 8 devices: the same losses, of the step without gates and of those with them.
    expected, found = lines(one), lines(eight)
    assert [line["stage"] for line in expected] == ["base"] * STEPS[0] + ["gates"] * STEPS[1]
    assert 0 < expected[-1]["density"] < 1
    assert len({line["loss"] for line in expected}) == sum(STEPS)
    np.testing.assert_allclose(
        [line["loss"] for line in found], [line["loss"] for line in expected], rtol=1e-5
    )

    # The checkpoint of step 2 is written while training goes on; one that is not whole does not count.
    assert Checkpoints(killed / "checkpoints").steps() in ([1], [1, 2])
    train_here(killed)
    a, b = (dict(named_leaves(load_variables(workdir)[0])) for workdir in (one, killed))
    assert a.keys() == b.keys()
    for name, leaf in a.items():
        assert leaf.tobytes() == b[name].tobytes(), name
