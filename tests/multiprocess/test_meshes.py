"""Losses and final parameters on any mesh are those of one process with one device."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.multiprocess.job import assert_all_ended, run_job

pytestmark = pytest.mark.multiprocess
SYSTEMS = ("pag", "anytime", "astmt")


def trained(out: Path, system: str, processes: int, devices: int) -> dict[str, np.ndarray]:
    """What each mesh of a job gave."""
    command = ["-m", "tests.multiprocess.meshes", str(out), system]
    ended = run_job(command, processes, devices=devices, timeout=600)
    assert_all_ended(ended, [0] * processes)
    with np.load(out) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, np.ndarray]]:
    """System -> what one process with one device gives."""
    return cache(lambda system: trained(tmp_path_factory.mktemp(system) / "one.npz", system, 1, 1))


def assert_same(found: dict[str, np.ndarray], alone: dict[str, np.ndarray], meshes: int) -> None:
    expected = {name.removeprefix("replicated/1/1"): value for name, value in alone.items()}
    assert sum(name.endswith("/loss") for name in found) == meshes
    for name, value in found.items():
        rest = name[re.match(r"\w+/\d+/\d+", name).end() :]  # type: ignore[union-attr]
        np.testing.assert_allclose(value, expected[rest], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("system", SYSTEMS)
def test_two_processes(system: str, alone: Any, tmp_path: Path) -> None:
    """Meshes of 4 x 1, 2 x 2 and 1 x 4 devices: model axes within a process and across both."""
    assert_same(trained(tmp_path / "two.npz", system, 2, 2), alone(system), 4)


def test_four_processes(alone: Any, tmp_path: Path) -> None:
    """Meshes of 8 x 1, 4 x 2 and 1 x 8."""
    assert_same(trained(tmp_path / "four.npz", "pag", 4, 2), alone("pag"), 4)
