"""Real processes: a full disk, kills, orphans and two trainers of one workdir."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dynpix_jax.bench.soak import alive, children
from dynpix_jax.training.checkpoints import Checkpoints
from tests.tiny import SHORT_CONFIG

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte; skips where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def start(config: Path, workdir: Path, *settings: str) -> subprocess.Popen[str]:
    command = [sys.executable, "train.py", f"--config={config}", f"--workdir={workdir}"]
    command += ["--set", "training.log_every=1", *settings]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    environment["TF_CPP_MIN_LOG_LEVEL"] = (
        "3"  # the compiler complains where it takes minutes on a busy machine
    )
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(text: str, process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(process.communicate()[1])


def wait_for_checkpoint(workdir: Path) -> None:
    while not list((workdir / "checkpoints").glob("*/manifest.json")):
        time.sleep(0.02)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.py"
    file.write_text(SHORT_CONFIG.replace('"steps": 2', '"steps": 300'))
    return file


def fill(disk: Path) -> None:
    with pytest.raises(OSError, match="No space"), (disk / "filler").open("wb", 0) as file:  # noqa: PT012
        while True:
            file.write(bytes(512))


def test_a_full_disk_between_checkpoints_stops_nothing(config: Path, disk: Path) -> None:
    process = start(config, disk / "run")
    wait_for("train 5/", process)
    fill(disk)
    wait_for("train 60/", process)
    (disk / "filler").unlink()
    wait_for("train 80/", process)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert time.monotonic() - began < 20
    assert "stopped by SIGTERM" in out
    assert len(err.splitlines()) == 2  # once for each log
    steps = [line.split(",")[0] for line in (disk / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [f'{{"step": {step}' for step in range(1, len(steps) + 1)]


def test_a_full_disk_in_a_save_is_one_line(config: Path, disk: Path) -> None:
    process = start(config, disk / "run", "training.checkpoint_every=40")
    wait_for("train 45/", process)
    wait_for_checkpoint(disk / "run")
    fill(disk)
    began = time.monotonic()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert time.monotonic() - began < 60
    *logs, last = err.splitlines()
    assert all(line.startswith("train.py: log ") for line in logs), err
    assert "cannot be saved: No space left on device; 000000" in last
    assert last.endswith("stands")
    assert Checkpoints(disk / "run" / "checkpoints").newest() is not None


def no_inodes(disk: Path) -> None:
    (disk / "many").mkdir()
    with pytest.raises(OSError, match="No space"):  # noqa: PT012
        for number in itertools.count():
            (disk / "many" / str(number)).touch()


def read_only(disk: Path) -> None:
    """Mounts the folder of checkpoints upon itself: the disk has open logs and stays writable."""
    folder = str(disk / "run" / "checkpoints")
    for options in (["--bind", folder, folder], ["-o", "remount,ro,bind", folder]):
        subprocess.run(["mount", *options], check=True)


@pytest.mark.parametrize(
    ("harm", "cause"), [(no_inodes, "No space left on device"), (read_only, "Read-only file system")]
)
def test_a_disk_that_takes_no_checkpoint_is_one_line(
    config: Path, disk: Path, harm: Callable[[Path], None], cause: str
) -> None:
    subprocess.run(["mount", "-o", "remount,nr_inodes=1000,size=16m", str(disk)], check=True)
    process = start(config, disk / "run", "training.checkpoint_every=40")
    wait_for("train 42/", process)
    wait_for_checkpoint(disk / "run")
    harm(disk)
    assert process.stdout is not None
    *_, (told, _) = ((time.monotonic(), line) for line in process.stdout)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2, err
    assert time.monotonic() - told < 30  # below 5 on a machine that is not busy; orbax alone waits for 300
    assert f"cannot be saved: {cause}" in err.splitlines()[-1]
    assert "Traceback" not in err
    found = Checkpoints(disk / "run" / "checkpoints").newest()
    assert found is not None
    assert err.splitlines()[-1].endswith(f"{found.step:08d} stands")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_save(config: Path, tmp_path: Path, number: signal.Signals) -> None:
    process = start(config, tmp_path / "run")
    wait_for("train 5/", process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert f"stopped by {number.name}" in out
    assert len(Checkpoints(tmp_path / "run" / "checkpoints").steps()) == 1


def test_workers_end_with_their_trainer(config: Path, tmp_path: Path) -> None:
    process = start(config, tmp_path / "run", "training.workers=2")
    wait_for("train 5/", process)
    workers = children(process.pid)
    assert len(workers) >= 2
    process.kill()
    process.communicate()
    until = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(alive, workers))


def test_a_killed_worker_is_one_line_and_the_run_continues(config: Path, tmp_path: Path) -> None:
    process = start(config, tmp_path / "run", "training.workers=1")
    wait_for("train 5/", process)
    for pid in children(process.pid):
        if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(pid, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert len(err.splitlines()) == 1, err
    assert "a worker that loads batches was killed by SIGKILL" in err
    process = start(config, tmp_path / "run")
    wait_for("continuing from", process)
    process.kill()
    process.communicate()


def test_two_trainers_of_one_workdir(config: Path, tmp_path: Path) -> None:
    first = start(config, tmp_path / "run")
    wait_for("train 5/", first)
    began = time.monotonic()
    second = start(config, tmp_path / "run")
    _, err = second.communicate(timeout=60)
    assert second.returncode == 2
    assert time.monotonic() - began < 40
    assert len(err.splitlines()) == 1, err
    assert f"is in use by process {first.pid} on " in err
    first.kill()
    first.communicate()
    third = start(config, tmp_path / "run")  # the lock of a killed trainer is free
    wait_for("train 5/", third)
    third.kill()
    third.communicate()


def test_a_workdir_that_is_deleted_is_made_again(config: Path, tmp_path: Path) -> None:
    process = start(config, tmp_path / "run", "training.checkpoint_every=100")
    wait_for("train 5/", process)
    shutil.rmtree(tmp_path / "run")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "was removed; it is made again" in out
    assert {"config.json", "metrics.jsonl", "checkpoints", "tensorboard"} <= set(os.listdir(tmp_path / "run"))


def test_soak(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dynpix_jax.cli.main", "bench", "soak", "--minutes=1", "--steps=20"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same bit for bit" in done.stdout
    assert "WRONG" not in done.stdout
