"""What is seen of a run: its trace, its times, and where it stands still."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from dynpix_jax.core.errors import UserError
from dynpix_jax.training import loop, meter, watching
from dynpix_jax.training.feed import Fed, Feed
from dynpix_jax.training.sharding import make_mesh
from dynpix_jax.training.watching import StallDetector, parse_profile, peak_flops
from dynpix_jax.training.writers import Writer
from tests.training import toy

STAGES = ({"name": "base", "steps": 6, "learning_rate": 0.1},)


class Record(Writer):
    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def write(self, step: int, kind: str, values: Any) -> None:
        self.lines.append({"step": step, **values})


def test_a_trace_of_some_steps(tmp_path: Path) -> None:
    run, profile = toy.run(stages=STAGES), parse_profile("2:2")
    loop.train(run, tmp_path, batches=toy.batches(4), writers=(), profile=profile)
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    assert b"PjitFunction(step)" in trace.read_bytes()
    with pytest.raises(UserError, match=r"--profile 2:2: the run is at step 6 of 6; expected a step that is"):
        loop.train(run, tmp_path, batches=toy.batches(4), writers=(), profile=profile)
    for text in ("2", "2:0", "a:b", "-1:2"):
        with pytest.raises(UserError, match="expected START:STEPS such as 100:5"):
            parse_profile(text)


def test_times_of_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader that takes 100 ms a batch, steps that take less: most of them wait."""
    monkeypatch.setattr(loop, "peak_flops", lambda kind: 1e9)
    record = Record()

    def slow(batch: Any) -> Any:
        time.sleep(0.1)
        return batch

    batches = toy.Batches(toy.batches(4).data.map(slow))
    stages = ({**STAGES[0], "steps": 14},)  # those that were read ahead while the step was compiled are over
    run = toy.run(stages=stages, log_every=7, checkpoint_every=4)
    loop.train(run, tmp_path, batches=batches, writers=[record])
    line = record.lines[-1]
    assert line["late_steps"] >= 0.5
    assert 0 < line["data_wait"] <= 1
    assert line["images_per_second"] == pytest.approx(4 / line["step_seconds"])
    assert line["checkpoint_seconds"] > 0
    # Convolutions 3 -> 4 and 4 -> 1, forward; their kernels' gradients, and that of the map between.
    macs = 4 * 80 * (9 * 3 * 4 * 2 + 4 * 1 * 3)
    assert line["mfu"] == pytest.approx(2 * macs / line["step_seconds"] / 1e9)
    assert set(meter.TIMES) >= {"late_steps", "data_wait", "mfu", "checkpoint_seconds"}


def test_batches_are_on_the_device_before_they_are_asked_for() -> None:
    feed = Feed(toy.batches(4), 5, make_mesh(toy.run().training.mesh, 4))
    time.sleep(0.5)
    fed: Fed = next(feed)
    assert not fed.late
    assert isinstance(fed.batch["image"], jax.Array)
    expected = next(toy.batches(4).start(5))
    np.testing.assert_array_equal(fed.batch["image"], expected["image"])
    np.testing.assert_array_equal(fed.ids, expected["index"])
    feed.close()


def test_peaks() -> None:
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("cpu") is None


def test_a_stall_is_told_once_with_the_stack(capfd: pytest.CaptureFixture[str]) -> None:
    detector = StallDetector(0.2 / 60)
    detector.tick(7)
    time.sleep(0.8)
    detector.close()
    err = capfd.readouterr().err
    assert err.count("no step for") == 1
    assert "after step 7; it is here:" in err
    assert "test_a_stall_is_told_once_with_the_stack" in err
    quiet = watching.StallDetector(0)
    quiet.close()
