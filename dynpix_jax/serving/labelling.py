"""Labels photos: runs the network, draws what it predicts and writes the pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from dynpix_jax.core.capabilities import choices_of, density
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.source import NumbersClasses
from dynpix_jax.core.task import Task
from dynpix_jax.data.sources import SOURCES
from dynpix_jax.evaluation.runner import ImageResult, choice_maps, ponder_maps
from dynpix_jax.evaluation.tiles import Mosaic, Tile, can_tile, in_tiles, is_large
from dynpix_jax.serving.photos import Photo
from dynpix_jax.serving.trained import Trained
from dynpix_jax.visualization.bands import save_bands
from dynpix_jax.visualization.pictures import ponder_figure, save_png
from dynpix_jax.visualization.steps import choices_figure
from dynpix_jax.visualization.task_pictures import task_pictures


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


def label(
    photo: Photo,
    predict: Callable[..., ImageResult],
    trained: Trained,
    mode: str,
    out: Path,
    ids: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> dict[str, Any]:
    """Labels one photo, a large one in tiles, writes its pictures and gives its numbers.

    Args:
        photo: The photo.
        predict: Runs the network, ``predict(image, mode)``.
        trained: The network.
        mode: ``sparse`` or ``dense``.
        out: Folder of the pictures, ``NAME_KIND.png``.
        ids: For maps of classes, see `label_ids`; those of other tasks keep the classes.

    Raises:
        UserError: The network predicts values that are not finite.
    """
    system, size = trained.system, photo.image.shape[:2]
    ponder, chosen = Mosaic(size), Mosaic(size)

    def look(tile: Tile, result: ImageResult) -> None:
        if not all(np.isfinite(logits).all() for logits in result.outputs.predictions.values()):
            raise UserError(
                f"{photo.path}: the network of stage '{trained.stage}' (step {trained.step}) predicts values "
                "that are not finite; its training has diverged"
            )
        ponder.add(tile, ponder_maps(system, result, tile.size))
        chosen.add(tile, choice_maps(system, result, tile.size))

    side = None if photo.crop is None else max(size)
    run = partial(predict, mode=mode)
    predictions, result = in_tiles(run, system.tasks, photo.image, side=side, each=look)
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
