"""Starts the processes of a job on this machine, and tells how each ended."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Ended(NamedTuple):
    """How a process ended: its status, what it printed, and seconds after the job's start."""

    status: int
    out: str
    err: str
    seconds: float


def free_port() -> int:
    """A port that nobody listens to."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


def run_job(
    command: Sequence[str],
    processes: int = 2,
    *,
    devices: int = 2,
    own: Sequence[Sequence[str]] = (),
    prefix: Sequence[Sequence[str]] = (),
    timeout: float = 300,
) -> list[Ended]:
    """Runs `python COMMAND --distributed=...` in each process.

    Args:
        devices: Of each process.
        own: More arguments of each process.
        prefix: What each command is run by.
        timeout: Seconds until all must have ended.
    """
    port = free_port()
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
    started, start = [], time.monotonic()
    for index in range(processes):
        more = [*(own[index] if own else ()), f"--distributed=localhost:{port},{processes},{index}"]
        before = prefix[index] if prefix else ()
        files = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115, closed below
        line = [*before, sys.executable, *command, *more]
        process = subprocess.Popen(line, cwd=ROOT, env=environment, stdout=files[0], stderr=files[1])
        started.append((process, files))
    ended: dict[int, float] = {}
    try:
        while len(ended) < processes and time.monotonic() - start < timeout:
            time.sleep(0.1)
            for index, (process, _) in enumerate(started):
                if process.poll() is not None:
                    ended.setdefault(index, time.monotonic() - start)
    finally:
        for process, _ in started:
            process.kill()  # does nothing to one that has ended
            process.wait()
    found = []
    for index, (process, files) in enumerate(started):
        texts = []
        for file in files:
            file.seek(0)
            texts.append(file.read())
            file.close()
        found.append(Ended(process.returncode, *texts, ended.get(index, float("inf"))))
    return found


def assert_all_ended(job: Sequence[Ended], statuses: Sequence[int], seconds: float = 60) -> None:
    """Each with its status, the last one not long after the first."""
    assert [one.status for one in job] == list(statuses), job
    times = [one.seconds for one in job]
    assert max(times) - min(times) < seconds, job
