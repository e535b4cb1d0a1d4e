"""Losses and final parameters on any mesh are those of one process with one device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.multiprocess.job import assert_all_ended, run_job

pytestmark = pytest.mark.multiprocess
SYSTEMS = ("pag", "anytime", "astmt")


def trained(out: Path, systems: tuple[str, ...], processes: int, devices: int) -> dict[str, np.ndarray]:
    """What each mesh of a job gave."""
    command = ["-m", "tests.multiprocess.meshes", str(out), *systems]
    ended = run_job(command, processes, devices=devices, timeout=600)
    assert_all_ended(ended, [0] * processes)
    with np.load(out) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    return trained(tmp_path_factory.mktemp("alone") / "one.npz", SYSTEMS, 1, 1)


def assert_same(found: dict[str, np.ndarray], alone: dict[str, np.ndarray], meshes: int) -> None:
    losses = [name for name in found if name.endswith("/loss")]
    assert len(losses) == meshes
    for name, value in found.items():
        system = name.split("/")[0]
        rest = name.split(":", 1)[1] if ":" in name else None
        one = f"{system}/replicated/1/1" + ("/loss" if rest is None else f":{rest}")
        np.testing.assert_allclose(value, alone[one], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("system", SYSTEMS)
def test_two_processes(system: str, alone: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Meshes of 4 x 1, 2 x 2 and 1 x 4 devices: model axes within a process and across both."""
    assert_same(trained(tmp_path / "two.npz", (system,), 2, 2), alone, 4)


def test_four_processes(alone: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Meshes of 8 x 1, 4 x 2 and 1 x 8."""
    assert_same(trained(tmp_path / "four.npz", ("pag",), 4, 2), alone, 4)
