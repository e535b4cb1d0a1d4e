"""Runs that are killed, stopped, damaged or mixed up; those that die do so in processes of their own."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from dynpix_jax.cli.common import call
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.trees import named_leaves
from dynpix_jax.training import loop
from dynpix_jax.training.checkpoints import Checkpoints, load_variables
from dynpix_jax.training.initial import initial_variables
from dynpix_jax.training.loop import Result, train
from dynpix_jax.training.meter import TIMES
from dynpix_jax.training.writers import ConsoleWriter, Writer
from tests.training import toy

ROOT = Path(__file__).resolve().parents[2]


def run_process(workdir: Path, *options: str, status: int) -> str:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.training.run_toy", str(workdir), *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def run_here(workdir: Path, writers: Any = (), **training: Any) -> Result:
    return train(toy.run(**training), workdir, batches=toy.batches(4), writers=writers)


def assert_same(left: Any, right: Any) -> None:
    """Bit for bit."""
    a, b = dict(named_leaves(jax.device_get(left))), dict(named_leaves(jax.device_get(right)))
    assert a.keys() == b.keys()
    for name in a:
        assert np.asarray(a[name]).tobytes() == np.asarray(b[name]).tobytes(), name


def lines(workdir: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in found]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("whole")
    toy.train_evaluated(workdir)
    return workdir


def test_killed_anywhere_ends_like_the_whole_run(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # In a stage between two checkpoints and between two log lines; while a save is half done; in the first
    # steps of the second stage, whose state has another structure than the checkpoint's.
    run_process(tmp_path, "--kill-at", "5", status=-signal.SIGKILL)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [2, 4]
    run_process(tmp_path, "--kill-in-save", "6", status=-signal.SIGKILL)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [2, 4]
    run_process(tmp_path, "--kill-at", "7", status=-signal.SIGKILL)
    toy.train_evaluated(tmp_path)
    output = capsys.readouterr().out
    assert "continuing from" in output
    assert "(step 6 of 11)" in output

    assert Checkpoints(tmp_path / "checkpoints").steps() == [6, 8, 10, 11]  # 6 ended the first stage
    assert_same(load_variables(tmp_path)[0], load_variables(whole)[0])
    assert lines(tmp_path) == lines(whole)
    assert [line["step"] for line in lines(whole) if line["kind"] == "eval"] == [4, 8, 11]


class Stop(Writer):
    """Sends a signal to this process when update `step` is dispatched."""

    def __init__(self, step: int, number: int = signal.SIGTERM) -> None:
        self._step, self._number = step, number

    def tick(self, step: int, stage: str) -> None:
        if step == self._step:
            os.kill(os.getpid(), self._number)


def test_sigterm_saves_exits_0_and_continues(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that gets one is in tests/faults/test_processes.py."""
    stop = Stop(7)

    class Stopping(ConsoleWriter):
        def tick(self, step: int, stage: str) -> None:
            super().tick(step, stage)
            stop.tick(step, stage)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "ConsoleWriter", Stopping)
        assert call("train.py", lambda: int(toy.train_evaluated(tmp_path).finished)) == 0
    assert "stopped by SIGTERM at step 7" in capsys.readouterr().out
    assert Checkpoints(tmp_path / "checkpoints").steps() == [4, 6, 7]
    toy.train_evaluated(tmp_path)
    assert_same(load_variables(tmp_path)[0], load_variables(whole)[0])
    assert lines(tmp_path) == lines(whole)


def test_what_ends_a_run_leaves_its_steps_saved(tmp_path: Path) -> None:
    whole = run_here(tmp_path / "whole").state
    # An evaluation that fails.
    evaluated: list[int] = []

    def evaluate(system: Any, variables: Any) -> dict[str, float]:
        evaluated.append(len(evaluated))
        if len(evaluated) == 1:
            raise UserError("data root not found")
        return {}

    def run_evaluated() -> Result:
        return train(
            toy.run(checkpoint_every=0, eval_every=4),
            tmp_path / "eval",
            batches=toy.batches(4),
            evaluate_fn=evaluate,
            writers=(),
        )

    with pytest.raises(UserError, match="data root"):
        run_evaluated()
    checkpoints = Checkpoints(tmp_path / "eval" / "checkpoints")
    assert checkpoints.steps() == [4]
    assert not checkpoints.at_step(4).evaluated
    assert_same(run_evaluated().state, whole)
    assert len(evaluated) == 4  # at 4 once more, 8 and 11
    assert checkpoints.at_step(8).evaluated

    # An element that cannot be read.
    def batches(broken: bool) -> Any:
        def read(position: int, batch: Any) -> Any:
            if broken and position == 3:
                raise UserError("corrupt image 3.jpg")
            return batch

        return toy.Batches(toy.batches(4).data.map_with_index(read))

    run, broken = toy.run(checkpoint_every=0), tmp_path / "broken"
    with pytest.raises(UserError, match=r"corrupt image 3\.jpg"):
        train(run, broken, batches=batches(True), writers=())
    assert Checkpoints(broken / "checkpoints").steps() == [3]
    assert_same(train(run, broken, batches=batches(False), writers=()).state, whole)

    # Ctrl-C, which a shell's background jobs ignore: these tests may be one.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_here(tmp_path / "interrupted", [Stop(5, signal.SIGINT)], checkpoint_every=0)
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert Checkpoints(tmp_path / "interrupted" / "checkpoints").steps() == [5]
    assert_same(run_here(tmp_path / "interrupted").state, whole)


def test_damaged_newest_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert not run_here(tmp_path, [Stop(5)]).finished
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.steps() == [2, 4, 5]
    biggest = max(
        (file for file in checkpoints.path(5).rglob("*") if file.is_file()), key=lambda f: f.stat().st_size
    )
    biggest.write_bytes(biggest.read_bytes()[: biggest.stat().st_size // 2])
    with caplog.at_level(logging.WARNING):
        result = run_here(tmp_path)
    (warning,) = [record.getMessage() for record in caplog.records if "damaged" in record.getMessage()]
    assert str(checkpoints.path(5)) in warning
    assert str(checkpoints.path(4)) in warning
    assert result.finished
    assert_same(result.state, run_here(tmp_path / "other").state)


def test_damaged_checkpoints_do_not_outlive_the_good_ones(tmp_path: Path) -> None:
    # Of a future that was given up: its numbers are higher, yet it is not what `keep` counts.
    run_here(tmp_path, [Stop(5)])
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (4, 5):
        (checkpoints.path(step) / "manifest.json").write_text("{")
    unfinished, foreign = (
        checkpoints.directory / name for name in ("00000009.orbax-checkpoint-tmp", "my_notes")
    )
    unfinished.mkdir()
    foreign.mkdir()
    assert not run_here(tmp_path, [Stop(3)], keep=1).finished
    assert checkpoints.steps() == [3]
    assert not unfinished.exists()
    assert foreign.is_dir()
    result = run_here(tmp_path, keep=1)
    assert_same(result.state, run_here(tmp_path / "other").state)


def test_damage_that_keeps_the_size(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # orbax reads a flipped bit without an error.
    run_here(tmp_path, [Stop(5)])
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for file in sorted(checkpoints.path(5).rglob("*")):
        if file.is_file() and file.stat().st_size:
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 0xFF
            file.write_bytes(bytes(content))
            break
    progress = checkpoints.newest()
    assert progress is not None
    assert progress.step == 4
    for step in (2, 4):
        next(
            file
            for file in checkpoints.path(step).rglob("*")
            if file.is_file() and file.name != "manifest.json"
        ).unlink()
    with pytest.raises(UserError, match=r"all checkpoints are damaged.*00000005.*00000004.*00000002"):
        run_here(tmp_path)


def test_workdir_of_another_config(tmp_path: Path) -> None:
    run_here(tmp_path, [Stop(1)])
    message = r"another config: config\.model\.scale is 1\.0 there and 2\.0 here"
    with pytest.raises(UserError, match=message):
        train(toy.run({"scale": 2.0}), tmp_path, batches=toy.batches(4), writers=())


def test_harmless_changes_continue(tmp_path: Path) -> None:
    # Another number of workers too: the iterator's saved state is then of no use, its position is. And the
    # weights of the start may be gone.
    run_here(tmp_path, [Stop(3)])
    result = run_here(tmp_path, log_every=1, checkpoint_every=0, keep=1, workers=3, init_from="gone")
    assert Checkpoints(tmp_path / "checkpoints").steps() == [6, 11]
    assert_same(result.state, run_here(tmp_path / "other").state)


def test_finished_run_is_left_alone(whole: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in (whole / "checkpoints").rglob("*")}
    result = train(toy.run(eval_every=4), whole, batches=toy.batches(4), writers=())
    assert result.finished
    assert int(result.state.step) == 11
    assert before == {file: file.stat().st_mtime_ns for file in (whole / "checkpoints").rglob("*")}


def test_load_variables(whole: Path, tmp_path: Path) -> None:
    variables, step, stage, config = load_variables(whole)
    assert (step, stage) == (11, 1)
    assert variables["params"]["extra"]["kernel"].shape == (1, 1, 4, 4)
    assert variables["batch_stats"]["bn"]["mean"].dtype == np.float32
    assert config["training"]["stages"][1]["name"] == "deep"
    variables, step, stage, _ = load_variables(whole, stage="base")
    assert (step, stage) == (6, 0)
    assert "extra" not in variables["params"]
    with pytest.raises(UserError, match=r"holds no end of a stage 'bass'; did you mean 'base'"):
        load_variables(whole, stage="bass")
    for stage in (None, "base", "base:3"):
        with pytest.raises(UserError, match=r"holds no checkpoint \(looked for"):
            load_variables(tmp_path, stage)


def test_load_variables_of_a_stages_end(whole: Path) -> None:
    assert Checkpoints(whole / "checkpoints").stage_ends() == {"base": 6, "deep": 11}
    variables, step, stage, _ = load_variables(whole, stage="base")
    assert (step, stage) == (6, 0)
    assert "extra" not in variables["params"]
    assert_same(load_variables(whole, stage="deep")[0], load_variables(whole)[0])
    with pytest.raises(UserError, match=r"no end of a stage 'bas'; did you mean 'base'"):
        load_variables(whole, stage="bas")


def test_training_starts_from_a_stage_of_a_run_or_one_of_its_steps(whole: Path, tmp_path: Path) -> None:
    """`continue_from=DIR@STAGE` and `DIR@STAGE:STEP`; the second stage has steps 6 to 11 of the run."""
    assert_same(initial_variables(f"{whole}@base"), load_variables(whole, "base")[0])
    assert_same(initial_variables(f"{whole}@deep:5"), initial_variables(str(whole)))
    assert_same(initial_variables(f"{whole}@deep:4"), load_variables(whole, "deep:4")[0])
    assert load_variables(whole, "deep:4")[1:3] == (10, 1)
    with pytest.raises(
        UserError, match=r"holds no checkpoint 'deep:3'; did you mean 'deep:\d'\? valid: .*base"
    ):
        initial_variables(f"{whole}@deep:3")
    with pytest.raises(UserError, match=r"holds no end of a stage 'deeper'; did you mean 'deep'"):
        initial_variables(f"{whole}@deeper")
    with pytest.raises(UserError, match=r"init_from: .*/gone: no such weights file or workdir"):
        initial_variables(f"{tmp_path}/gone@base")
    (tmp_path / "w.npz").touch()
    with pytest.raises(UserError, match=r"w\.npz is a file, of which no stage is known"):
        initial_variables(f"{tmp_path}/w.npz@base")
    (tmp_path / "a@b").symlink_to(whole)
    assert_same(initial_variables(f"{tmp_path}/a@b"), initial_variables(str(whole)))
    assert_same(initial_variables(f"{tmp_path}/a@b@base"), initial_variables(f"{whole}@base"))


def test_a_stage_that_has_not_ended(tmp_path: Path) -> None:
    run_here(tmp_path, [Stop(7)])
    assert Checkpoints(tmp_path / "checkpoints").stage_ends() == {"base": 6}


def test_init_from_workdir(whole: Path, tmp_path: Path) -> None:
    class First(Writer):
        loss = None

        def write(self, step: int, kind: str, values: Any) -> None:
            self.loss = self.loss or values["loss"]

    cold, warm = First(), First()
    run_here(tmp_path / "cold", [cold], log_every=1)
    run_here(tmp_path / "warm", [warm], log_every=1, init_from=str(whole))
    assert warm.loss < 0.8 * cold.loss
    with pytest.raises(UserError, match="no such weights file or workdir"):
        run_here(tmp_path / "none", init_from=str(tmp_path / "nothing"))
