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
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cv2
import jax
import numpy as np

from dynpix_jax.cli.compilation_cache import use_compilation_cache
from dynpix_jax.cli.runs import add_run_arguments, run_of
from dynpix_jax.core.augmentation import GeometryRanges
from dynpix_jax.core.capabilities import choices_of, density, inputs_of
from dynpix_jax.core.errors import UserError, cause_of
from dynpix_jax.core.source import IMAGE, NumbersClasses, SourceSpec
from dynpix_jax.core.task import Task
from dynpix_jax.core.text import a_path
from dynpix_jax.data.geometry import Geometry
from dynpix_jax.data.images import read_image
from dynpix_jax.data.mpii import LARGER
from dynpix_jax.data.sources import SOURCES
from dynpix_jax.evaluation.runner import ImageResult, Runner, choice_maps, ponder_maps
from dynpix_jax.evaluation.tiles import TILE, Mosaic, Tile, can_tile, in_tiles, is_large
from dynpix_jax.serving.trained import Trained, open_run
from dynpix_jax.tasks import TASKS
from dynpix_jax.visualization.bands import save_bands
from dynpix_jax.visualization.pictures import ponder_figure, save_png
from dynpix_jax.visualization.steps import choices_figure
from dynpix_jax.visualization.task_pictures import task_pictures

KINDS = ("map", "overlay", "colours", "ponder", "choices")
"""Pictures of a photo, by the ends of their files' names."""


@dataclasses.dataclass(frozen=True)
class Photo:
    """A photo as the network sees it.

    Attributes:
        path: Path of its file.
        name: Name of its results.
        upright: As the camera was held, uint8 (H, W, 3).
        image: The same or, if it was larger than --max-side, downsized; or a crop around a person.
        crop: How the crop was made.
    """

    path: Path
    name: str
    upright: np.ndarray
    image: np.ndarray
    crop: Geometry | None = None


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
    if inputs := inputs_of(trained.system):
        taken = " and ".join(inputs)
        raise UserError(
            f"{settings.name}: its network takes {taken} beside the image, which a photo does not have; "
            "eval.py runs it on a data set that does"
        )
    implementation = settings.execution.implementation
    warm = jax.default_backend() != "cpu"  # there the first pass is hardly slower, and seconds long
    inference = settings.evaluation.inference
    runner = Runner(trained.system, trained.variables, inference, implementation, warm)
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
    if args.box is not None and min(args.box[2:]) <= 0:
        raise UserError("--box: expected a WIDTH and a HEIGHT above 0")


def label_ids(source: str, tasks: Mapping[str, Task]) -> dict[str, np.ndarray]:
    """The ids that a data set's label files have for its classes, of the tasks that predict these.

    Returns:
        Task -> uint8 (256,), class -> id; 255 for others.

    Raises:
        UserError: No such source, label files that have the classes' own ids, or no task with its classes.
    """
    data_set = SOURCES.resolve(source, "--label-ids")
    if not isinstance(data_set, NumbersClasses):
        raise UserError(f"--label-ids {source}: its label files have no ids beside the classes'")
    ids = data_set.label_ids
    table = np.full(256, 255, np.uint8)
    table[: len(ids)] = ids
    found = {name: table for name, task in tasks.items() if task.class_count == len(ids)}
    if not found:
        raise UserError(f"--label-ids {source}: the network has no segmentation of its {len(ids)} classes")
    return found


def result_names(photos: Iterable[Path]) -> dict[Path, str]:
    """A name for the results of each photo: the stem of its file, made longer where two are the same.

    a/1.jpg and b/1.jpg become a_1 and b_1; 1.jpg and 1.png become 1_jpg and 1_png.
    """
    files = list(photos)
    candidates = {
        path: [
            path.stem,
            path.name.replace(".", "_"),
            f"{path.resolve().parent.name}_{path.stem}",
            f"{path.resolve().parent.name}_{path.name.replace('.', '_')}",
            "_".join(path.resolve().parts[1:]).replace(".", "_"),
        ]
        for path in files
    }
    level = dict.fromkeys(files, 0)
    while True:
        names = {path: candidates[path][level[path]] for path in files}
        # Some file systems ignore case.
        seen = [name.casefold() for name in names.values()]
        clashing = [path for path in files if seen.count(names[path].casefold()) > 1]
        longer = [path for path in clashing if level[path] + 1 < len(candidates[path])]
        if not longer:
            break
        for path in longer:
            level[path] += 1
    if clashing:
        raise UserError(
            f"photos {' and '.join(map(str, clashing))} would share the results '{names[clashing[0]]}'"
        )
    return names


def read_photos(photos: Iterable[Path], names: Mapping[Path, str], max_side: int) -> Iterator[Photo]:
    """The photos one by one, downsized to `max_side` (0: never).

    Raises:
        UserError: A photo is missing or corrupt; names it.
    """
    for path in photos:
        upright = read_image(path, upright=True)
        height, width = upright.shape[:2]
        image = upright
        if max_side and max(height, width) > max_side:
            scale = max_side / max(height, width)
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            image = cv2.resize(upright, size, interpolation=cv2.INTER_AREA)
        yield Photo(path, names[path], upright, image)


def around_person(
    photo: Photo, size: tuple[int, int], box: Sequence[float] | None, training: GeometryRanges | None = None
) -> Photo:
    """The photo with a crop for the network, as people are cropped in training.

    Args:
        photo: What is shown.
        size: (H, W) of the crop.
        box: (x, y) of its top left corner, width, height, in pixels of the upright photo; the crop shows a
            quarter more. None: all of the photo.
        training: The crops of training; the photo's has their resampling, and their outside.
    """
    height, width = photo.upright.shape[:2]
    x, y, wide, high = (0.0, 0.0, width, height) if box is None else box
    grown = 1.0 if box is None else LARGER
    # A photo's edge is half a pixel before the centre of its first pixel.
    person = np.array([x + wide / 2 - 0.5, y + high / 2 - 0.5, grown * wide, grown * high])
    geometry = Geometry.around(person, (int(size[0]), int(size[1])))
    if training is not None:
        geometry = dataclasses.replace(geometry, resampling=training.resampling, outside=training.outside)
    image = geometry.apply({"image": photo.upright}, SourceSpec("photo", {"image": IMAGE}))["image"]
    return dataclasses.replace(photo, image=image, crop=geometry)


def label(
    photo: Photo,
    predict: Callable[..., ImageResult],
    trained: Trained,
    mode: str,
    out: Path,
    ids: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> dict[str, Any]:
    """Labels one photo by predict(image, mode), writes its pictures into `out` and gives its numbers.

    Args:
        ids: For maps of classes, see `label_ids`; those of other tasks keep the classes.
    """
    system, of_pixels = trained.system, photo.crop is None and can_tile(trained.system.tasks)
    predictions, result, ponder, chosen = _predicted(photo, predict, trained, mode, in_parts=of_pixels)
    path_of = lambda kind: out / f"{photo.name}_{kind}.png"  # noqa: E731
    files, pictures, joints = _drawn(photo, system.tasks, predictions, path_of, ids)
    if ponder.maps:
        pictures["ponder"] = ponder_figure(photo.image[:: ponder.step, :: ponder.step], ponder.maps)
    if chosen.maps:
        pictures["choices"] = choices_figure(chosen.maps, choices_of(system))
    files |= {kind: path_of(kind) for kind in pictures}
    for kind, picture in pictures.items():
        save_png(picture, files[kind])
    return {
        "photo": str(photo.path),
        "size": list(photo.upright.shape[:2]),
        "computed_size": list(result.seen),
        "tasks": list(trained.system.tasks),
        "stage": trained.stage,
        "target_rho": trained.rho,
        "mode": mode,
        "macs": result.macs,
        "macs_gates_open": result.macs_open,
        "milliseconds": result.milliseconds,
        "prediction": result.prediction,
        "density": density(trained.system, result.shares),
        "shares": result.shares,
        "files": {kind: str(path) for kind, path in files.items()},
        **joints,
    }


def _drawn(
    photo: Photo,
    tasks: Mapping[str, Task],
    predictions: Mapping[str, np.ndarray],
    path_of: Callable[[str], Path],
    ids: Mapping[str, np.ndarray],
) -> tuple[dict[str, Path], dict[str, Any], dict[str, Any]]:
    """Files of a large photo, which are written; pictures of another, which are not; and joints."""
    of_pixels = photo.crop is None and can_tile(tasks)
    height, width = photo.upright.shape[:2]
    files: dict[str, Path] = {}
    pictures: dict[str, Any] = {}
    joints: dict[str, Any] = {}
    for task in tasks.values():
        prediction = predictions[task.name]
        drawn = task_pictures(task)
        if of_pixels and is_large(photo.upright):
            prefix = f"{task.name}_" if files else ""
            named = lambda kind, prefix=prefix: path_of(prefix + kind)  # noqa: E731
            saved = save_bands(drawn, photo.upright, prediction, named, ids.get(task.name))
            files |= {prefix + kind: file for kind, file in saved.items()}
            continue
        if photo.crop is None:
            prediction = drawn.resized(prediction, photo.image.shape[:2], (height, width))
        else:
            prediction = drawn.uncropped(prediction, photo.crop.matrix((height, width)), (height, width))
        prefix = f"{task.name}_" if pictures else ""
        for kind, picture in drawn.files(photo.upright, prediction).items():
            pictures[f"{prefix}{kind}"] = picture
        if task.name in ids:
            pictures[f"{prefix}map"] = ids[task.name][pictures[f"{prefix}map"]]
        if (numbers := drawn.numbers(prediction)) is not None:
            joints[task.name] = numbers
    return files, pictures, joints


def _predicted(
    photo: Photo, predict: Callable[..., ImageResult], trained: Trained, mode: str, *, in_parts: bool
) -> tuple[dict[str, np.ndarray], ImageResult, Mosaic, Mosaic]:
    """Predictions of a photo, what they cost, and its ponder and choice maps; a large one in tiles."""
    system = trained.system
    ponder, chosen = Mosaic(photo.image.shape[:2]), Mosaic(photo.image.shape[:2])

    def look(tile: Tile, result: ImageResult) -> None:
        if not all(np.isfinite(logits).all() for logits in result.outputs.predictions.values()):
            raise UserError(
                f"{photo.path}: the network of stage '{trained.stage}' (step {trained.step}) predicts values "
                "that are not finite; its training has diverged"
            )
        rows, columns = (part.stop - part.start for part in tile.seen)
        ponder.add(tile, ponder_maps(system, result, (rows, columns)))
        chosen.add(tile, choice_maps(system, result, (rows, columns)))

    side = TILE if in_parts and is_large(photo.image) else max(photo.image.shape)
    run = partial(predict, mode=mode)
    predictions, result = in_tiles(run, system.tasks, photo.image, side=side, each=look)
    return predictions, result, ponder, chosen


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
