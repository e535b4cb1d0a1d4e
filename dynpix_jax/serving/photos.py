"""Photos to label: their names, their pixels as a network sees them, and crops around people."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from dynpix_jax.core.augmentation import GeometryRanges
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.source import IMAGE, SourceSpec
from dynpix_jax.data.geometry import Geometry
from dynpix_jax.data.images import read_image
from dynpix_jax.data.mpii import LARGER


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


def check_names(names: Mapping[Path, str], tasks: Sequence[str]) -> None:
    """Raises UserError where NAME_TASK, of a photo's further task, is the name of another photo's results."""
    photo_of = {name.casefold(): path for path, name in names.items()}
    for path, name in names.items():
        for task in tasks[1:]:
            if other := photo_of.get(f"{name}_{task}".casefold()):
                raise UserError(
                    f"photos {path} and {other} would share the results '{name}_{task}'; "
                    "label one of them into another --out"
                )


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
