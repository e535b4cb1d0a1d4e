"""An evaluation that processes share gives the scores of one, to the last digit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.multiprocess.job import assert_all_ended, run_job
from tests.tiny import TinyRun

pytestmark = pytest.mark.multiprocess


def evaluated(run: TinyRun, out: Path, processes: int, devices: int) -> dict[str, Any]:
    """eval.json without times."""
    out.mkdir()
    command = ["eval.py", f"--workdir={run.workdir}", f"--out={out}", "--set"]
    command += ["evaluation.limit=4", "evaluation.chance=1"]
    ended = run_job(command, processes, devices=devices)
    assert_all_ended(ended, [0] * processes)
    # Only the first process prints; Gloo's own lines come from all.
    assert all(line.startswith("[Gloo]") for one in ended[1:] for line in one.out.splitlines())
    assert (out / "report.html").stat().st_size > 1000
    return without_times(json.loads((out / "eval.json").read_text()))


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if "milliseconds" not in key}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def test_scores_of_several_processes_are_those_of_one(tiny_run: TinyRun, tmp_path: Path) -> None:
    one = evaluated(tiny_run, tmp_path / "one", 1, 1)
    assert one["rows"][0]["images"] == 4
    assert evaluated(tiny_run, tmp_path / "two", 2, 2) == one
    assert evaluated(tiny_run, tmp_path / "four", 4, 1) == one


LATE = """
import sys, time, jax
from dynpix_jax.core import processes
how = sys.argv[1].removeprefix("--distributed=")
processes.start(how)
index = int(how[-1])
jax.devices()  # which waits for all
time.sleep(40 * index)
print(processes.gather(bytes([index])))
processes.finish()
"""


def test_a_process_may_have_more_to_do_than_others() -> None:
    """Gloo's first collective waits for 30 s."""
    ended = run_job(["-c", LATE], 2, devices=1)
    assert_all_ended(ended, [0, 0])
    assert all("[b'\\x00', b'\\x01']" in one.out for one in ended)
