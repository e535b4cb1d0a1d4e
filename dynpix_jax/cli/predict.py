"""Labels photos of any size with a trained network.

example:
  dynpix predict --model boundaries photo.jpg
  dynpix predict --workdir=runs/quickstart --out maps photo.jpg other.png

For each photo, in the --out folder: NAME_map.png, the prediction itself (boundaries: grey, white = boundary;
segmentation: class ids; depth: 16-bit millimetres; normals: 127.5 x (1 + x right, y up, z to the camera));
NAME_overlay.png (boundaries, classes or joints on the photo) or NAME_colours.png (depth, red = near); and, of
a gated network, NAME_ponder.png (where it computed); of one whose pixels choose among branches, such as
pooling sizes, NAME_choices.png. Of a network with several tasks, the pictures of all but the first have the
task in their names: NAME_depth_map.png. --json prints the joints of a pose as well.
For the server of Cityscapes, --label-ids cityscapes --max-side 0; it takes the _map.png alone.

Networks that predict in steps (configs/anytime, perspective, mdeq) stop in time with --budget-ms; the first
photo of each size runs all steps twice before that, to compile and to measure them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax

from dynpix_jax.cli.compilation_cache import use_compilation_cache
from dynpix_jax.cli.runs import add_run_arguments, run_of
from dynpix_jax.core.capabilities import inputs_of
from dynpix_jax.core.errors import UserError, cause_of
from dynpix_jax.core.text import a_path
from dynpix_jax.evaluation.tiles import is_large
from dynpix_jax.serving.labelling import label, label_ids
from dynpix_jax.serving.photos import around_person, check_names, read_photos, result_names
from dynpix_jax.serving.predictor import Predictor
from dynpix_jax.serving.trained import open_run
from dynpix_jax.tasks import TASKS

KINDS = ("map", "overlay", "colours", "ponder", "choices")
"""Pictures of a photo, by the ends of their files' names."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("photos", nargs="+", type=a_path, metavar="PHOTO", help="JPEG, PNG, ...")
    add_run_arguments(parser)
    parser.add_argument(
        "--out", type=a_path, default=Path("labelled"), metavar="DIR", help="gets the pictures (./labelled)"
    )
    parser.add_argument(
        "--mode",
        choices=("sparse", "dense"),
        default="sparse",
        help="sparse: compute at open positions only (default); dense: compute all and multiply by the masks",
    )
    parser.add_argument(
        "--max-side",
        type=int,
        default=1600,
        metavar="N",
        help="downsize photos whose longer side has more pixels (default: 1600; 0: never)",
    )
    parser.add_argument(
        "--budget-ms",
        type=float,
        metavar="MS",
        help="take the latest prediction that a network with exits, loops or iterates makes in this time",
    )
    parser.add_argument(
        "--budget-macs",
        type=float,
        metavar="N",
        help="the same with so many multiply-accumulates, such as 2e9; the first prediction is always made",
    )
    parser.add_argument(
        "--box",
        nargs=4,
        type=float,
        metavar=("X", "Y", "WIDTH", "HEIGHT"),
        help="pose: a person in the photo, pixels from its top left corner (default: all of the photo)",
    )
    parser.add_argument(
        "--label-ids",
        metavar="SOURCE",
        help="cityscapes: segmentation maps with the ids of its label files, as its server takes them",
    )
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON")


def run(args: argparse.Namespace) -> int:
    """Labels the photos and prints a line each; returns 0."""
    use_compilation_cache(args)
    budgets = {"budget_ms": args.budget_ms, "budget_macs": args.budget_macs}
    _check_numbers(args, budgets)
    photos = list({_resolved(path): path for path in args.photos}.values())  # each file once
    names = result_names(photos)
    _check_output(args.out, photos, names)
    settings = run_of(args)
    trained = open_run(settings, args.workdir, args.stage, args.weights)
    check_names(names, tuple(trained.system.tasks))
    if inputs := inputs_of(trained.system):
        taken = " and ".join(inputs)
        raise UserError(
            f"{settings.name}: its network takes {taken} beside the image, which a photo does not have; "
            "eval.py runs it on a data set that does"
        )
    warm = jax.default_backend() != "cpu"  # there the first pass is hardly slower, and seconds long
    runner = Predictor(settings, trained, warm=warm).runner
    bounded = any(budget is not None for budget in budgets.values())
    predict = partial(runner.within, **budgets) if bounded else runner
    crop = settings.data.eval.source.crop
    if args.box is not None and crop is None:
        raise UserError(f"--box: {settings.name} evaluates whole images (data.eval.source has no crop)")
    ids = {} if args.label_ids is None else label_ids(args.label_ids, trained.system.tasks)
    _make_folder(args.out)
    results = []
    try:
        for photo in read_photos(photos, names, args.max_side):
            if crop is not None:
                photo = around_person(photo, crop, args.box, settings.data.train.augment)
            elif bounded and is_large(photo.image):
                raise UserError(
                    f"{photo.path}: is predicted in tiles, and a budget is for one image; give --max-side"
                )
            results.append(label(photo, predict, trained, args.mode, args.out, ids))
            if not args.json:
                print(_describe(results[-1]), flush=True)
    finally:
        # Also when a photo cannot be read: those before it are done and keep their results.
        if args.json:
            print(json.dumps(results, indent=2))
    return 0


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be made: {cause_of(error)}") from None


def _resolved(photo: Path) -> Path:
    try:
        return photo.resolve()
    except (OSError, RuntimeError) as error:
        raise UserError(f"photo {photo}: {error}") from None


def _check_numbers(args: argparse.Namespace, budgets: Mapping[str, float | None]) -> None:
    if args.max_side and args.max_side < 16:
        raise UserError(f"--max-side {args.max_side}: expected at least 16 pixels, or 0 for no limit")
    for name, budget in budgets.items():
        if budget is not None and not 0 < budget < float("inf"):
            raise UserError(f"--{name.replace('_', '-')} {budget:g}: expected a number above 0")
    if args.box is not None and not (all(map(math.isfinite, args.box)) and min(args.box[2:]) > 0):
        raise UserError("--box: expected numbers of pixels, a WIDTH and a HEIGHT above 0")


def _check_output(out: Path, photos: Iterable[Path], names: Mapping[Path, str]) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is not a folder")
    inputs = {path.resolve() for path in photos}
    for name in names.values():
        for task, kind in itertools.product(("", *(f"{task}_" for task in TASKS)), KINDS):
            if (file := out / f"{name}_{task}{kind}.png").resolve() in inputs:
                raise UserError(f"{file} is a photo and would be overwritten; give another --out")


def _describe(numbers: dict[str, Any]) -> str:
    height, width = numbers["size"]
    computed = "x".join(map(str, numbers["computed_size"]))
    down = "" if numbers["computed_size"] == numbers["size"] else f", computed at {computed}"
    cost = f"{numbers['macs'] / 1e9:.3g}e9 MACs"
    gates = ""
    if numbers["density"] is not None:
        cost += f" ({numbers['macs'] / numbers['macs_gates_open']:.0%} of gates open)"
        gates = f", density {numbers['density']:.2f}"
    time = f"{numbers['milliseconds']:.1f} ms {numbers['mode']}"
    if numbers["prediction"] is not None:
        time += ", prediction {} of {}".format(*numbers["prediction"])
    files = " ".join(numbers["files"].values())
    return f"{numbers['photo']}: {height}x{width}{down}, {cost}, {time}{gates} -> {files}"
