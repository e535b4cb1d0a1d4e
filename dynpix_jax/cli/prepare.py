"""Packs a data set in its official layout into checksummed ArrayRecord shards.

example:
  dynpix prepare camvid --source data/CamVid --out packed/camvid
  dynpix prepare nyuv2 --source data/nyu --out packed/nyu --set fields=depth,normals crop=False
  dynpix prepare camvid --out packed/camvid --verify

Train on it with --config=configs/pag/camvid.py:packed=True,root=packed/camvid or, in a config of your own,
data.train.source = dict(name="packed", root="packed/camvid", split="train"). A run that was stopped continues
with the same command. An unknown DATASET or KEY is answered with the list of those that there are.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import rich.console
import rich.progress

from dynpix_jax.core.config import plain
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.overrides import apply_overrides
from dynpix_jax.core.settings import MOST_WORKERS
from dynpix_jax.core.source import Source
from dynpix_jax.core.text import a_path
from dynpix_jax.data.packed import SPLITS, verify
from dynpix_jax.data.packing import pack
from dynpix_jax.data.sources import SOURCES, build_source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("dataset", metavar="DATASET", help="name of the source: bsds500, camvid, nyuv2, ...")
    parser.add_argument("--source", type=a_path, metavar="DIR", help="the data set as it unpacks")
    parser.add_argument("--out", required=True, type=a_path, metavar="DIR", help="where the shards go")
    parser.add_argument(
        "--split", nargs="+", choices=SPLITS, help="splits to pack; all that the source has by default"
    )
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="options of the source"
    )
    parser.add_argument(
        "--workers", type=int, default=2, metavar="N", help="processes that write; 2 by default"
    )
    parser.add_argument(
        "--shard-mb", type=int, default=128, metavar="N", help="megabytes a shard, about; 128 by default"
    )
    parser.add_argument("--verify", action="store_true", help="check the shards in --out, and write nothing")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def run(args: argparse.Namespace) -> int:
    """Packs, or verifies; prints a line a split; returns 0."""
    if not 0 <= args.workers <= MOST_WORKERS or args.shard_mb < 1:
        raise UserError(f"--workers: expected 0 to {MOST_WORKERS}, and --shard-mb: 1 or more")
    rows = _verify(args) if args.verify else _pack(args)
    if args.json:
        print(json.dumps({"dataset": args.dataset, "out": str(args.out), "splits": rows}, indent=2))
        return 0
    for row in rows:
        print("{split}: {elements} elements in {shards} shards, {megabytes:.1f} MB, {state}".format(**row))
    return 0


def _pack(args: argparse.Namespace) -> list[dict[str, Any]]:
    section = _section(args)
    rows = []
    for split, source in _sources(section, args.split):
        with _progress(f"{args.dataset} {split}") as progress:
            manifest = pack(
                source,
                section,
                split,
                args.out / split,
                workers=args.workers,
                shard_megabytes=args.shard_mb,
                progress=progress,
            )
        rows.append(_row(split, manifest, "packed"))
    return rows


def _verify(args: argparse.Namespace) -> list[dict[str, Any]]:
    splits = args.split or [split for split in SPLITS if (args.out / split).is_dir()]
    if not splits:
        raise UserError(f"--out: no folder {', '.join(SPLITS)} in {args.out.absolute()}; pack it first")
    return [_row(split, verify(args.out / split), "verified") for split in splits]


def _row(split: str, manifest: Any, state: str) -> dict[str, Any]:
    size = sum(shard.size for shard in manifest.shards)
    return {
        "split": split,
        "elements": len(manifest.names),
        "shards": len(manifest.shards),
        "megabytes": size / 1e6,
        "state": state,
    }


def _section(args: argparse.Namespace) -> dict[str, Any]:
    """The source's config section: its defaults, --source as its root, and --set."""
    source = SOURCES.resolve(args.dataset, "DATASET")
    fields = {field.name: field for field in dataclasses.fields(source.Config)}
    values: dict[str, Any] = {
        name: "" if field.default is dataclasses.MISSING else field.default for name, field in fields.items()
    }
    if "root" in fields:
        if args.source is None:
            raise UserError(f"--source: missing; expected the folder of {args.dataset}")
        values["root"] = str(args.source.absolute())
    elif args.source is not None:
        raise UserError(f"--source: {args.dataset} reads no files")
    return {"name": args.dataset, **apply_overrides(plain(values), args.set)}


def _sources(section: dict[str, Any], splits: list[str] | None) -> Iterator[tuple[str, Source]]:
    """The source of each split; without `splits`, of all that exist."""
    missing: list[UserError] = []
    found = False
    for split in splits or SOURCES.resolve(section["name"], "DATASET").splits:
        try:
            source = build_source(section, split, path="--set")
        except UserError as error:
            if splits:
                raise
            missing.append(error)
            continue
        found = True
        yield split, source
    if not found:
        raise missing[0]
    for reason in missing:
        print(f"left out: {reason}", file=sys.stderr)


@contextlib.contextmanager
def _progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal; nothing elsewhere."""
    console = rich.console.Console(file=sys.stderr)
    columns = (
        "{task.description}",
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
