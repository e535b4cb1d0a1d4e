"""The one training loop.

For each stage: build the system with the stage's overrides, carry the variables over, make a fresh optimizer,
then step by step: save, evaluate, next batch, step, write. A checkpoint is taken before the next batch is
drawn, so the iterator's position in it is the state's, and before the evaluation, which may fail or outlast
the time a SIGTERM leaves.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dynpix_jax.core.config import RunConfig
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.rng import stream
from dynpix_jax.core.settings import StageConfig
from dynpix_jax.core.system import System
from dynpix_jax.core.trees import named_leaves
from dynpix_jax.core.typing import Variables
from dynpix_jax.training.checkpoints import Checkpoints, Progress
from dynpix_jax.training.checks import stage_system
from dynpix_jax.training.initial import initial_variables
from dynpix_jax.training.meter import Meter
from dynpix_jax.training.optim import StageOptimizer, stage_optimizer
from dynpix_jax.training.sharding import make_mesh, put_batch, state_shardings
from dynpix_jax.training.signals import StopRequest
from dynpix_jax.training.snapshots import check_same_run, write_config
from dynpix_jax.training.state import TrainState, new_state
from dynpix_jax.training.step import StepFn, make_step
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
    """What a call of `train` ended with.

    Attributes:
        state: of the last step done.
        stage: index of its stage.
        finished: False if a SIGTERM ended it before the last step.
    """

    state: TrainState
    stage: int
    finished: bool


@dataclasses.dataclass(frozen=True)
class _Stage:
    """What is built for one stage."""

    index: int
    start: int
    config: StageConfig
    system: System
    optimizer: StageOptimizer
    abstract: TrainState
    init: Callable[[Variables | None], TrainState]
    step: StepFn

    @property
    def end(self) -> int:
        return self.start + self.config.steps


def train(
    run: RunConfig,
    workdir: str | Path,
    *,
    batches: Iterable[Mapping[str, np.ndarray]],
    evaluate_fn: EvaluateFn | None = None,
    writers: Sequence[Writer] | None = None,
) -> Result:
    """Train all stages of `run` in `workdir`, from where it stands there.

    Args:
        run: all settings; the seed and those of training are read here.
        workdir: gets config.json, metrics.jsonl, checkpoints/, tensorboard/.
        batches: endless iterable (grain) of this process's part of each batch: "image" (b, H, W, 3) uint8,
            labels, "valid" (b,), "index" (b,). Its iterators must have grain's state methods.
        evaluate_fn: called every `eval_every` steps and at the end of the run; never if that is 0.
        writers: in place of the usual ones (JSON lines, TensorBoard, console).

    Raises:
        UserError: a network that cannot be built, a workdir that holds another config's run or cannot be
            written, rules that do not cover the parameters, an element that cannot be read.
        KeyboardInterrupt: by Ctrl-C; the state has been saved, unless it came a second time.
        NonFiniteError: the loss stopped being finite; the last checkpoint is from before that.
    """
    settings = run.training
    mesh = make_mesh(settings.mesh, settings.batch_size)
    workdir = Path(workdir)
    _make_workdir(workdir)
    checkpoints = Checkpoints(workdir / "checkpoints", settings.keep)
    saved = checkpoints.newest()
    readers = [jax.process_count(), settings.workers]
    if saved is not None:
        check_same_run(saved.config, run, workdir, "give another --workdir or remove this one")
    checkpoints.clean()

    iterator = iter(batches)
    image_shape = _image_shape(iterator)
    stages = range(saved.stage if saved else 0, len(settings.stages))
    stage = _make_stage(run, stages.start, mesh, image_shape)
    if saved is not None:
        same_readers = saved.readers == readers
        state = checkpoints.restore(saved, stage.abstract, iterator if same_readers else None)
        for _ in range(0 if same_readers else saved.step):
            next(
                iterator
            )  # another number of readers keeps its place in another form; the batches are the same
    else:
        state = stage.init(initial_variables(settings.init_from))

    out = Writers(_usual_writers(workdir, run, saved) if writers is None else writers)
    if saved is not None:
        out.note(
            f"continuing from {checkpoints.path(saved.step)} (step {saved.step} of {settings.total_steps})"
        )
    meter = Meter(out, settings.log_every, settings.batch_size, saved.window if saved else None)
    step, saved_step, evaluated = (saved.step, saved.step, saved.evaluated) if saved else (0, -1, False)

    def save() -> None:
        nonlocal saved_step
        if step > saved_step:
            meter.flush()
            name = stage.config.name
            progress = Progress(step, stage.index, name, run.given, evaluated, meter.window, readers)
            checkpoints.save(state, iterator, progress)
            saved_step = step

    try:
        with StopRequest() as stop:
            for index in stages:
                if index != stage.index:
                    stage = _make_stage(run, index, mesh, image_shape)
                    state = stage.init(state.variables)
                out.note(_describe(stage, state))
                while True:
                    stopping, at_end = stop.at(step), step == stage.end
                    last = settings.eval_every > 0 and step == settings.total_steps
                    evaluating = bool(evaluate_fn) and (last or _at(step, settings.eval_every))
                    # Save.
                    due = stopping or at_end or evaluating or _at(step, settings.checkpoint_every)
                    if due:
                        save()
                    # Evaluate. Not when stopping: the next run does it.
                    if evaluate_fn and evaluating and not evaluated and not stopping:
                        values = evaluate_fn(stage.system, state.variables)
                        out.write(step, "eval", {"stage": stage.config.name, **values})
                        checkpoints.mark_evaluated(step)
                        evaluated = True
                    if stopping:
                        out.note(f"stopped by {stop.signal} at step {step}; the same command continues")
                        if stop.signal == "SIGINT":
                            raise KeyboardInterrupt
                        return Result(state, index, finished=False)
                    if at_end:
                        break
                    # Next batch.
                    try:
                        batch = next(iterator, None)
                    except UserError:
                        # An unreadable file. The steps so far are sound, and so is the position of an
                        # iterator in this process: on the element that could not be read.
                        if readers == [1, 0]:
                            save()
                        raise
                    if batch is None:
                        raise UserError(
                            f"config.data.train: no more elements at step {step}; the loader must repeat"
                        )
                    # Step.
                    state, metrics = stage.step(state, put_batch(batch, mesh))
                    step, evaluated = step + 1, False
                    # Write (what the step before has measured).
                    meter.push(step, stage.config.name, metrics, np.asarray(batch["index"]))
                    out.tick(step, stage.config.name)
                meter.flush()
        return Result(state, stages.stop - 1, finished=True)
    finally:
        out.close()


def _make_stage(run: RunConfig, index: int, mesh: Mesh, image_shape: tuple[int, ...]) -> _Stage:
    """System, optimizer, shardings and compiled functions of stage `index`."""
    settings, stage, start = run.training, run.stages[index], run.training.stage_start(index)
    system = stage_system(stage)
    example = {"image": np.zeros((1, *image_shape), np.uint8)}
    key = stream(run.seed, "params", index)
    shapes = jax.eval_shape(system.init, key, example)
    optimizer = stage_optimizer(shapes["params"], settings, stage, system)
    abstract = jax.eval_shape(
        lambda variables: new_state(variables, optimizer.tx, optimizer.pick, start), shapes
    )
    shardings = state_shardings(abstract, optimizer, mesh, settings.mesh)
    abstract = jax.tree.map(
        lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), abstract, shardings
    )
    everywhere = NamedSharding(mesh, PartitionSpec())

    def init(previous: Variables | None) -> TrainState:
        variables = jax.jit(system.init, out_shardings=everywhere)(key, example)
        if previous is not None:
            variables = system.adapt(previous, variables)
        return jax.device_put(new_state(variables, optimizer.tx, optimizer.pick, start), shardings)

    step = jax.jit(
        make_step(system, optimizer, seed=run.seed, stage_start=start, stage_steps=stage.steps),
        in_shardings=(shardings, None),
        out_shardings=(shardings, everywhere),
        donate_argnums=0,
    )
    return _Stage(index, start, stage, system, optimizer, abstract, init, step)


def _at(step: int, every: int) -> bool:
    return every > 0 and step > 0 and step % every == 0


def _image_shape(iterator: Any) -> tuple[int, ...]:
    """(H, W, 3) of the batches. The iterator is put back to where it was."""
    position = iterator.get_state()
    shape = next(iterator)["image"].shape[1:]
    iterator.set_state(position)
    return tuple(shape)


def _make_workdir(workdir: Path) -> None:
    """Makes the directory and sees that files can be written in it, before anything is computed."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=workdir).close()
    except OSError as error:
        raise UserError(
            f"workdir {workdir}: no place to write: {error.strerror or error}; give another --workdir"
        ) from None


def _usual_writers(workdir: Path, run: RunConfig, saved: Progress | None) -> list[Writer]:
    if jax.process_index() != 0:
        return []
    write_config(workdir / "config.json", run.given)
    at = saved.step if saved else 0
    return [
        JsonlWriter(workdir / "metrics.jsonl", at, saved.evaluated if saved else True),
        TensorBoardWriter(workdir / "tensorboard", at),
        ConsoleWriter(run.training.total_steps),
    ]


def _describe(stage: _Stage, state: TrainState) -> str:
    count = sum(leaf.size for _, leaf in named_leaves(state.params))
    trained = sum(leaf.size for leaf in stage.optimizer.pick(state.params).values())
    return (
        f"stage '{stage.config.name}': steps {stage.start} to {stage.end}, {count:,} parameters,"
        f" {trained:,} trained, learning rate {stage.config.learning_rate:g}"
    )
