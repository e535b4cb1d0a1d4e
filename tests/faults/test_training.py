"""Logs, saves and workdirs that fail while the toy system trains."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dynpix_jax.core import locks
from dynpix_jax.core.errors import UserError
from dynpix_jax.training import checkpoints, log_file, loop
from dynpix_jax.training.checkpoints import Checkpoints, SaveError
from dynpix_jax.training.data_record import DataRecord
from dynpix_jax.training.writers import JsonlWriter, TensorBoardWriter, Writer, Writers
from tests.training import toy

STAGES = ({"name": "base", "steps": 4, "learning_rate": 0.1},)
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def train(
    workdir: Path, data: DataRecord | None = None, writers: Sequence[Writer] = (), **training: Any
) -> loop.Result:
    run = toy.run(stages=STAGES, checkpoint_every=2, log_every=1, **training)
    return loop.train(run, workdir, batches=toy.batches(4), writers=writers, data=data)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Logs get half of a piece on the disk, and then an error, while this holds True."""
    full, write = [False], os.write

    def half(file: int, piece: bytes) -> int:
        if not full[0]:
            return write(file, piece)
        write(file, piece[: len(piece) // 2])
        raise FULL

    monkeypatch.setattr(log_file.os, "write", half)
    return full


def test_logs_wait_for_the_disk(
    tmp_path: Path, full_disk: list[bool], caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("whole", "full"):
        writers = Writers([JsonlWriter(tmp_path / f"{name}.jsonl"), TensorBoardWriter(tmp_path / name)])
        for step in range(5):
            full_disk[0] = name == "full" and step in (0, 2, 3)
            writers.write(step, "train", {"loss": step / 2})
        writers.close()
    assert (tmp_path / "full.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    sizes = [next((tmp_path / name).iterdir()).stat().st_size for name in ("whole", "full")]
    assert sizes[0] == sizes[1]
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2  # once a log
    assert all("No space left on device" in message for message in messages)


def test_a_log_that_stays_unwritten_is_counted(
    tmp_path: Path, full_disk: list[bool], caplog: pytest.LogCaptureFixture
) -> None:
    writer = JsonlWriter(tmp_path / "metrics.jsonl")
    full_disk[0] = True
    for step in range(3):
        writer.write(step, "train", {})
    writer.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""
    assert "3 entries could not be written" in caplog.text


def test_a_log_that_was_removed_begins_anew(tmp_path: Path) -> None:
    writer = JsonlWriter(tmp_path / "run" / "metrics.jsonl")
    writer.write(1, "train", {})
    (tmp_path / "run" / "metrics.jsonl").unlink()
    (tmp_path / "run").rmdir()
    writer.write(2, "train", {})
    writer.close()
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text())["step"] == 2


def test_garbled_lines_are_removed_with_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "metrics.jsonl"
    good = [json.dumps({"step": step, "kind": "train"}).encode() for step in (1, 2)]
    file.write_bytes(b"\n".join([good[0], b"\xff\xfe\x00{", b"[3]", good[1], b'{"step": 2, "ki']))
    JsonlWriter(file, 2).close()
    assert file.read_bytes() == b"\n".join([*good, b""])
    assert "2 lines are garbled" in caplog.text
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match=r"metrics\.jsonl: Is a directory"):
        JsonlWriter(file)


def test_a_writer_that_fails_does_not_end_the_run(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Writer):
        def note(self, text: str) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    heard: list[str] = []

    class Hears(Writer):
        def note(self, text: str) -> None:
            heard.append(text)

    writers = Writers([Broken(), Hears()])
    writers.note("a")
    writers.note("b")
    assert heard == ["a", "b"]
    assert caplog.text.count("Input/output error") == 1


def test_a_save_that_fails_is_one_line_at_once(tmp_path: Path) -> None:
    class InTheWay(Writer):
        def tick(self, step: int, stage: str) -> None:
            (tmp_path / "checkpoints").write_text("")

    began = time.monotonic()
    with pytest.raises(UserError, match=r"checkpoints/00000002 cannot be saved: .*; there is none yet"):
        train(tmp_path, writers=[InTheWay()])
    assert time.monotonic() - began < 30  # orbax alone waits for 300 s


@pytest.mark.parametrize("choice", ["stop", "continue"])
def test_a_full_disk_in_a_save(tmp_path: Path, choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    save, calls = checkpoints.ocp.save_checkpointables_async, list[Path]()

    def fails_first(path: Path, *arguments: Any) -> Any:
        calls.append(path)
        (path.parent / f"{path.name}.orbax-checkpoint-tmp").mkdir()
        if len(calls) == 1:
            raise ValueError("RESOURCE_EXHAUSTED: Failed to write [os_error_code='28']")
        (path.parent / f"{path.name}.orbax-checkpoint-tmp").rmdir()
        return save(path, *arguments)

    monkeypatch.setattr(checkpoints.ocp, "save_checkpointables_async", fails_first)
    if choice == "stop":
        with pytest.raises(SaveError, match=r"00000002 cannot be saved: No space left on device; there is n"):
            train(tmp_path)
        assert list((tmp_path / "checkpoints").iterdir()) == []
    else:
        assert train(tmp_path, on_save_error="continue").finished
        assert Checkpoints(tmp_path / "checkpoints").steps() == [4]


def test_late_reports_of_a_save_are_not_printed(tmp_path: Path) -> None:
    train(tmp_path)
    loop = asyncio.new_event_loop()
    loop.close()

    @ctypes.CFUNCTYPE(None)
    def report() -> None:
        loop.call_soon_threadsafe(print)

    report()  # pytest raises what it hears of


def test_a_workdir_has_one_trainer(tmp_path: Path) -> None:
    with locks.Lock(tmp_path / ".lock", "w", ""), pytest.raises(UserError) as refused:
        train(tmp_path)
    assert f"workdir {tmp_path} is in use by process {os.getpid()} on " in str(refused.value)
    assert "give another --workdir" in str(refused.value)


def test_a_lock_of_another_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(locks, "BEAT", 0.05)
    monkeypatch.setattr(locks, "STALE", 0.5)
    file = tmp_path / ".lock"
    file.write_text(json.dumps({"host": "elsewhere", "pid": 7, "since": "monday"}))
    # No sign of life: the other host is dead.
    with caplog.at_level(logging.WARNING), locks.Lock(file, "workdir w", "wait"):
        assert json.loads(file.read_text())["pid"] == os.getpid()
    assert "waiting" in caplog.text
    assert file.read_text() == ""
    # One that is alive, on a file system whose locks do not reach other hosts.
    monkeypatch.setattr(locks.fcntl, "flock", lambda *_: None)
    with locks.Lock(file, "workdir w", "wait"):
        monkeypatch.setattr(locks.socket, "gethostname", lambda: "here")
        told = r"workdir w is in use by process \d+ on .* since .*; wait"
        with pytest.raises(UserError, match=told), locks.Lock(file, "workdir w", "wait"):
            pass

    # The same host, on a file system without any locks.
    def unsupported(*_: object) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr(locks.fcntl, "flock", unsupported)
    first, second = (locks.Lock(file, "workdir w", "wait") for _ in range(2))
    with first, pytest.raises(UserError, match=told), second:
        pass


def test_a_workdir_that_is_removed_is_made_again_or_left_to_others(tmp_path: Path) -> None:
    file = tmp_path / "run" / ".lock"
    file.parent.mkdir()
    with locks.Lock(file, "workdir w", "wait") as lock:
        assert not lock.renew()
        file.unlink()
        file.parent.rmdir()
        assert lock.renew()
        assert not lock.renew()
        file.unlink()
        with locks.Lock(file, "w", ""), pytest.raises(UserError, match="workdir w is in use by process"):
            lock.renew()


def test_other_data_than_before(tmp_path: Path) -> None:
    before, after = (DataRecord([f"a\t{size}", "b\t2"]) for size in (1, 3))
    assert train(tmp_path, before).finished
    with pytest.raises(UserError, match=r"'a' was replaced \(1 then, 3 now\)"):
        train(tmp_path, after)
    assert train(tmp_path, before).finished


def test_every_flipped_bit_of_a_manifest_is_found(tmp_path: Path) -> None:
    train(tmp_path)
    found = Checkpoints(tmp_path / "checkpoints")
    manifest = found.path(4) / "manifest.json"
    text = manifest.read_bytes()
    whole = found.newest()
    assert whole is not None
    assert whole.step == 4
    for place in range(0, len(text), 3):
        manifest.write_bytes(text[:place] + bytes([text[place] ^ 1 << place % 8]) + text[place + 1 :])
        newest = found.newest()
        assert newest is not None
        assert newest == whole or newest.step == 2
