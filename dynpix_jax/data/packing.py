"""Writes a source into ArrayRecord shards: in parallel, and so that a killed run can be continued.

Every shard is written under another name, synchronized, and renamed; then it is entered into
`manifest.partial.json`. A run that finds this file skips the shards that it names; what was in the making is
made again. At the end it becomes `manifest.json`, and from then on the folder can be read. A run that finds a
`manifest.json` makes the shards again that are missing.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dynpix_jax.core.errors import UserError, cause_of
from dynpix_jax.core.locks import Lock
from dynpix_jax.core.source import Source, annotators_of
from dynpix_jax.data.packed import (
    ANNOTATORS,
    FORMAT,
    MANIFEST,
    Manifest,
    Shard,
    checked,
    encode,
    file_digest,
    is_whole,
    read_manifest,
    with_checksum,
)
from dynpix_jax.data.workers import end_with_parent

MEGABYTE = 2**20
PARTIAL = "manifest.partial.json"
# zstd at its lowest level: half the size of raw pixels, at the speed of a disk.
WRITER_OPTIONS = "group_size:1,zstd:1"


def pack(
    source: Source,
    section: dict[str, Any],
    split: str,
    folder: Path,
    *,
    workers: int = 0,
    shard_megabytes: int = 128,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Manifest:
    """Writes all elements of `source` into `folder`, or what is missing there of an earlier run.

    Args:
        source: What to pack; picklable if there are workers.
        section: The config section that it was built from, for the manifest.
        split: The source's split.
        folder: Where to; made if need be.
        workers: Processes that write shards; 0 writes them in this one.
        shard_megabytes: About the size of the records of a shard before compression.
        progress: Called with the elements done and all, at the start and after each shard.

    Raises:
        UserError: The folder holds something else, another run is writing there, a shard of an earlier run is
            damaged; whatever the source raises.
    """
    if not len(source):
        raise UserError(f"source {source.spec.name!r} has no elements")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"packed: {folder}: cannot be made: {cause_of(error)}") from None
    with Lock(folder / ".lock", f"packed: {folder}", "wait for it to end"):
        plan = {"format": FORMAT, "source": _plain(section), "split": split, "elements": len(source)}
        done, count = _resume(folder, plan)
        if count is None:
            count = max(1, shard_megabytes * MEGABYTE // len(record_of(source, 0)))
        for stale in folder.glob("*.tmp"):
            stale.unlink()
        ranges = [range(first, min(first + count, len(source))) for first in range(0, len(source), count)]
        todo = [(number, part) for number, part in enumerate(ranges) if number not in done]

        def finish(number: int, shard: Shard) -> None:
            done[number] = shard
            content = plan | {
                "per_shard": count,
                "shards": {n: dataclasses.asdict(s) for n, s in done.items()},
            }
            _write_text(folder / PARTIAL, with_checksum(content))
            progress(sum(shard.count for shard in done.values()), len(source))

        progress(sum(shard.count for shard in done.values()), len(source))
        if (folder / MANIFEST).is_file() and not todo:
            return read_manifest(folder)
        _run(source, folder, todo, workers, finish)
        names = tuple(source.name(index) for index in range(len(source)))
        shards = tuple(done[number] for number in range(len(ranges)))
        annotated = annotators_of(source, 0) is not None
        manifest = Manifest(_plain(section), split, source.spec, names, annotated, shards)
        _write_text(folder / MANIFEST, manifest.to_json())
        (folder / PARTIAL).unlink(missing_ok=True)
        return manifest


def _run(
    source: Source,
    folder: Path,
    todo: list[tuple[int, range]],
    workers: int,
    finish: Callable[[int, Shard], None],
) -> None:
    if not workers:
        for number, part in todo:
            finish(number, write_shard(source, folder, number, part))
        return
    with concurrent.futures.ProcessPoolExecutor(
        workers,
        # Not forked: the threads of progress bars and readers do not survive that.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=end_with_parent,
    ) as pool:
        futures = {pool.submit(write_shard, source, folder, number, part): number for number, part in todo}
        try:
            for future in concurrent.futures.as_completed(futures):
                finish(futures[future], future.result())
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def record_of(source: Source, index: int) -> bytes:
    """The record of an element."""
    element = dict(source[index])
    annotators = annotators_of(source, index)
    if annotators is not None:
        element[ANNOTATORS] = np.stack(annotators)
    return encode(element)


def write_shard(source: Source, folder: Path, number: int, part: range) -> Shard:
    """Writes the elements `part` as shard `number`, and is back when it is on the disk under its name."""
    # Here, since `dynpix prepare --help` does without the extra `train`.
    from array_record.python.array_record_module import ArrayRecordWriter

    path = folder / f"shard-{number:05d}.array_record"
    temporary = folder / f"{path.name}.{os.getpid()}.tmp"
    writer = ArrayRecordWriter(str(temporary), WRITER_OPTIONS)
    try:
        for index in part:
            writer.write(record_of(source, index))
    finally:
        writer.close()
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    digest, size = file_digest(temporary), temporary.stat().st_size
    temporary.rename(path)
    return Shard(path.name, part.start, len(part), size, digest)


def _resume(folder: Path, plan: dict[str, Any]) -> tuple[dict[int, Shard], int | None]:
    """The shards that an earlier run finished, and how many elements it put in one."""
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        shards = dict(enumerate(manifest.shards))
        count = max(shard.count for shard in shards.values())
        content: dict[str, Any] = {"format": FORMAT, "source": manifest.source, "split": manifest.split}
        content["elements"] = len(manifest.names)
    elif (folder / PARTIAL).is_file():
        try:
            content = checked((folder / PARTIAL).read_text())
            shards = {int(number): Shard(**shard) for number, shard in content.pop("shards").items()}
            count = int(content.pop("per_shard"))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"packed: {folder / PARTIAL} cannot be read; delete it to begin again") from None
    else:
        return {}, None
    for key, value in plan.items():
        if content.get(key) != value:
            raise UserError(
                f"packed: {folder} was packed with {key} = {content.get(key)!r}, now it is {value!r}; choose "
                "another --out, or delete that folder"
            )
    # What is damaged is made again, too.
    whole = {number: shard for number, shard in shards.items() if is_whole(folder, shard)}
    return whole, count


def _write_text(path: Path, text: str) -> None:
    """Replaces a file at once: a reader, or a run after a power cut, sees the old or the new one."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _plain(section: dict[str, Any]) -> dict[str, Any]:
    """The section as it comes back from JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(section))
    return plain
