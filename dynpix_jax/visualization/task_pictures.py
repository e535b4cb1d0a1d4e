"""How predictions and labels are drawn: boundaries, classes, depths, directions, joints, colours."""

from __future__ import annotations

import colorsys
import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import cv2
import matplotlib
import numpy as np

from dynpix_jax.core.registry import Registry
from dynpix_jax.tasks import Task
from dynpix_jax.visualization.pictures import LINE_REACH, boundary_map, boundary_overlay
from dynpix_jax.visualization.skeletons import draw_joints, joint_colour, skeleton_of

Colour = tuple[int, int, int]
"""RGB, 0 to 255."""

DEPTH_COLOURS = "turbo_r"
"""Colour map of depths: red = near, blue = far."""
CLASS_WEIGHT = 0.6
"""Share of the class's colour in an overlay; the rest is the photo."""
UNKNOWN: Colour = (0, 0, 0)
"""Colour of pixels without a label."""


class TaskPictures(ABC):
    """How the predictions and labels of a task are drawn.

    Args:
        classes: Names of the classes (or joints), may be empty.
        palette: Colours of the first classes; the others get colours of their own.

    Attributes:
        caption: Meaning of the colours, for the reader of a page; HTML.
        legend: Names with their colours.
        reach: Pixels around, beyond which nothing changes how a pixel is drawn.
    """

    caption: ClassVar[str]
    legend: tuple[tuple[str, Colour], ...] = ()
    reach: ClassVar[int] = 0

    def __init__(self, classes: Sequence[str] = (), palette: Sequence[Colour] = ()):
        self.classes, self.palette = tuple(classes), tuple(palette)

    @abstractmethod
    def picture(
        self, values: np.ndarray, reference: np.ndarray, photo: np.ndarray | None = None
    ) -> np.ndarray:
        """Draws a decoded prediction or a label.

        Args:
            values: The prediction.
            reference: Another of the same image, which sets the range of the colours: pictures with the same
                reference can be compared.
            photo: The image, (H, W, 3) uint8; joints are drawn on it.

        Returns:
            uint8 (H, W) or (H, W, 3).
        """

    def note(self, reference: np.ndarray) -> str:
        """The range of the colours, for the line below a picture; may be empty."""
        return ""

    @abstractmethod
    def files(self, photo: np.ndarray, prediction: np.ndarray) -> dict[str, np.ndarray]:
        """Pictures of a photo (H, W, 3) uint8 and its prediction that are saved, by the ends of their names.

        ``map`` is for programs: it holds the prediction itself, as exactly as a PNG can.
        """

    def like(self, reference: np.ndarray) -> TaskPictures:
        """The same, with the range of colours of a whole prediction, where `files` gets parts of it."""
        return self

    def resized(self, prediction: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
        """A prediction for an image of ``old`` (H, W) as one for the same image of ``new``."""
        if prediction.shape[:2] == new:
            return prediction
        # Between two classes there is no third.
        is_class = np.issubdtype(prediction.dtype, np.integer)
        interpolation = cv2.INTER_NEAREST if is_class else cv2.INTER_LINEAR
        return cv2.resize(prediction, (new[1], new[0]), interpolation=interpolation)

    def uncropped(self, prediction: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """A prediction for a crop as one for the whole image.

        Args:
            prediction: The crop's.
            matrix: (2, 3), from pixels (x, y, 1) of the image to those of the crop.
            size: (H, W) of the image.

        Returns:
            The prediction at ``size``, 0 outside of the crop.
        """
        is_class = np.issubdtype(prediction.dtype, np.integer)
        flags = cv2.WARP_INVERSE_MAP | (cv2.INTER_NEAREST if is_class else cv2.INTER_LINEAR)
        # OpenCV moves no 32-bit integers; these are ids, which a float holds.
        values = prediction.astype(np.float32)
        return cv2.warpAffine(values, matrix, (size[1], size[0]), flags=flags).astype(prediction.dtype)

    def numbers(self, prediction: np.ndarray) -> Any:
        """The prediction as JSON, where it is not a map; None otherwise."""
        return None


class BoundaryPictures(TaskPictures):
    """Probabilities in grey; on a photo as red lines."""

    caption = "In the maps white marks boundaries."
    reach = LINE_REACH

    def picture(
        self, values: np.ndarray, reference: np.ndarray, photo: np.ndarray | None = None
    ) -> np.ndarray:
        return boundary_map(np.maximum(values, 0))

    def files(self, photo: np.ndarray, prediction: np.ndarray) -> dict[str, np.ndarray]:
        """map: 8-bit grey, 255 = certainly a boundary."""
        return {"map": boundary_map(prediction), "overlay": boundary_overlay(photo, prediction)}


class ClassPictures(TaskPictures):
    """A colour for each class."""

    caption = "Colours are classes; black: not labelled."

    def __init__(self, classes: Sequence[str] = (), palette: Sequence[Colour] = ()):
        self._palette = np.array([*palette, *class_colours(256)[len(palette) :]], np.uint8)
        self.legend = tuple((name, _colour(self._palette[k])) for k, name in enumerate(classes))
        self._count = len(classes) or 255

    def picture(
        self, values: np.ndarray, reference: np.ndarray, photo: np.ndarray | None = None
    ) -> np.ndarray:
        known = (values >= 0) & (values < self._count)
        colours = self._palette[np.where(known, values, 0)]
        return np.where(known[..., None], colours, np.array(UNKNOWN, np.uint8))

    def files(self, photo: np.ndarray, prediction: np.ndarray) -> dict[str, np.ndarray]:
        """map: 8-bit class ids."""
        colours = self.picture(prediction, prediction).astype(np.float32)
        overlay = np.rint(CLASS_WEIGHT * colours + (1 - CLASS_WEIGHT) * photo).astype(np.uint8)
        return {"map": prediction.astype(np.uint8), "overlay": overlay}


class DepthPictures(TaskPictures):
    """Near in red, far in blue, by the logarithm of the distance."""

    caption = "Red is near, blue is far; black: no depth known. All pictures of an image have the same range."
    _reference: np.ndarray | None = None

    def like(self, reference: np.ndarray) -> DepthPictures:
        found = copy.copy(self)
        found._reference = reference[:: max(1, len(reference) // 1024), :: max(1, reference.shape[1] // 1024)]
        return found

    def picture(
        self, values: np.ndarray, reference: np.ndarray, photo: np.ndarray | None = None
    ) -> np.ndarray:
        near, far = depth_range(reference)
        known = _is_depth(values)
        share = np.log(np.where(known, values, near) / near) / np.log(far / near)
        colours = matplotlib.colormaps[DEPTH_COLOURS](np.clip(share, 0, 1))[..., :3]
        return np.where(known[..., None], np.rint(255 * colours), np.array(UNKNOWN)).astype(np.uint8)

    def note(self, reference: np.ndarray) -> str:
        near, far = depth_range(reference)
        return f"{near:.2g} m (red) to {far:.2g} m (blue)"

    def files(self, photo: np.ndarray, prediction: np.ndarray) -> dict[str, np.ndarray]:
        """map: 16-bit millimetres, at most 65535."""
        reference = prediction if self._reference is None else self._reference
        millimetres = np.clip(np.rint(1000.0 * prediction), 0, 65535).astype(np.uint16)
        return {"map": millimetres, "colours": self.picture(prediction, reference)}


class NormalPictures(TaskPictures):
    """Directions as colours, the usual way round: x to the right, y up, z towards the camera."""

    caption = (
        "Colours are directions: red grows to the right, green upwards, blue towards the camera; black: no "
        "direction known."
    )

    def picture(
        self, values: np.ndarray, reference: np.ndarray, photo: np.ndarray | None = None
    ) -> np.ndarray:
        length = np.linalg.norm(values, axis=-1, keepdims=True)
        towards_viewer = values * np.array([1.0, -1.0, -1.0]) / np.where(length > 0, length, 1.0)
        colours = np.rint(127.5 * (1.0 + towards_viewer))
        return np.where(length > 0, colours, np.array(UNKNOWN)).astype(np.uint8)

    def files(self, photo: np.ndarray, prediction: np.ndarray) -> dict[str, np.ndarray]:
        """map: 8-bit RGB, 127.5 x (1 + component) of x to the right, y up, z towards the camera."""
        return {"map": self.picture(prediction, prediction)}


class SaliencyPictures(TaskPictures):
    """Probabilities or labels in grey; on a photo the pixels that are not salient are darker."""

    caption = "White is salient."

    def picture(
        self, values: np.ndarray, reference: np.ndarray, photo: np.ndarray | None = None
    ) -> np.ndarray:
        known = (values >= 0) & (values <= 1)
        return np.rint(255 * np.where(known, values, 0)).astype(np.uint8)

    def files(self, photo: np.ndarray, prediction: np.ndarray) -> dict[str, np.ndarray]:
        """map: 8-bit grey, 255 = certainly salient."""
        shown = (0.25 + 0.75 * prediction)[..., None] * photo
        return {"map": self.picture(prediction, prediction), "overlay": np.rint(shown).astype(np.uint8)}


class AlbedoPictures(TaskPictures):
    """Colours as they are."""

    caption = "The colours of surfaces without light and shadow; black: not labelled."

    def picture(
        self, values: np.ndarray, reference: np.ndarray, photo: np.ndarray | None = None
    ) -> np.ndarray:
        return np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)

    def files(self, photo: np.ndarray, prediction: np.ndarray) -> dict[str, np.ndarray]:
        """map: 8-bit RGB."""
        return {"map": self.picture(prediction, prediction)}


class PosePictures(TaskPictures):
    """Joints and the bones between them, on the photo."""

    caption = "Orange is the person's own right side, blue the left, green the middle of the body."

    def __init__(self, classes: Sequence[str] = (), palette: Sequence[Colour] = ()):
        self.legend = tuple((name, joint_colour(name)) for name in classes)

    def picture(
        self, values: np.ndarray, reference: np.ndarray, photo: np.ndarray | None = None
    ) -> np.ndarray:
        """Joints on the photo; a ValueError without one."""
        if photo is None:
            raise ValueError("joints are drawn on a photo: none was given")
        return draw_joints(photo, values)

    def files(self, photo: np.ndarray, prediction: np.ndarray) -> dict[str, np.ndarray]:
        """No map: `numbers` has the joints."""
        return {"overlay": draw_joints(photo, prediction)}

    def resized(self, prediction: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
        # Pixel centres have whole coordinates, and an image reaches half a pixel beyond the outer ones.
        scale = np.array([new[1] / old[1], new[0] / old[0]], prediction.dtype)
        return np.concatenate([(prediction[:, :2] + 0.5) * scale - 0.5, prediction[:, 2:]], axis=1)

    def uncropped(self, prediction: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        places = (prediction[:, :2] - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
        return np.concatenate([places, prediction[:, 2:]], axis=1).astype(prediction.dtype)

    def numbers(self, prediction: np.ndarray) -> Any:
        """Joint -> [x, y in pixels, height of the heatmap's peak]."""
        names = skeleton_of(prediction).joints
        return {name: [round(float(v), 3) for v in row] for name, row in zip(names, prediction, strict=True)}


PICTURES: Registry[type[TaskPictures]] = Registry(
    "kind of pictures",
    {
        "boundaries": BoundaryPictures,
        "classes": ClassPictures,
        "depth": DepthPictures,
        "normals": NormalPictures,
        "saliency": SaliencyPictures,
        "colours": AlbedoPictures,
        "pose": PosePictures,
    },
)
"""The values of ``Task.pictures``."""


def task_pictures(
    task: Task | type[Task], classes: Sequence[str] = (), palette: Sequence[Colour] = ()
) -> TaskPictures:
    """How a task is drawn; ``classes`` and ``palette`` are those of the source's field, where it has them."""
    return PICTURES.resolve(task.pictures, f"task {task.name}: pictures")(classes, palette)


def class_colours(count: int) -> list[Colour]:
    """Colours for classes without a palette; a few of them are easy to tell apart.

    Hues go around in steps that never repeat; lightness and saturation change in turn.
    """
    kinds = ((0.95, 0.6), (0.65, 0.85), (0.9, 0.3), (0.45, 0.7), (0.8, 0.95), (0.6, 0.4), (0.98, 0.8))
    colours = []
    for index in range(count):
        value, saturation = kinds[index % len(kinds)]
        rgb = colorsys.hsv_to_rgb((0.6 + 0.7548777 * index) % 1.0, saturation, value)
        colours.append(_colour(255 * np.array(rgb)))
    return colours


def depth_range(depth: np.ndarray) -> tuple[float, float]:
    """(near, far) in metres of all known depths but the extreme hundredths; far is above near."""
    known = depth[_is_depth(depth)]
    if not known.size:
        return 1.0, 10.0
    near, far = np.quantile(known, (0.01, 0.99))
    return float(near), float(max(far, 1.01 * near))


def _is_depth(depth: np.ndarray) -> np.ndarray:
    return (depth > 0) & np.isfinite(depth)


def _colour(rgb: np.ndarray) -> Colour:
    red, green, blue = (round(float(part)) for part in rgb)
    return red, green, blue
