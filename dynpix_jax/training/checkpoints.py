"""Checkpoints on disk: orbax writes the arrays, a manifest makes them trustworthy.

    checkpoints/00000200/{variables,optimizer}/        written by orbax
    checkpoints/00000200/manifest.json                 step, stage, config, size and CRC-32 of every file, and
                                                       a CRC-32 of its own

The manifest is written last and atomically, so a directory without one is a save that was interrupted. orbax
(0.12) reads some damaged files without an error; the checksums find them before it tries.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from dynpix_jax.core.errors import UserError, cause_of, suggest
from dynpix_jax.core.processes import from_first, is_first, let_finish, several
from dynpix_jax.core.text import parse_json
from dynpix_jax.training.state import TrainState

MANIFEST = "manifest.json"
_OURS = re.compile(r"\d{8,}(\.orbax-checkpoint-tmp.*)?")
"""Names of checkpoints, and of orbax's unfinished ones (the suffix is orbax's `TMP_DIR_SUFFIX`)."""
_log = logging.getLogger(__name__)
# orbax's threads log, with their stacks, what `save` raises anyway.
logging.getLogger("absl").addFilter(lambda record: "_SignalingThread.run() raised" not in record.getMessage())
_LEAST_INODES = 64
"""Files and folders of a checkpoint, about."""


class SaveError(UserError):
    """A checkpoint that could not be saved: no space, no permission; those before it stand."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Where a run stands, beside its arrays.

    Attributes:
        step: Global step, updates done.
        stage: Index of the stage whose structure the checkpoint has. At a stage's last step it is still that
            stage.
        stage_name: Its name.
        config: The run's config as JSON values.
        evaluated: Whether the evaluation due at `step` has been written.
        window: Sums of the metrics since the last log line, and their count.
        data: What the run was trained on (`training.data_record`); {} if that is not known.
    """

    step: int
    stage: int
    stage_name: str
    config: Mapping[str, Any]
    evaluated: bool = False
    window: dict[str, Any] = dataclasses.field(default_factory=dict)
    data: dict[str, Any] = dataclasses.field(default_factory=dict)


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: Created at the first save.
        keep: How many to keep; older ones are removed after a save, except those of stage ends.
    """

    def __init__(self, directory: str | Path, keep: int = 2) -> None:
        self.directory = Path(directory).absolute()  # orbax refuses relative paths
        self.keep = keep
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._saving: Future[None] | None = None

    def path(self, step: int) -> Path:
        """Directory of the checkpoint of `step`."""
        return self.directory / f"{step:08d}"

    def steps(self) -> list[int]:
        """Steps whose save was completed, ascending."""
        if not self.directory.is_dir():
            return []
        return sorted(
            int(path.name)
            for path in self.directory.iterdir()
            if path.name.isdigit() and (path / MANIFEST).is_file()
        )

    def stage_ends(self) -> dict[str, int]:
        """Steps of the checkpoints that stages ended with, by stage name, in the order of training."""
        return {name: step for name, step in self.named().items() if ":" not in name}

    def named(self) -> dict[str, int]:
        """Global steps of checkpoints by "STAGE:STEP", STEP of that stage, and of stage ends by "STAGE"."""
        found = {}
        for step in self.steps():
            try:
                manifest = _read_manifest(self.path(step))
                name, index = str(manifest["stage_name"]), int(manifest["stage"])
                lengths = [int(stage["steps"]) for stage in manifest["config"]["training"]["stages"]]
                found[f"{name}:{step - sum(lengths[:index])}"] = step
                if step == sum(lengths[: index + 1]):
                    found[name] = step
            except (_DamagedError, ValueError, KeyError, TypeError):
                continue  # damaged: `newest` and `at_step` say so where it matters
        return found

    def config(self) -> dict[str, Any] | None:
        """The run's config as JSON, of the newest checkpoint; None if none was ever completed."""
        for step in reversed(self.steps()):
            try:
                config: dict[str, Any] = _read_manifest(self.path(step))["config"]
            except (_DamagedError, KeyError):
                continue  # damaged
            return config
        return None

    def save(self, state: TrainState, checkpoint: Checkpoint, *, wait: bool) -> None:
        """Writes a checkpoint. Every process must call it.

        Args:
            wait: Return when it is complete on disk; else when the state may change, while the disk is
                written by another thread: `wait` says how that ended, and so does the next save.

        Raises:
            SaveError: It, or the one before, cannot be written; what was written of it is removed.
        """
        self.wait()
        path = self.path(checkpoint.step)
        _WithoutLateReports.install()
        try:
            if is_first():
                self._make_room(path)
            # Made by threads, a folder that cannot be made would leave others waiting for it for minutes.
            context = ocp.Context()
            context.asynchronous.create_directories_asynchronously = False
            with context:
                written = ocp.save_checkpointables_async(
                    path,
                    {
                        "variables": dict(state.variables),
                        "optimizer": {"step": state.step, "state": state.opt_state},
                    },
                )
        # TensorStore raises a ValueError for whatever the system says.
        except (OSError, ValueError) as error:
            raise self._not_saved(path, error) from error
        self._saving = self._thread.submit(self._complete, written, path, checkpoint)
        let_finish(self._saving)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Waits until the last save is complete.

        Raises:
            SaveError: It cannot be written; told once.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    @property
    def failed(self) -> bool:
        """Whether `wait` would raise an error at once."""
        return self._saving is not None and self._saving.done() and self._saving.exception() is not None

    def _make_room(self, path: Path) -> None:
        """Makes the folder of all checkpoints, and sees that a new one can be made in it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _remove(path)
        with tempfile.TemporaryFile(dir=self.directory):
            pass
        disk = os.statvfs(self.directory)
        if disk.f_files and disk.f_favail < _LEAST_INODES:
            raise OSError(errno.ENOSPC, "No space left on device (no inodes)")

    def _complete(self, written: Any, path: Path, checkpoint: Checkpoint) -> None:
        """Waits for orbax, writes the manifest, and removes what the checkpoint replaces."""
        try:
            written.result()
            if is_first():
                self._list(path, checkpoint)
        except (OSError, ValueError) as error:
            raise self._not_saved(path, error) from error

    def _list(self, path: Path, checkpoint: Checkpoint) -> None:
        files = {
            str(file.relative_to(path)): _fingerprint(file)
            for file in sorted(path.rglob("*"))
            if file.is_file()
        }
        _write_manifest(path, {**dataclasses.asdict(checkpoint), "files": files})
        # Later ones exist if a damaged one was passed over and the run continued from before it. If they
        # stayed, the damaged one would count as the newest to keep.
        for step in self.steps():
            if step > checkpoint.step:
                _remove(self.path(step))
        ends = self.stage_ends().values()  # each is a budget that eval.py may want
        for step in self.steps()[: -self.keep]:
            if step not in ends:
                _remove(self.path(step))

    def _not_saved(self, path: Path, error: Exception) -> SaveError:
        """The error of a save, after what there is of it was removed: the disk may need the room."""
        if not (path / MANIFEST).is_file():
            for unfinished in (path, *self.directory.glob(f"{path.name}.orbax-checkpoint-tmp*")):
                shutil.rmtree(unfinished, ignore_errors=True)
        steps = [step for step in self.steps() if self.path(step) != path]
        stands = f"{self.path(steps[-1]).name} stands" if steps else "there is none yet"
        return SaveError(f"checkpoint {path} cannot be saved: {cause_of(error)}; {stands}")

    def mark_evaluated(self, step: int) -> None:
        """Note in the checkpoint of `step` that the evaluation due there has been written.

        Every process may call it; the first one does it. Where it cannot be written, a run that continues
        from there evaluates once more.

        Raises:
            SaveError: See `wait`.
        """
        self.wait()
        if is_first():
            path = self.path(step)
            try:
                _write_manifest(path, {**_read_manifest(path), "evaluated": True})
            except (OSError, _DamagedError) as error:
                _log.warning("checkpoint %s cannot be marked as evaluated: %s", path, error)

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is complete and undamaged; None if none was ever completed.

        A damaged one is passed over with a warning that names it and the one used instead. Every process must
        call it; the first one reads the files.

        Raises:
            UserError: There are checkpoints, but all are damaged.
        """
        found = self._newest() if is_first() else None
        if several():
            step = from_first("newest checkpoint", "" if found is None else str(found.step))
            found = _read_checkpoint(self.path(int(step)))[0] if step else None
        return found

    def _newest(self) -> Checkpoint | None:
        damaged: list[str] = []
        for step in reversed(self.steps()):
            try:
                checkpoint = _verify(self.path(step))
            except _DamagedError as error:
                damaged.append(f"{self.path(step)} ({error})")
                continue
            if damaged:
                _log.warning(
                    "damaged checkpoint %s; using the previous one, %s", ", ".join(damaged), self.path(step)
                )
            return checkpoint
        if damaged:
            raise UserError(
                f"all checkpoints are damaged: {', '.join(damaged)}; remove {self.directory} to begin anew"
            )
        return None

    def at_step(self, step: int) -> Checkpoint:
        """The checkpoint of `step`; a UserError if it is damaged."""
        try:
            return _verify(self.path(step))
        except _DamagedError as error:
            raise UserError(f"damaged checkpoint {self.path(step)} ({error})") from None

    def restore(self, checkpoint: Checkpoint, abstract: TrainState) -> TrainState:
        """Read a checkpoint found by `newest`."""
        wanted = {
            "variables": dict(abstract.variables),
            "optimizer": {"step": abstract.step, "state": abstract.opt_state},
        }
        found = ocp.load_checkpointables(self.path(checkpoint.step), wanted)
        variables = dict(found["variables"])
        return TrainState(
            found["optimizer"]["step"], variables.pop("params"), variables, found["optimizer"]["state"]
        )

    def clean(self) -> None:
        """Remove what interrupted saves left behind. Only the first process does anything."""
        if is_first() and self.directory.is_dir():
            for path in self.directory.iterdir():
                ours = _OURS.fullmatch(path.name)  # what else a user put there is not ours to remove
                if ours and path.is_dir() and not (path / MANIFEST).is_file():
                    shutil.rmtree(path)


def load_variables(
    workdir: str | Path, stage: str | None = None
) -> tuple[dict[str, Any], int, int, Mapping[str, Any]]:
    """The variables of a run's newest checkpoint, for evaluation and prediction.

    Args:
        workdir: The run's workdir.
        stage: In place of the newest: "STAGE", the checkpoint that this stage ended with, or "STAGE:STEP",
            the one after so many of its steps.

    Returns:
        (variables as nested dicts of numpy arrays, step, stage index, config of the run as JSON).

    Raises:
        UserError: No checkpoint there, or all are damaged; none that is called `stage`.
    """
    checkpoints = Checkpoints(Path(workdir) / "checkpoints")
    named = {} if stage is None else checkpoints.named()
    if stage is None or not named:
        checkpoint = checkpoints.newest()
    elif stage in named:
        checkpoint = checkpoints.at_step(named[stage])
    else:
        what = "checkpoint" if ":" in stage else "end of a stage"
        raise UserError(f"{workdir}: holds no {what} '{stage}'; {suggest(stage, named)}")
    if checkpoint is None:
        raise UserError(f"{workdir}: holds no checkpoint (looked for {checkpoints.directory}/*/{MANIFEST})")
    path = checkpoints.path(checkpoint.step)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
        ocp.metadata(path, checkpointable_name="variables").metadata,
    )
    variables = ocp.load_checkpointables(path, {"variables": abstract})["variables"]
    return (
        jax.tree.map(np.asarray, variables),
        checkpoint.step,
        checkpoint.stage,
        checkpoint.config,
    )


class _WithoutLateReports:
    """Python's hook for errors of threads, less those of TensorStore's that a failed save leaves behind.

    They report to a loop that is closed, some before the save raises, each with a stack.
    """

    def __init__(self, hook: Callable[[sys.UnraisableHookArgs], None]) -> None:
        self._hook = hook

    def __call__(self, report: sys.UnraisableHookArgs) -> None:
        if str(report.exc_value) != "Event loop is closed":
            self._hook(report)

    @classmethod
    def install(cls) -> None:
        """Once."""
        if not isinstance(sys.unraisablehook, cls):
            sys.unraisablehook = cls(sys.unraisablehook)


class _DamagedError(Exception):
    """A checkpoint whose files are not those that were saved."""


def _read_checkpoint(path: Path) -> tuple[Checkpoint, dict[str, list[int]]]:
    """What the manifest says, and the fingerprints of all files."""
    values = _read_manifest(path)
    try:
        files = values.pop("files")
        known = [field.name for field in dataclasses.fields(Checkpoint) if field.name in values]
        return Checkpoint(**{name: values[name] for name in known}), files  # other versions note other things
    except (KeyError, TypeError) as error:
        raise _DamagedError(f"{MANIFEST}: not readable") from error


def _verify(path: Path) -> Checkpoint:
    checkpoint, files = _read_checkpoint(path)
    for name, expected in files.items():
        try:
            size = (path / name).stat().st_size
            if size != expected[0]:
                raise _DamagedError(f"{name}: {size} bytes, expected {expected[0]}")
            if _fingerprint(path / name) != expected:
                raise _DamagedError(f"{name}: wrong checksum")
        except OSError as error:
            raise _DamagedError(f"{name}: {error.strerror}") from error
    return checkpoint


def _fingerprint(file: Path) -> list[int]:
    """[size, CRC-32] of a file."""
    checksum = size = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
            size += len(block)
    return [size, checksum]


def _read_manifest(path: Path) -> dict[str, Any]:
    """What a checkpoint's manifest says, less its own checksum, which is checked."""
    try:
        values: dict[str, Any] = parse_json((path / MANIFEST).read_text())
        checksum = values.pop("checksum", None)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise _DamagedError(f"{MANIFEST}: not readable") from error
    # Those of earlier versions have none.
    if checksum not in (None, _checksum(values)):
        raise _DamagedError(f"{MANIFEST}: wrong checksum")
    return values


def _write_manifest(path: Path, values: dict[str, Any]) -> None:
    _write_json(path / MANIFEST, {**values, "checksum": _checksum(values)})


def _checksum(values: Mapping[str, Any]) -> int:
    """Of values that JSON can hold, wherever its text has spaces."""
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def _write_json(file: Path, value: Any) -> None:
    temporary = file.with_suffix(".tmp")
    with temporary.open("w") as stream:
        json.dump(value, stream)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


def _remove(path: Path) -> None:
    (path / MANIFEST).unlink(missing_ok=True)  # first: a half-removed directory must not look complete
    shutil.rmtree(path)
