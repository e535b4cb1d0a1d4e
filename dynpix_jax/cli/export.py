"""Writes a trained network to one file: a program (stablehlo), or its weights with its config (safetensors).

examples:
  dynpix export --workdir=runs/bsds --to stablehlo --size 321x481 --out bsds.stablehlo
  dynpix export --model boundaries --to stablehlo --mode sparse --size 321x481 --platforms cpu
  dynpix export --workdir=runs/bsds --to safetensors --out bsds.safetensors

A program needs jax alone:

  from jax import export
  program = export.deserialize(open("bsds.stablehlo", "rb").read())
  predictions = program.call(images)    uint8 (B, H, W, 3) -> {"boundaries": (B, H, W)}

A .safetensors file is opened by dynpix_jax.load(FILE) and dynpix predict --model FILE. Beside it stands its
card, with the scores that eval.json in the workdir (or --scores-from) has.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from dynpix_jax.cli.runs import add_run_arguments, run_of
from dynpix_jax.core.config import RunConfig, differences
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.source import Declares, SourceSettings
from dynpix_jax.core.system import System
from dynpix_jax.core.text import a_path
from dynpix_jax.data.sources import SOURCES, declared_spec
from dynpix_jax.evaluation.results import EXIT, Measured, evaluated_run, read_results
from dynpix_jax.serving.export import PLATFORMS, to_stablehlo
from dynpix_jax.serving.network_file import write_network
from dynpix_jax.serving.predictor import Predictor
from dynpix_jax.serving.trained import Trained, open_run
from dynpix_jax.tasks import all_scores
from dynpix_jax.weights import PRECISIONS

ONLY_FOR = {
    "stablehlo": ("size", "batch", "mode", "platforms"),
    "safetensors": ("precision", "scores_from", "title", "command_line", "limits"),
}
"""Form -> its own options."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_run_arguments(parser)
    parser.add_argument("--to", required=True, choices=tuple(ONLY_FOR), help="form of the file")
    parser.add_argument("--out", type=a_path, metavar="FILE", help="default: the config's name, here")
    program = parser.add_argument_group("stablehlo")
    program.add_argument("--size", type=_size, metavar="HxW", help="of the images (default: any)")
    program.add_argument("--batch", type=int, metavar="N", help="images a call (default: any)")
    program.add_argument("--mode", choices=("dense", "sparse"), help="default: dense")
    program.add_argument("--platforms", nargs="+", choices=PLATFORMS, help="default: all three")
    weights = parser.add_argument_group("safetensors")
    weights.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="number format of stored kernels (default: float16); int8 has a scale for each output channel",
    )
    weights.add_argument(
        "--scores-from",
        type=a_path,
        metavar="DIR",
        help="workdir whose eval.json the card has, of the same network trained without the images that it is"
        " evaluated on (default: that of --workdir)",
    )
    weights.add_argument("--title", metavar="TEXT", help="of the card: what it does, one line")
    weights.add_argument("--command-line", metavar="TEXT", help="of the card: how it was trained")
    weights.add_argument("--limits", metavar="TEXT", help="of the card: what it cannot do")


def run(args: argparse.Namespace) -> int:
    """Writes the file; returns 0."""
    for form, names in ONLY_FOR.items():
        for name in names:
            if form != args.to and getattr(args, name) is not None:
                raise UserError(f"--{name.replace('_', '-')}: it is for --to {form}")
    if args.batch is not None and args.batch < 1:
        raise UserError(f"--batch {args.batch}: expected at least 1 image")
    settings = run_of(args)
    trained = open_run(settings, args.workdir, args.stage, args.weights)
    path = args.out or Path(f"{settings.name}.{args.to}")
    if args.to == "safetensors":
        card = card_of(settings, trained, args.workdir, args.scores_from)
        given = {"title": args.title, "command": args.command_line, "limits": args.limits}
        card |= {key: text for key, text in given.items() if text is not None}
        write_network(path, settings, trained, card, precision=args.precision or "float16")
    else:
        data = to_stablehlo(
            Predictor(settings, trained),
            size=args.size,
            batch=args.batch,
            mode=args.mode or "dense",
            platforms=args.platforms or PLATFORMS,
        )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {settings.name}, stage {trained.stage}")
    return 0


def card_of(
    settings: RunConfig, trained: Trained, workdir: Path | None, scores_from: Path | None = None
) -> dict[str, str]:
    """What a run itself tells of its network: data, licence, seed; scores and costs by an eval.json.

    Args:
        settings: Settings of the run.
        trained: Its network.
        workdir: Its workdir; the eval.json in it is read if there is one.
        scores_from: Workdir of another run, whose eval.json is read in its place.

    Raises:
        UserError: ``scores_from`` holds no evaluation of the same stage, or of another network.
    """
    source = settings.data.train.source
    card = {
        "title": f"{', '.join(trained.system.tasks)} ({trained.system.name})",
        "data": f"{source.name}, split {source.split}",
        "licence": _licence(source),
        "seed": str(settings.seed),
    }
    if scores_from is None:
        return card | (_own_scores(workdir, trained) if workdir else {})
    measured = _measured(_rows(scores_from, trained.stage), trained.system)
    if not measured:
        raise UserError(
            f"--scores-from {scores_from}: no eval.json with a row for the stage {trained.stage!r};"
            f" expected what dynpix eval --workdir={scores_from} writes"
        )
    held_back = evaluated_run(scores_from / "eval.json")
    other = [
        line.removeprefix("config.")
        for line in differences(_alone(held_back, trained.stage), _alone(settings, trained.stage))
        if line.startswith("config.model.")
    ]
    if other:
        raise UserError(f"--scores-from {scores_from}: another network: {other[0]}")
    seen = held_back.data.train.source.split
    return card | measured | {"scores": f"{measured['scores']}, trained on split {seen} alone"}


def _alone(run: RunConfig, stage: str) -> RunConfig:
    """A run as if it had this stage alone."""
    return replace(run, training=replace(run.training, stages=(run.stage(stage),)))


def _licence(source: SourceSettings) -> str:
    known = isinstance(SOURCES.resolve(source.name, "name"), Declares)
    return (declared_spec(source).licence if known else "") or "none: generated"


def _own_scores(workdir: Path, trained: Trained) -> dict[str, str]:
    """What eval.json in the run's own workdir tells of this network; {} if it is of another checkpoint."""
    rows = _rows(workdir, trained.stage)
    step = rows[""].step if "" in rows else None
    if step not in (None, trained.step):
        print(
            f"the card has no scores: {workdir / 'eval.json'} is of step {step}, the network of step"
            f" {trained.step}; dynpix eval --workdir={workdir} evaluates it",
            file=sys.stderr,
        )
        return {}
    return _measured(rows, trained.system)


def _rows(workdir: Path, stage: str) -> dict[str, Measured]:
    """The rows of a stage in the eval.json of a workdir, by alternative; {} without such a file."""
    file = workdir / "eval.json"
    every = read_results(file, alternatives=True) if file.is_file() else []
    return {row.alternative: row for row in every if row.stage == stage}


def _measured(rows: Mapping[str, Measured], system: System) -> dict[str, str]:
    if "" not in rows:
        return {}
    row = rows[""]
    found = {"scores": f"{_scores(row, system)} ({row.data})", "macs": f"{row.macs / 1e9:.3g}e9"}
    exits = [one for name, one in rows.items() if EXIT.fullmatch(name)]
    if exits:
        found["exits"] = "; ".join(f"{_scores(one, system)} at {one.macs / 1e9:.3g}e9 MACs" for one in exits)
    if row.milliseconds:
        found["milliseconds"] = _times(row.milliseconds, json.loads(Path(row.file).read_text())["device"])
    return found


def _scores(row: Measured, system: System) -> str:
    return ", ".join(
        f"{score.label} {score.text(row.scores[score.name])}"
        for score in all_scores(system.tasks)
        if score.name in row.scores
    )


def _times(milliseconds: Mapping[str, float], device: str) -> str:
    return f"{', '.join(f'{value:.1f} {mode}' for mode, value in milliseconds.items())} ({device})"


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if found is None or min(int(found[1]), int(found[2])) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected HxW, such as 321x481")
    return int(found[1]), int(found[2])
