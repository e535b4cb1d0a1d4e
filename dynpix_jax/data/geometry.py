"""One sampled geometry (scale, rotation, mirroring, crop) that moves an image and all of its labels together.

Everything goes through one affine map from source to output pixels. Pixel centres are the points with whole
coordinates, x to the right, y down.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import cv2
import numpy as np

from dynpix_jax.core.augmentation import GeometryRanges, Outside, Resampling
from dynpix_jax.core.source import Element, FieldSpec, SourceSpec
from dynpix_jax.data.colour import Colour

FILL: dict[Outside, tuple[int, int, int]] = {"mean": (124, 116, 104), "black": (0, 0, 0)}
"""What an image shows outside of itself; see GeometryRanges."""


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Mirror, then rotate (degrees, counter-clockwise as seen), then scale, then crop.

    Attributes:
        origin: (y, x) of the output's top left pixel on the canvas.
        size: (H, W) of the output, None for all the canvas.
        about: (x, y) of the source that comes to lie at (W / 2, H / 2) of the output, in place of a canvas.
        resampling: See GeometryRanges.
        outside: See GeometryRanges.
    """

    scale: float = 1.0
    rotation: float = 0.0
    flip: bool = False
    origin: tuple[int, int] = (0, 0)
    size: tuple[int, int] | None = None
    canvas: Literal["inscribed", "bounding"] = "inscribed"
    about: tuple[float, float] | None = None
    resampling: Resampling = "antialiased"
    outside: Outside = "mean"

    @staticmethod
    def around(box: np.ndarray, size: tuple[int, int]) -> Geometry:
        """Shows a box (x, y of its middle, width, height) as large as fits into ``size`` (H, W)."""
        scale = min(size[1] / float(box[2]), size[0] / float(box[3]))
        return Geometry(scale, size=size, about=(float(box[0]), float(box[1])))

    @staticmethod
    def sample_around(rng: np.random.Generator, ranges: GeometryRanges, box: np.ndarray) -> Geometry:
        """Draws a geometry around a box; `ranges.box` and `ranges.crop` are given."""
        assert ranges.box is not None
        assert ranges.crop is not None
        spread, turn = ranges.box.scale, ranges.box.rotation
        grown = 1.0 + float(np.clip(spread * rng.standard_normal(), -spread, spread))
        rotation = float(np.clip(turn * rng.standard_normal(), -2 * turn, 2 * turn))
        rotation *= bool(rng.random() < ranges.box.rotated)
        flip = bool(rng.integers(2)) and ranges.flip
        fitting = Geometry.around(box, ranges.crop)
        return dataclasses.replace(
            fitting,
            scale=fitting.scale / grown,
            rotation=rotation,
            flip=flip,
            resampling=ranges.resampling,
            outside=ranges.outside,
        )

    @staticmethod
    def sample(rng: np.random.Generator, ranges: GeometryRanges, shape: tuple[int, int]) -> Geometry:
        """Draws a geometry for an image of `shape` (H, W)."""
        if ranges.scale_between:
            low, high = math.log(min(ranges.scales)), math.log(max(ranges.scales))
            scale = math.exp(rng.uniform(low, high))
        else:
            scale = float(ranges.scales[rng.integers(len(ranges.scales))])
        if ranges.rotation_between:
            rotation = rng.uniform(min(ranges.rotations), max(ranges.rotations))
        else:
            rotation = float(ranges.rotations[rng.integers(len(ranges.rotations))])
        flip = bool(rng.integers(2)) and ranges.flip
        geometry = Geometry(
            scale, rotation, flip, canvas=ranges.canvas, resampling=ranges.resampling, outside=ranges.outside
        )
        size = ranges.crop
        if ranges.margin:
            height, width = (max(8, (side - ranges.margin) // 8 * 8) for side in geometry.canvas_size(shape))
            size = (height, width)
        if size is None:
            return geometry
        origin = []
        for canvas, crop in zip(geometry.canvas_size(shape), size, strict=True):
            slack = canvas - crop
            # A canvas smaller than the crop is put in its middle, which shows the most of the image.
            origin.append(int(rng.integers(slack + 1)) if slack >= 0 else slack // 2)
        return dataclasses.replace(geometry, origin=(origin[0], origin[1]), size=size)

    def canvas_size(self, shape: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of the canvas of an image of `shape`, at least 1 x 1."""
        rectangle = _inscribed if self.canvas == "inscribed" else _bounding
        height, width = rectangle(shape[0] * self.scale, shape[1] * self.scale, math.radians(self.rotation))
        # A hair is added so that 320.9999 from rounding errors stays 321.
        return max(1, math.floor(height + 1e-6)), max(1, math.floor(width + 1e-6))

    def linear(self) -> np.ndarray:
        """The (2, 2) map of directions (x, y) without the scale: a rotation, mirrored if `flip`."""
        cos, sin = _cos_sin(self.rotation)
        # Counter-clockwise as seen: y points down, so the signs of the sines are the other way round.
        rotation = np.array([[cos, sin], [-sin, cos]])
        return rotation @ np.diag([-1.0 if self.flip else 1.0, 1.0])

    def matrix(self, shape: tuple[int, int]) -> np.ndarray:
        """The (2, 3) affine map from source (x, y, 1) to output pixels, for a source of `shape` (H, W)."""
        linear = self.scale * self.linear()
        if self.about is not None:
            # Half the sides and not half of what is between the outer pixels: HRNet's pose code has it so.
            height, width = self.output_size(shape)
            centre, target = np.array(self.about), np.array([width / 2, height / 2])
        else:
            height, width = shape
            canvas = self.canvas_size(shape)
            centre = np.array([(width - 1) / 2, (height - 1) / 2])
            target = np.array([(canvas[1] - 1) / 2 - self.origin[1], (canvas[0] - 1) / 2 - self.origin[0]])
        return np.concatenate([linear, (target - linear @ centre)[:, None]], axis=1)

    def output_size(self, shape: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of the output of an image of `shape`."""
        return self.size or self.canvas_size(shape)

    def apply(self, element: Element, spec: SourceSpec) -> Element:
        """Moves every field of `element` by its kind in `spec`; see `FieldSpec`.

        Images and `dense` fields are interpolated bilinearly (see `resampling`), these without pixels that
        are ignored, where the nearest one is labelled. Labels, depth and normals take the nearest pixel,
        boundaries see `_warp_boundary`. Outside of the source images are `FILL`, labels their ignore value,
        keypoints invisible.
        """
        shape = element["image"].shape[:2]
        warp = _Warp(self, shape)
        return {
            name: _MOVE[spec.fields[name].kind](warp, value, spec.fields[name])
            for name, value in element.items()
        }


def augment(rng: np.random.Generator, ranges: GeometryRanges, element: Element, spec: SourceSpec) -> Element:
    """The element with a drawn geometry and, if asked for, drawn colours.

    Colours are changed first, so that what is outside of the image stays `FILL`, but drawn last, so that the
    geometry is the same with and without them.
    """
    if ranges.box is not None:
        geometry = Geometry.sample_around(rng, ranges, element[ranges.box.field])
    else:
        geometry = Geometry.sample(rng, ranges, element["image"].shape[:2])
    if ranges.colour is not None:
        colour = Colour.sample(rng, ranges.colour)
        element = element | {"image": colour.apply(element["image"])}
    return geometry.apply(element, spec)


def crop_to_box(
    element: Element,
    spec: SourceSpec,
    size: tuple[int, int],
    resampling: Resampling = "antialiased",
    outside: Outside = "mean",
) -> Element:
    """The element with all its fields as they are in a crop of ``size`` around its box."""
    geometry = Geometry.around(element["box"], size)
    return dataclasses.replace(geometry, resampling=resampling, outside=outside).apply(element, spec)


class _Warp:
    """A geometry at a source's size, with the coordinates that its fields share."""

    def __init__(self, geometry: Geometry, shape: tuple[int, int]) -> None:
        self.geometry = geometry
        self.shape = shape
        self.size = geometry.output_size(shape)
        self.forward = geometry.matrix(shape)
        linear = np.linalg.inv(self.forward[:, :2])
        y, x = np.indices(self.size, dtype=np.float64)
        # Rounded, because a coordinate of 0.4999999 and one of 0.5000001 must not depend on the platform's
        # cosine.
        shift = -linear @ self.forward[:, 2]
        self.x = np.round(linear[0, 0] * x + linear[0, 1] * y + shift[0], 6)
        self.y = np.round(linear[1, 0] * x + linear[1, 1] * y + shift[1], 6)
        self.inside = (
            (self.x >= -0.5) & (self.x < shape[1] - 0.5) & (self.y >= -0.5) & (self.y < shape[0] - 0.5)
        )

    def nearest(self, value: np.ndarray, outside: float) -> np.ndarray:
        rows = np.clip(np.floor(self.y + 0.5).astype(np.int64), 0, self.shape[0] - 1)
        columns = np.clip(np.floor(self.x + 0.5).astype(np.int64), 0, self.shape[1] - 1)
        out = np.asarray(value[rows, columns])
        out[~self.inside] = outside
        return out

    def bilinear(self, value: np.ndarray, border: int = cv2.BORDER_REPLICATE) -> np.ndarray:
        if self.geometry.scale < 1 and self.geometry.resampling == "antialiased":
            # The blur that leaves no frequency above the new sampling rate's half, about: sigma 0.87 at scale
            # 1/2.
            sigma = 0.5 * math.sqrt(self.geometry.scale**-2 - 1)
            value = cv2.GaussianBlur(value, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
        size = (self.size[1], self.size[0])
        return cv2.warpAffine(value, self.forward, size, flags=cv2.INTER_LINEAR, borderMode=border)


def _move_image(warp: _Warp, value: np.ndarray, field: FieldSpec) -> np.ndarray:
    if warp.geometry.about is not None and warp.geometry.outside == "black":
        # HRNet's pose code leaves the border to OpenCV: the image fades into black over a pixel.
        return warp.bilinear(value, cv2.BORDER_CONSTANT)
    out = warp.bilinear(value)
    out[~warp.inside] = FILL[warp.geometry.outside]
    return out


def _move_dense(warp: _Warp, value: np.ndarray, field: FieldSpec) -> np.ndarray:
    outside = 0 if field.ignore is None else field.ignore
    known = None if field.ignore is None else (value != outside).reshape(*value.shape[:2], -1).all(-1)
    if known is None or known.all():
        out = warp.bilinear(value)
    else:
        # The mean of the labelled neighbours. One with others would look like a label: another disparity.
        filled = value.copy()
        filled[~known] = 0
        share = np.maximum(warp.bilinear(known.astype(value.dtype)), 1e-6)
        out = warp.bilinear(filled) / share.reshape(*share.shape, *[1] * (value.ndim - 2))
        out[~warp.nearest(known, outside=False)] = outside
    out[~warp.inside] = outside
    return out


def _move_label(warp: _Warp, value: np.ndarray, field: FieldSpec) -> np.ndarray:
    if field.ignore is None:
        raise ValueError("a field of kind 'label' needs an ignore value")
    out = warp.nearest(value, field.ignore)
    if warp.geometry.flip and field.pairs:
        mirrored = out.copy()
        for left, right in field.pairs:
            mirrored[out == left] = right
            mirrored[out == right] = left
        return mirrored
    return out


def _move_depth(warp: _Warp, value: np.ndarray, field: FieldSpec) -> np.ndarray:
    # An image enlarged by s shows what a camera s times nearer would see.
    return warp.nearest(value, 0.0) / np.asarray(warp.geometry.scale, value.dtype)


def _move_normals(warp: _Warp, value: np.ndarray, field: FieldSpec) -> np.ndarray:
    out = warp.nearest(value, 0.0)
    # x and y of the camera frame are those of the image, so directions in it turn and mirror as the image
    # does.
    out[..., :2] = out[..., :2] @ warp.geometry.linear().T.astype(value.dtype)
    return out


def _move_keypoints(warp: _Warp, value: np.ndarray, field: FieldSpec) -> np.ndarray:
    out = value.copy()
    out[:, :2] = value[:, :2] @ warp.forward[:, :2].T + warp.forward[:, 2]
    height, width = warp.size
    inside = (
        (out[:, 0] >= -0.5) & (out[:, 0] < width - 0.5) & (out[:, 1] >= -0.5) & (out[:, 1] < height - 0.5)
    )
    if not field.beyond:
        out[:, 2] *= inside
    if warp.geometry.flip:
        for left, right in field.pairs:
            out[[left, right]] = out[[right, left]]
    return out


def _move_length(warp: _Warp, value: np.ndarray, field: FieldSpec) -> np.ndarray:
    return np.asarray(value * warp.geometry.scale, value.dtype)


def _move_box(warp: _Warp, value: np.ndarray, field: FieldSpec) -> np.ndarray:
    middle = value[:2] @ warp.forward[:, :2].T + warp.forward[:, 2]
    return np.concatenate([middle, value[2:] * warp.geometry.scale]).astype(value.dtype)


def _warp_boundary(warp: _Warp, value: np.ndarray, field: FieldSpec) -> np.ndarray:
    """Moves thin boundaries without breaking them: a weighted quantile of the four neighbours.

    The greatest level t for which the neighbours of at least t have `enough` of the bilinear weight. For 0/1
    maps that is HED's rule, interpolate and threshold; for maps of many levels it commutes with thresholding
    (a consensus of soft maps is the same before and after), invents no new values, and copies exactly where
    pixels fall on pixels. Ignored pixels rank between 0 and all positive values.

    A half would break oblique lines. The values of `enough` are about the greatest that leave lines of one
    pixel whole at all angles; at scale 1 they come out 1.6 pixels wide, on average over the angles. Below 3/4
    lines would fall between the samples and are dilated first.
    """
    ignored = np.float32(1e-9)
    level = np.where(value < 0, ignored, value).astype(np.float32)
    scale = warp.geometry.scale
    enough = 0.25 if scale >= 1 else 0.05 if scale >= 0.75 else 0.34
    if scale < 0.75:
        width = 2 * round(0.5 / scale) + 1
        level = cv2.dilate(level, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width)))
    height, width = warp.shape
    out = np.zeros(warp.size, np.float32)
    # Most pixels have only zeros around them; the rest is done on the few others.
    near = cv2.dilate((level > 0).astype(np.uint8), np.ones((3, 3), np.uint8))
    todo = np.nonzero(warp.inside & (warp.nearest(near, 0) > 0))
    x, y = warp.x[todo], warp.y[todo]
    x0, y0 = np.floor(x), np.floor(y)
    values, weights = [], []
    for dy in (0, 1):
        for dx in (0, 1):
            rows = np.clip(y0 + dy, 0, height - 1).astype(np.int64)
            columns = np.clip(x0 + dx, 0, width - 1).astype(np.int64)
            values.append(level[rows, columns])
            weights.append(np.abs(1 - dx - (x - x0)) * np.abs(1 - dy - (y - y0)))
    stacked = np.stack(values)
    order = np.argsort(-stacked, axis=0)
    share = np.cumsum(np.take_along_axis(np.stack(weights), order, axis=0), axis=0)
    chosen = np.argmax(share >= enough - 1e-6, axis=0)
    picked = np.take_along_axis(stacked, order, axis=0)
    out[todo] = np.take_along_axis(picked, chosen[None], axis=0)[0]
    out[out == ignored] = -1
    out[~warp.inside] = -1
    return out


_MOVE: dict[str, Callable[[_Warp, np.ndarray, FieldSpec], np.ndarray]] = {
    "image": _move_image,
    "boundary": _warp_boundary,
    "label": _move_label,
    "depth": _move_depth,
    "normals": _move_normals,
    "dense": _move_dense,
    "keypoints": _move_keypoints,
    "length": _move_length,
    "box": _move_box,
    "scalar": lambda warp, value, field: value,
}


def _cos_sin(degrees: float) -> tuple[float, float]:
    """Exact at the multiples of a right angle, so that these copy pixels."""
    quarter, rest = divmod(degrees, 90.0)
    if rest == 0:
        return ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))[int(quarter) % 4]
    return math.cos(math.radians(degrees)), math.sin(math.radians(degrees))


def _bounding(height: float, width: float, angle: float) -> tuple[float, float]:
    cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
    return height * cos + width * sin, height * sin + width * cos


def _inscribed(height: float, width: float, angle: float) -> tuple[float, float]:
    """(H, W) of the upright rectangle of the largest area inside of a rotated rectangle."""
    cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
    long, short = max(height, width), min(height, width)
    if short <= 2 * sin * cos * long or abs(sin - cos) < 1e-10:
        # Two corners touch the long sides, the others lie on the line between.
        half = 0.5 * short
        return (half / cos, half / sin) if width >= height else (half / sin, half / cos)
    double = cos * cos - sin * sin
    return (height * cos - width * sin) / double, (width * cos - height * sin) / double
