"""8 devices give the losses of 1: the toy on any mesh, and with several turns at a batch.

One process trains all that needs 8 devices, `python -m tests.training.test_8_devices`, and prints it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    warnings.simplefilter("error")  # as in the tests

import chex
import jax
import numpy as np
import pytest

from dynpix_jax.training.checkpoints import Checkpoints, load_variables
from dynpix_jax.training.loop import train
from tests.training import toy, turns

ROOT = Path(__file__).resolve().parents[2]
MESH = {"data": 4, "model": 2}
MESHES: dict[str, dict[str, Any]] = {
    "data": {},
    "rules": {"mesh": {**MESH, "rules": [["(stem|extra)/kernel", 3]]}, "sharding": "rules"},
    "fsdp": {"mesh": MESH, "sharding": "fsdp"},
}
HELD = {"data": 112 + 8 + 20 + 5, "rules": 58 + 8 + 12 + 5, "fsdp": 31 + 8 + 8 + 2}
"""Numbers of the parameters of stem, norm, extra and head that each device holds: kernels are split."""
OPTIMIZERS = ("sgd", "adamw")


def trained(**training: Any) -> dict[str, Any]:
    """Losses of five steps with these settings, and how many parameters the first device holds then."""
    stages = ({"name": "deep", "steps": 5, "learning_rate": 0.1, "model": {"deep": True}},)
    run = toy.run(batch_size=8, log_every=1, checkpoint_every=0, stages=stages, **training)
    record = turns.Record()
    with tempfile.TemporaryDirectory() as workdir:
        params = train(run, workdir, batches=toy.batches(8), writers=[record]).state.params
    held = sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(params))
    return {"losses": [line["loss"] for line in record.lines], "held": held}


def lines_of_turns(folder: str) -> dict[str, list[dict[str, Any]]]:
    """A line of metrics for each step with each optimizer."""
    return {name: turns.run(f"{folder}/{name}", name) for name in OPTIMIZERS}


Found = Callable[[], dict[str, Any]]


@pytest.fixture(scope="module")
def eight() -> Iterator[Found]:
    """What the other process prints, which begins before it is asked for."""
    environment = {
        **os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.training.test_8_devices"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=-1, stderr=-1, text=True) as process:

        @cache
        def found() -> dict[str, Any]:
            out, errors = process.communicate(timeout=900)
            assert process.returncode == 0, errors
            return json.loads(out.splitlines()[-1])

        yield found
        process.kill()


def test_on_any_mesh(eight: Found) -> None:
    one = trained()["losses"]
    assert len(one) == 5
    assert one[-1] < one[0]
    for name, found in eight()["meshes"].items():
        np.testing.assert_allclose(found["losses"], one, atol=1e-5)
        assert found["held"] == HELD[name]


def test_in_turns_and_a_run_continues(eight: Found, tmp_path: Path) -> None:
    one = lines_of_turns(str(tmp_path))
    for name, lines in one.items():
        assert [line["dark/labelled"] for line in lines] == [1, 0, 1, 1, 0, 1]
        for key in ("loss", "bright", "dark", "grad_norm"):
            given, expected = ([line[key] for line in which] for which in (eight()["turns"][name], lines))
            np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-6)
        assert lines[-1]["loss"] < lines[0]["loss"]

    # From the checkpoint in the middle: the same end. The optimizer's state of turns is saved and restored.
    folder = tmp_path / "adamw"
    whole = load_variables(folder)[0]
    shutil.rmtree(Checkpoints(folder / "checkpoints").path(6))
    turns.run(str(folder), "adamw")
    chex.assert_trees_all_equal(load_variables(folder)[0], whole)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        meshes = {name: trained(**training) for name, training in MESHES.items()}
        print(json.dumps({"meshes": meshes, "turns": lines_of_turns(folder)}))
