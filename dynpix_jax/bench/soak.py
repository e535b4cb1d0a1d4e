"""Trains a tiny gated network over and over while its processes, disk and files are harmed at random.

example:
  dynpix bench soak --minutes 30

Each campaign trains one run to its end, started again after every fault: kill -9, SIGTERM, SIGHUP, a full
disk, the newest checkpoint damaged, a loader's worker killed, the log garbled. Its parameters must then be
those of an undisturbed run, bit for bit. The disk is a tmpfs of its own where this process may mount one, and
is filled; elsewhere the trainer may write no file of more than a few kilobytes for a while.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.trees import named_leaves
from dynpix_jax.training.checkpoints import Checkpoints, load_variables

CONFIG = """
import ml_collections

def get_config():
    scenes = {"name": "scenes", "size": (32, 48), "length": 16, "fields": ("boundaries",)}
    gate = {"kind": "pixel", "scope": "residual", "rho": 0.5}
    return ml_collections.ConfigDict({
        "name": "soak", "seed": 0,
        "model": {
            "system": "pag", "task": "boundaries",
            "backbone": {"depth": 26, "width": 8, "output_stride": 16}, "drop_blocks": 4, "head_features": 4,
        },
        "data": {
            "train": {"source": {**scenes, "split": "train"}}, "eval": {"source": {**scenes, "split": "val"}},
        },
        "training": {"batch_size": 2, "checkpoint_every": 10, "log_every": 5, "keep": 3, "stages": (
            {"name": "base", "steps": %(steps)d, "learning_rate": 1e-4},
            {"name": "gates", "steps": %(steps)d, "learning_rate": 1e-4, "model": {"gate": gate}},
        )},
    })
"""
_DISK = "24m"
_FILE_LIMIT = 4096

Fault = Callable[["Campaign"], None]


class Campaign:
    """One run, and what has happened to it.

    Attributes:
        workdir: The run's.
        counts: Of faults and of what was found wrong, by name.
        patience: Seconds after which a trainer that neither ends nor stops counts as stuck.
    """

    def __init__(
        self,
        folder: Path,
        config: Path,
        chance: random.Random,
        counts: collections.Counter[str],
        patience: float,
    ):
        self.workdir, self.disk = folder / "run", folder
        self.counts, self.patience = counts, patience
        self._config, self._chance = config, chance
        # Compiled once and quickly: faults are to meet training. What harms the cache counts, too.
        self._environment = {
            **os.environ,
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": str(config.with_name("compiled")),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        self._errors = config.with_name("stderr")
        self._trainer: subprocess.Popen[bytes] | None = None
        self._workers: list[int] = []

    @property
    def trainer(self) -> subprocess.Popen[bytes]:
        """The process that trains now."""
        assert self._trainer is not None
        return self._trainer

    def start(self, *, small_files: bool = False) -> None:
        """Starts the trainer, with or without workers: that changes nothing in its batches."""
        workers = self._chance.choice((0, 0, 2))
        command = [sys.executable, "-m", "dynpix_jax.cli.main", "train", f"--config={self._config}"]
        command += [f"--workdir={self.workdir}", "--set", f"training.workers={workers}"]
        limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (_FILE_LIMIT, _FILE_LIMIT))
        with self._errors.open("wb") as errors:
            self._trainer = subprocess.Popen(
                command,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=self._environment,
                start_new_session=True,
                preexec_fn=limit if small_files else None,
            )
        self.counts["starts"] += 1
        self._workers = []

    def close(self) -> None:
        """Kills a trainer that is left, when this program is stopped."""
        if self._trainer is not None and self._trainer.poll() is None:
            self._trainer.kill()
            self._trainer.wait()

    def ended_by_itself(self, seconds: float) -> bool:
        """Whether the trainer ends within some seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.trainer.wait(seconds)
        return self.trainer.poll() is not None

    def undisturbed(self) -> dict[str, Any]:
        """The parameters of a run that nothing happens to, however long it takes."""
        self.start()
        if self.trainer.wait():
            raise UserError(f"the undisturbed run failed: {self._errors.read_text(errors='replace')[-2000:]}")
        return load_variables(self.workdir)[0]

    def send(self, number: int) -> None:
        """Sends the trainer a signal."""
        self._workers = children(self.trainer.pid)
        self.trainer.send_signal(number)

    def end(self, expected: tuple[int, ...]) -> None:
        """Waits for the trainer's end and looks at how it ended; kills it if it is stuck."""
        if not self.ended_by_itself(self.patience):
            self.wrong("stuck")
            self.trainer.kill()
            self.trainer.wait()
        elif self.trainer.returncode not in expected:
            self.wrong(f"status {self.trainer.returncode}")
        if "Traceback" in self._errors.read_text(errors="replace"):
            self.wrong("traceback")
        until = time.monotonic() + 10
        while any(map(alive, self._workers)) and time.monotonic() < until:
            time.sleep(0.1)
        if any(map(alive, self._workers)):
            self.wrong("orphans")

    def wrong(self, what: str) -> None:
        """Counts a fault of ours, and shows what the trainer said."""
        self.counts[f"WRONG: {what}"] += 1
        print(f"WRONG: {what}: {self._errors.read_text(errors='replace')[-2000:]}", file=sys.stderr)

    def newest(self) -> tuple[list[int], Checkpoints]:
        """Steps that have a checkpoint."""
        checkpoints = Checkpoints(self.workdir / "checkpoints")
        return checkpoints.steps(), checkpoints

    def pick(self, files: list[Path]) -> Path:
        """One of some files."""
        return self._chance.choice(sorted(files))


def killed(campaign: Campaign) -> None:
    """kill -9."""
    campaign.send(signal.SIGKILL)
    campaign.end((-signal.SIGKILL, 0))


def stopped(campaign: Campaign, number: signal.Signals) -> None:
    """A signal that asks for an end, with a checkpoint; before training begins it simply ends it."""
    campaign.send(number)
    campaign.end((0, -number))


def disk_full(campaign: Campaign) -> None:
    """The disk has no room for some seconds; the trainer goes on, or ends with a line."""
    if not os.path.ismount(campaign.disk):
        killed(campaign)
        campaign.start(small_files=True)
        campaign.end((2,))
        return
    filler = campaign.disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb") as stream:
        while True:
            stream.write(bytes(4096))
            stream.flush()
    if campaign.ended_by_itself(8):
        campaign.end((2, 0))
    filler.unlink()
    if campaign.trainer.poll() is None:
        stopped(campaign, signal.SIGTERM)


def damaged(campaign: Campaign) -> None:
    """kill -9, and a flipped byte in the newest of several checkpoints."""
    killed(campaign)
    steps, checkpoints = campaign.newest()
    if len(steps) > 1:
        file = campaign.pick([one for one in checkpoints.path(steps[-1]).rglob("*") if one.is_file()])
        content = bytearray(file.read_bytes() or b"x")
        content[len(content) // 2] ^= 0xFF
        file.write_bytes(content)


def worker_killed(campaign: Campaign) -> None:
    """kill -9 of a process that loads batches, if there is one."""
    workers = [pid for pid in children(campaign.trainer.pid) if "spawn_main" in _command(pid)]
    if not workers:
        killed(campaign)
        return
    os.kill(workers[0], signal.SIGKILL)
    campaign.end((2, 0))


def log_garbled(campaign: Campaign) -> None:
    """kill -9, and bytes that are no text in the log."""
    killed(campaign)
    with contextlib.suppress(FileNotFoundError), (campaign.workdir / "metrics.jsonl").open("ab") as log:
        log.write(b"\xff\xfe{\n\n[1]\n")


FAULTS: dict[str, Fault] = {
    "kill -9": killed,
    "SIGTERM": partial(stopped, number=signal.SIGTERM),
    "SIGHUP": partial(stopped, number=signal.SIGHUP),
    "full disk": disk_full,
    "damaged checkpoint": damaged,
    "killed worker": worker_killed,
    "garbled log": log_garbled,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the program."""
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (default: 30)")
    parser.add_argument("--steps", type=int, default=60, help="of each of the two stages (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the faults (default: 0)")
    parser.add_argument(
        "--patience",
        type=float,
        default=300.0,
        help="seconds after which a trainer counts as stuck (default: 300; more on a busy machine)",
    )
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")


def run(args: argparse.Namespace) -> int:
    """Runs campaigns until the time is over; 1 if anything was found wrong."""
    if not 0 < args.minutes < 1e5 or args.steps < 1 or not args.patience > 0:
        given = f"--minutes {args.minutes:g} --steps {args.steps} --patience {args.patience:g}"
        raise UserError(f"{given}: expected numbers above 0")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    chance = random.Random(args.seed)
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "soak.py"
        config.write_text(CONFIG % {"steps": args.steps})
        make = partial(Campaign, config=config, chance=chance, counts=counts, patience=args.patience)
        for _ in range(2):  # the first one compiles, the second one is timed
            with _disk(Path(folder) / "whole") as disk, contextlib.closing(make(disk)) as whole:
                began = time.monotonic()
                expected = whole.undisturbed()
                longest = time.monotonic() - began
        until = time.monotonic() + 60 * args.minutes
        while time.monotonic() < until:
            with (
                _disk(Path(folder) / "harmed") as disk,
                contextlib.closing(make(disk)) as campaign,
            ):
                if _run_campaign(campaign, chance, until, longest):
                    same = _same(load_variables(campaign.workdir)[0], expected)
                    counts["campaigns, the same bit for bit" if same else "WRONG: other parameters"] += 1
    print(json.dumps(counts, indent=2) if args.json else "\n".join(f"{n:6d}  {k}" for k, n in counts.items()))
    return int(any(name.startswith("WRONG") for name in counts))


def _run_campaign(campaign: Campaign, chance: random.Random, until: float, longest: float) -> bool:
    """Harms a run until it ends, or the time is over; then it is left in peace. Whether it has ended.

    A fault comes within ``longest`` seconds of a start, those of a whole run: it may meet any part of it.
    """
    while True:
        campaign.start()
        left = chance.uniform(0, longest) if time.monotonic() < until else campaign.patience
        if campaign.ended_by_itself(left):
            campaign.end((0,))
            if campaign.trainer.returncode == 0:
                return True
            if campaign.counts["starts"] > 100_000 or time.monotonic() > until:
                return False
            continue
        name = chance.choice(sorted(FAULTS))
        FAULTS[name](campaign)
        campaign.counts[name] += 1


@contextlib.contextmanager
def _disk(folder: Path) -> Iterator[Path]:
    """A folder on a small disk of its own, where this process may mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "tmpfs", str(folder)]
    mounted = shutil.which("mount") and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield folder
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        shutil.rmtree(folder)


def children(pid: int) -> list[int]:
    """Processes that a process has started, and theirs; [] where the system does not tell."""
    own: list[int] = []
    with contextlib.suppress(OSError):  # it may end while it is looked at
        for threads in Path(f"/proc/{pid}/task").glob("*/children"):
            own += map(int, threads.read_text().split())
    return own + [other for one in own for other in children(one)]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""


def alive(pid: int) -> bool:
    """Whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _same(found: object, expected: object) -> bool:
    """Whether two trees of arrays are equal bit for bit."""
    one, other = (dict(named_leaves(tree)) for tree in (found, expected))
    return one.keys() == other.keys() and all(
        np.asarray(one[name]).tobytes() == np.asarray(other[name]).tobytes() for name in one
    )
