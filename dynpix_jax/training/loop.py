"""The one training loop.

For each stage: build the system with the stage's overrides, carry the variables over, make a fresh optimizer,
then step by step: save, evaluate, next batch, step, write. A checkpoint is taken before the evaluation, which
may fail or outlast the time that a SIGTERM leaves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from dynpix_jax.core.capabilities import Calibrates
from dynpix_jax.core.config import RunConfig
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.locks import Lock
from dynpix_jax.core.processes import is_first, on_device
from dynpix_jax.core.system import System
from dynpix_jax.core.text import local_path
from dynpix_jax.core.typing import Variables
from dynpix_jax.training.agreement import check_same_job, check_shared
from dynpix_jax.training.calibration import seen_images
from dynpix_jax.training.checkpoints import Checkpoint, Checkpoints, SaveError
from dynpix_jax.training.data_record import DataRecord
from dynpix_jax.training.feed import Batches, Fed, Feed
from dynpix_jax.training.initial import initial_variables
from dynpix_jax.training.meter import Meter
from dynpix_jax.training.sharding import run_mesh
from dynpix_jax.training.signals import StopRequest
from dynpix_jax.training.snapshots import check_same_run, write_config
from dynpix_jax.training.stages import Stage, make_stage
from dynpix_jax.training.state import TrainState
from dynpix_jax.training.wandb_writer import WandbWriter
from dynpix_jax.training.watching import Profile, ProfileSteps, StallDetector, peak_flops
from dynpix_jax.training.writers import (
    ConsoleWriter,
    JsonlWriter,
    TensorBoardWriter,
    Values,
    Writer,
    Writers,
)

EvaluateFn = Callable[[System, Variables], Values]
"""(system, variables) -> numbers and pictures to write."""


@dataclasses.dataclass(frozen=True)
class Result:
    """Where a call of `train` ended.

    Attributes:
        state: State after the last step done.
        stage: Index of its stage.
        finished: False if a SIGTERM ended it before the last step.
    """

    state: TrainState
    stage: int
    finished: bool


def train(
    run: RunConfig,
    workdir: str | Path,
    *,
    batches: Batches,
    evaluate_fn: EvaluateFn | None = None,
    writers: Sequence[Writer] | None = None,
    data: DataRecord | None = None,
    profile: ProfileSteps | None = None,
) -> Result:
    """Train all stages of `run` in `workdir`, from its newest checkpoint if it has one.

    Args:
        run: All settings; the seed and those of training are read here.
        workdir: Gets config.json, metrics.jsonl, checkpoints/, tensorboard/.
        batches: This process's part of each batch.
        evaluate_fn: Called every `eval_every` steps and at the end of the run; never if that is 0.
        writers: Replace the usual ones (JSON lines, TensorBoard, console).
        data: What is trained on; a workdir that was trained on other data is refused. None: not compared.
        profile: Steps of which a trace is written to profile/ in the workdir.

    Raises:
        UserError: A network that cannot be built, a workdir that holds another config's run, is in use or
            cannot be written, rules that do not cover the parameters, an element that cannot be read.
        SaveError: A checkpoint that could not be saved.
        KeyboardInterrupt: Ctrl-C; the state has been saved, unless it came a second time.
        NonFiniteError: The loss stopped being finite; the last checkpoint is from before that.
    """
    workdir, mesh = local_path(workdir), run_mesh(run)
    check_same_job(run, mesh)
    if is_first():
        _make_workdir(workdir)
    check_shared(workdir)
    alone = Lock(workdir / ".lock", f"workdir {workdir}", "wait for it to end, or give another --workdir")
    with alone if is_first() else contextlib.nullcontext() as lock:
        at = _Run(run, workdir, lock, mesh, batches, evaluate_fn, writers, data)
        at.profile = Profile(profile, workdir / "profile", at.step, run.training.total_steps)
        return _train(at, len(run.stages))


def _train(at: _Run, stages: int) -> Result:
    """Runs all stages from where a run stands; see `train`."""
    try:
        with StopRequest() as stop:
            for index in range(at.stage.index, stages):
                at.begin(index)
                while True:
                    stopping = stop.at(at.step)
                    at.between_steps(stopping=stopping)
                    if stopping:
                        at.out.note(f"stopped by {stop.signal} at step {at.step}; the same command continues")
                        if stop.signal == "SIGINT":
                            raise KeyboardInterrupt
                        return Result(at.state, index, finished=False)
                    if at.stage_done:
                        break
                    at.take_step(at.next_batch())
                at.meter.flush()
        return Result(at.state, stages - 1, finished=True)
    finally:
        at.close()


class _Run:
    """A run in progress: save, evaluate, next batch, step, write.

    Made from the newest checkpoint in its workdir, or fresh.
    """

    def __init__(
        self,
        config: RunConfig,
        workdir: Path,
        lock: Lock | None,
        mesh: Mesh,
        batches: Batches,
        evaluate_fn: EvaluateFn | None,
        writers: Sequence[Writer] | None,
        data: DataRecord | None,
    ):
        settings = config.training
        self._config, self._evaluate_fn, self._mesh = config, evaluate_fn, mesh
        self._workdir, self._lock = workdir, lock
        self._checkpoints = Checkpoints(workdir / "checkpoints", settings.keep)
        saved = self._checkpoints.newest()
        if saved is not None:
            check_same_run(saved.config, config, workdir, "give another --workdir or remove this one")
        changed = data.continue_from(saved.data, workdir) if saved and data else None
        self._checkpoints.clean()
        self._data = data.summary if data else {}
        if data and is_first():
            data.write(workdir)
        at = saved or Checkpoint(0, 0, "", {})
        self._feed = Feed(batches, at.step, self._mesh)
        self.stage = self._make_stage(at.stage)
        self.step, self.evaluated = at.step, at.evaluated
        self._saved_step = saved.step if saved else -1
        if saved is None:
            given = initial_variables(settings.init_from, config.stages[0].model)
            self.state = self.stage.init(given)
        else:
            self.state = self._checkpoints.restore(saved, self.stage.abstract)
        self.out = Writers(_usual_writers(workdir, config, saved) if writers is None else writers)
        if saved is not None:
            path, total = self._checkpoints.path(saved.step), settings.total_steps
            if changed:
                self.out.note(changed)
            self.out.note(f"continuing from {path} (step {saved.step} of {total})")
        peak = peak_flops(jax.devices()[0].device_kind)
        size = (settings.log_every, settings.batch_size)
        self.meter = Meter(self.out, *size, at.window, devices=mesh.size, peak=peak)
        self._count_flops = peak is not None
        self.profile = Profile(None, workdir, 0, 0)
        self._stall = StallDetector(settings.stall_minutes)

    @property
    def stage_done(self) -> bool:
        """Whether all steps of the stage are done."""
        return self.step == self.stage.end

    def begin(self, index: int) -> None:
        """Starts a stage, unless it is the current one."""
        if index != self.stage.index:
            self.stage = self._make_stage(index)
            self.state = self.stage.init(self.state.variables)
        self.out.note(self.stage.describe(self.state))
        self.meter.flops = None

    def between_steps(self, *, stopping: bool) -> None:
        """Calibrates at the end of a stage, saves and evaluates where that is due."""
        settings, evaluate_fn = self._config.training, self._evaluate_fn
        last = settings.eval_every > 0 and self.step == settings.total_steps
        evaluating = last or _at(self.step, settings.eval_every)
        if self._checkpoints.failed:
            with self._tolerated(last=False):
                self._checkpoints.wait()
        if self.stage_done:
            self._calibrate()
        due = evaluate_fn is not None and evaluating
        if stopping or self.stage_done or due or _at(self.step, settings.checkpoint_every):
            self._save(last=stopping or self.step == settings.total_steps)
        # Not when stopping: the next run does it.
        if evaluate_fn is not None and evaluating and not self.evaluated and not stopping:
            self._evaluate(evaluate_fn)

    def next_batch(self) -> Fed:
        """The next batch of the loader."""
        try:
            return next(self._feed)
        except UserError:
            # An unreadable file. The steps so far are sound; other processes cannot be asked to save them.
            if jax.process_count() == 1:
                self._save(last=False)
            raise

    def take_step(self, fed: Fed) -> None:
        """Updates the state and writes the metrics of the step before."""
        if self._count_flops and self.meter.flops is None:
            self.meter.flops = self.stage.flops(fed.batch)
            self._count_flops = self.meter.flops is not None
        self.profile.before(self.step)
        self.state, metrics = self.stage.step(self.state, fed.batch)
        self.step, self.evaluated = self.step + 1, False
        self.meter.push(self.step, self.stage.config.name, metrics, fed)
        self.out.tick(self.step, self.stage.config.name)
        self._stall.tick(self.step)
        if self.profile.after(self.step, self.state):
            self.out.note(f"trace of steps up to {self.step} written")

    def close(self) -> None:
        """Ends what runs beside the loop."""
        self.profile.close()
        self._stall.close()
        self._feed.close()
        try:
            self._checkpoints.wait()
        except SaveError as error:
            self.out.note(str(error))
        self.out.close()

    def _calibrate(self) -> None:
        """Lets the system calibrate itself at the end of its stage, before that is saved."""
        system = self.stage.system
        if self.step > self._saved_step and isinstance(system, Calibrates) and system.calibration_images:
            image, count = seen_images(self._config, system.calibration_images)
            here = on_device(self.state.variables, jax.local_devices()[0])  # each process finds the same
            found, note = system.calibrate(here, image, count)
            place = lambda new, old: jax.device_put(np.asarray(new), old.sharding)  # noqa: E731
            params = jax.tree.map(place, found["params"], self.state.params)
            self.state = dataclasses.replace(self.state, params=params)
            self.out.note(note)

    def _save(self, *, last: bool) -> None:
        """Takes a checkpoint, unless this step has one.

        Raises:
            SaveError: It cannot be saved; unless the run goes on to another one, and is to.
        """
        if self.step > self._saved_step:
            self.meter.flush()
            if self._lock and self._lock.renew():
                self.out.note(f"workdir {self._workdir} was removed; it is made again")
                write_config(self._workdir / "config.json", self._config.given)
            name, given = self.stage.config.name, self._config.given
            window, data = self.meter.window, self._data
            stage, evaluated = self.stage.index, self.evaluated
            checkpoint = Checkpoint(self.step, stage, name, given, evaluated, window, data)
            began = time.perf_counter()
            with self._tolerated(last=False):
                self._checkpoints.wait()  # the save before, whose end this one need not share
            with self._tolerated(last=last):
                self._checkpoints.save(self.state, checkpoint, wait=last)
                self._saved_step = self.step
            self.meter.count_checkpoint(time.perf_counter() - began)

    @contextlib.contextmanager
    def _tolerated(self, *, last: bool) -> Iterator[None]:
        """A save that may fail if the run goes on to another one, and is to; others would wait for it."""
        try:
            yield
        except SaveError as error:
            if last or self._config.training.on_save_error == "stop" or jax.process_count() > 1:
                raise
            self.out.note(f"{error}; the run goes on to the next one")

    def _evaluate(self, evaluate_fn: EvaluateFn) -> None:
        """Evaluates the state and writes what is found."""
        values = evaluate_fn(self.stage.system, self.state.variables)
        self._stall.tick(self.step)
        self.out.write(self.step, "eval", {"stage": self.stage.config.name, **values})
        if self._saved_step == self.step:
            with self._tolerated(last=False):
                self._checkpoints.mark_evaluated(self.step)
        self.evaluated = True

    def _make_stage(self, index: int) -> Stage:
        return make_stage(self._config, index, self._mesh, self._feed.image_shape)


def _at(step: int, every: int) -> bool:
    return every > 0 and step > 0 and step % every == 0


def _make_workdir(workdir: Path) -> None:
    """Makes the directory and sees that files can be written in it, before anything is computed."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=workdir).close()
        os.fspath(workdir).encode()  # orbax writes its names into files
    except (OSError, UnicodeError) as error:
        if isinstance(error, UnicodeError):
            raise UserError(f"workdir {workdir!r}: its name is not UTF-8; give another --workdir") from None
        raise UserError(
            f"workdir {workdir}: no place to write: {error.strerror or error}; give another --workdir"
        ) from None
    for folder in (workdir / "checkpoints", workdir / "tensorboard"):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: is a file, where a run has a folder; give another --workdir")
    for file in (workdir / "config.json", workdir / "metrics.jsonl"):
        if file.is_dir():
            raise UserError(f"{file}: Is a directory, where a run has a file; give another --workdir")


def _usual_writers(workdir: Path, run: RunConfig, saved: Checkpoint | None) -> list[Writer]:
    if not is_first():
        return []
    write_config(workdir / "config.json", run.given)
    at = saved.step if saved else 0
    project = run.training.wandb
    return [
        *([WandbWriter(project, workdir, run.given)] if project else []),
        JsonlWriter(workdir / "metrics.jsonl", at, evaluated=saved.evaluated if saved else True),
        TensorBoardWriter(workdir / "tensorboard", at),
        ConsoleWriter(run.training.total_steps),
    ]
