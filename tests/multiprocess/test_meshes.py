"""Losses and final variables on any mesh, and on one after the other, are those of one device."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tests.multiprocess.job import assert_all_ended, run_job
from tests.multiprocess.meshes import FIELDS, STEPS, trained

pytestmark = pytest.mark.multiprocess
Found = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Found]:
    """System -> what this process with its one device gives."""
    one = [("replicated", 1, 1)]
    return cache(lambda system: trained(system, one, tmp_path_factory.mktemp(system)))


def assert_same(out: Path, system: str, processes: int, alone: Callable[[str], Found]) -> None:
    command = ["-m", "tests.multiprocess.meshes", str(out), system]
    assert_all_ended(run_job(command, processes, devices=2, timeout=600), [0] * processes)
    expected = alone(system)
    assert len(expected["loss"]) == STEPS
    with np.load(out) as found:
        assert set(found.files) == set(expected)
        for name in found.files:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("system", FIELDS)
def test_two_processes(system: str, alone: Callable[[str], Found], tmp_path: Path) -> None:
    """Meshes of 4 x 1, 2 x 2 and 1 x 4 devices: model axes within a process and across both."""
    assert_same(tmp_path / "two.npz", system, 2, alone)


def test_four_processes(alone: Callable[[str], Found], tmp_path: Path) -> None:
    """Meshes of 4 x 2 and 1 x 8."""
    assert_same(tmp_path / "four.npz", "pag", 4, alone)
