"""Whatever happens to one process of a job, all end soon, and say who failed and why."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from dynpix_jax.core.trees import named_leaves
from dynpix_jax.training.checkpoints import Checkpoints, load_variables
from dynpix_jax.training.loop import train
from tests.multiprocess.job import Ended, assert_all_ended, run_job
from tests.training import toy
from tests.training.test_resume import Stop

pytestmark = pytest.mark.multiprocess
TOY = ("-m", "tests.multiprocess.run_toy")
HOST = socket.gethostname()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process with one device that nothing happened to."""
    workdir = tmp_path_factory.mktemp("whole")
    train(toy.run(), workdir, batches=toy.batches(4), writers=())
    return workdir


def job(workdir: Path, *own: Sequence[str], processes: int = 2, devices: int = 2) -> list[Ended]:
    return run_job([*TOY, str(workdir)], processes, devices=devices, own=own or [()] * processes)


def assert_continues(workdir: Path, whole: Path) -> None:
    """The run can be finished, here by one process, with the result of one that was left alone."""
    assert train(toy.run(), workdir, batches=toy.batches(4), writers=()).finished
    assert_same(workdir, whole)


def assert_same(workdir: Path, whole: Path) -> None:
    found, expected = (dict(named_leaves(load_variables(one)[0])) for one in (workdir, whole))
    for name, leaf in expected.items():
        np.testing.assert_allclose(found[name], leaf, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("what", "saved", "patience"),
    [(["--signal-at=5"], 4, 30), (["--in-save=4"], 2, 8), (["--in-evaluation"], 4, 8)],
    ids=["training", "saving", "evaluating"],
)
def test_a_process_is_killed(tmp_path: Path, whole: Path, what: list[str], saved: int, patience: int) -> None:
    ended = job(tmp_path, [f"--patience={patience}"], what)
    assert_all_ended(ended, [1, -9])
    assert f"stopped: process 1 ({HOST}) failed: no sign of life for {patience} s" in ended[0].err
    assert Checkpoints(tmp_path / "checkpoints").steps()[-1] == saved
    assert_continues(tmp_path, whole)


def test_the_coordinator_is_killed(tmp_path: Path, whole: Path) -> None:
    ended = job(tmp_path, ["--signal-at=5"], [])
    assert_all_ended(ended, [-9, 1])
    assert f"stopped: process 0 ({HOST}) failed: the coordinator does not answer" in ended[1].err
    assert_continues(tmp_path, whole)


@pytest.mark.parametrize("culprit", [0, 1])
def test_an_unreadable_image(tmp_path: Path, whole: Path, culprit: int) -> None:
    own: list[list[str]] = [[], []]
    own[culprit] = ["--unreadable-at=5"]
    ended = job(tmp_path, *own)
    assert_all_ended(ended, [2, 2], 30)
    assert ended[culprit].err.splitlines()[-1] == "run_toy.py: corrupt image 3.jpg"
    said = f"stopped: process {culprit} ({HOST}) failed: corrupt image 3.jpg"
    assert said in ended[1 - culprit].err
    assert Checkpoints(tmp_path / "checkpoints").steps()[-1] == 4
    assert_continues(tmp_path, whole)


def test_mistakes_before_training(tmp_path: Path) -> None:
    ended = job(tmp_path, [], ["--mistake"])
    assert_all_ended(ended, [2, 2], 30)
    assert f"stopped: process 1 ({HOST}) failed: no such data root" in ended[0].err
    ended = job(tmp_path, ["--scale=2"], [])
    assert_all_ended(ended, [2, 2], 30)
    assert "processes differ: config.training.stages[0].model.scale is 2.0 on process 0" in ended[1].err
    assert "and 1.0 on process 1" in ended[0].err
    assert not (tmp_path / "checkpoints").exists()


def test_a_bug(tmp_path: Path) -> None:
    ended = job(tmp_path, [], ["--bug-at=5"])
    assert_all_ended(ended, [1, 1], 30)
    assert "Traceback" in ended[1].err
    assert "failed: RuntimeError: a bug" in ended[0].err


def test_a_workdir_on_a_disk_of_each_host(tmp_path: Path) -> None:
    """The same path; in the second process another folder is mounted there."""
    workdir, other = tmp_path / "run", tmp_path / "other"
    workdir.mkdir()
    other.mkdir()
    mount = f'mount --bind {other} {workdir} && exec "$@"'
    apart = ["unshare", "--mount", "--map-root-user", "sh", "-c", mount, "sh"]
    if shutil.which("unshare") is None or run_alone([*apart, "true"]):
        pytest.skip("this machine lets nobody mount a folder")
    ended = run_job([*TOY, str(workdir)], prefix=[(), apart])
    assert_all_ended(ended, [2, 2], 30)
    for one in ended:
        assert f"workdir {workdir}: process 1 ({HOST}) does not see what process 0 writes there" in one.err


def run_alone(command: list[str]) -> int:
    return subprocess.run(command, capture_output=True).returncode


def test_sigterm_to_one_stops_all_with_a_checkpoint(tmp_path: Path, whole: Path) -> None:
    ended = job(tmp_path, [], ["--signal=SIGTERM", "--signal-at=3"])
    assert_all_ended(ended, [0, 0])
    stopped = [one.out.splitlines()[-1] for one in ended]
    assert stopped[0] == stopped[1]
    step = int(stopped[0].removeprefix("stopped "))
    assert Checkpoints(tmp_path / "checkpoints").steps()[-1] == step
    assert_continues(tmp_path, whole)


def test_one_process_then_four_then_two(tmp_path: Path, whole: Path) -> None:
    """Another number of processes and devices reads the same data, and gives the same numbers."""
    assert not train(toy.run(), tmp_path, batches=toy.batches(4), writers=[Stop(3)]).finished
    ended = job(tmp_path, *[["--signal=SIGTERM", "--signal-at=6"]] * 4, processes=4, devices=1)
    assert_all_ended(ended, [0] * 4)
    assert not ended[0].out.endswith("finished 11\n")
    ended = job(tmp_path)
    assert_all_ended(ended, [0, 0])
    assert all(one.out.endswith("finished 11\n") for one in ended)
    assert_same(tmp_path, whole)
