"""Two processes with a device each: one run, stopped by a signal to one of them, continued by both."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dynpix_jax.core.trees import named_leaves
from dynpix_jax.training.checkpoints import Checkpoints, load_variables
from dynpix_jax.training.loop import train
from tests.training import toy

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import os, signal, sys
import jax
port, process, workdir, stop_at = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
jax.distributed.initialize(f"localhost:{port}", 2, process)
import grain
from dynpix_jax.training.loop import train
from dynpix_jax.training.writers import Writer
from tests.training import toy

class Stop(Writer):
    def tick(self, step, stage):
        if step == stop_at and process == 1:
            os.kill(os.getpid(), signal.SIGTERM)

def half(batch):
    return {name: value[2 * process : 2 * process + 2] for name, value in batch.items()}

data = grain.MapDataset.source(toy.ToyData()).seed(0).shuffle().repeat().batch(4).map(half).to_iter_dataset()
result = train(toy.run(), workdir, batches=data, writers=[Stop()])
print("finished" if result.finished else "stopped", int(result.state.step))
"""


def run_pair(workdir: Path, stop_at: int) -> list[str]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    commands = [[sys.executable, "-c", PROGRAM, port, str(i), str(workdir), str(stop_at)] for i in range(2)]
    pair = [subprocess.Popen(c, cwd=ROOT, env=environment, stdout=-1, stderr=-1, text=True) for c in commands]
    try:
        outputs = [process.communicate(timeout=400) for process in pair]
    finally:
        for process in pair:
            process.kill()  # does nothing to one that has ended
    assert [process.returncode for process in pair] == [0, 0], outputs
    return [out.splitlines()[-1] for out, _ in outputs]


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.skipif(not hasattr(signal, "SIGTERM"), reason="needs POSIX signals")
def test_two_processes_stop_together_and_continue(tmp_path: Path) -> None:
    stopped = run_pair(tmp_path / "pair", stop_at=3)
    assert stopped[0] == stopped[1]
    assert stopped[0].startswith("stopped")
    assert run_pair(tmp_path / "pair", stop_at=-1) == ["finished 11", "finished 11"]
    assert Checkpoints(tmp_path / "pair" / "checkpoints").steps()[-1] == 11

    train(toy.run(), tmp_path / "one", batches=toy.batches(4), writers=())
    pair, one = (dict(named_leaves(load_variables(tmp_path / name)[0])) for name in ("pair", "one"))
    for name, leaf in one.items():
        np.testing.assert_allclose(pair[name], leaf, atol=1e-5, err_msg=name)
