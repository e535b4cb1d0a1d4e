"""Section `augment` of a config's data: ranges of random geometry and colour. Free of jax."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Resampling = Literal["antialiased", "linear"]
Outside = Literal["mean", "black"]


@dataclass(frozen=True)
class ColourRanges:
    """Ranges of `data.colour`, drawn uniformly. The defaults change nothing.

    Attributes:
        brightness: Factors are drawn from 1 - x to 1 + x.
        contrast: Likewise.
        saturation: Likewise.
        hue: Degrees to either side.
        gamma: Least and greatest exponent, drawn log-uniformly; above 1 darkens.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    gamma: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)}; expected 0 to 1")
        if not 0 <= self.hue <= 180:
            raise ValueError(f"hue: {self.hue}; expected 0 to 180 degrees")
        if not 0 < self.gamma[0] <= self.gamma[1]:
            raise ValueError(f"gamma: {self.gamma}; expected a least and a greatest exponent above 0")


@dataclass(frozen=True)
class BoxRanges:
    """A crop around a box (a person), as in HRNet's pose code, in place of a crop of the canvas.

    The defaults draw nothing.

    Attributes:
        field: The element's box, which is scaled to fit into the crop.
        scale: Standard deviation of a normal n, clipped at one deviation: the box grows by a factor 1 + n.
        rotation: Standard deviation in degrees of a normal angle, clipped at two deviations.
        rotated: Share of the draws that are rotated.
    """

    field: str
    scale: float = 0.0
    rotation: float = 0.0
    rotated: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.scale < 1:
            raise ValueError(f"scale: {self.scale}; expected a number in [0, 1)")
        if self.rotation < 0:
            raise ValueError(f"rotation: {self.rotation}; expected degrees >= 0")
        if not 0 <= self.rotated <= 1:
            raise ValueError(f"rotated: {self.rotated}; expected a share in [0, 1]")

    def unread(self) -> Mapping[str, str]:
        """Options that nothing reads, and why."""
        return {} if self.rotation else {"rotated": "rotation is 0"}


@dataclass(frozen=True)
class GeometryRanges:
    """Ranges of `data.geometry`. The defaults change nothing.

    Attributes:
        scales: Drawn evenly from these; with `scale_between` log-uniformly between the least and greatest.
        rotations: Degrees, counter-clockwise as seen, drawn evenly from these; with `rotation_between` any
            angle between the least and the greatest.
        flip: Mirror left and right in half of the draws.
        crop: (H, W) of the output, at a random place of the canvas; None keeps the canvas. A crop larger than
            the canvas shows the outside, whose labels are ignored.
        margin: Pixels that a crop is smaller than the canvas, in place of a crop of one size; its sides are
            rounded down to multiples of 8, and its place is random (Kong and Fowlkes). Images of one size
            stay of one size, others do not: take batches of one. 0: no such crop.
        scale_between: See scales.
        canvas: The region that is cropped from: `inscribed`, the largest upright rectangle inside of the
            rotated image (as HED's augmentation), or `bounding`, the smallest around it, whose corners are
            outside.
        rotation_between: See rotations.
        colour: Ranges of the colour jitter, which changes the image alone; None for none.
        box: Crops around a box, with ranges of its own.
        resampling: `antialiased` blurs images before they are made smaller; `linear` interpolates only, as
            the code of HRNet and MDEQ does.
        outside: What images show outside of themselves: the ImageNet `mean`, which is 0 after the usual
            normalisation, or `black`, 0 before it, as in the code of HRNet and MDEQ.
    """

    scales: tuple[float, ...] = (1.0,)
    rotations: tuple[float, ...] = (0.0,)
    flip: bool = False
    crop: tuple[int, int] | None = None
    margin: int = 0
    scale_between: bool = False
    canvas: Literal["inscribed", "bounding"] = "inscribed"
    rotation_between: bool = False
    colour: ColourRanges | None = None
    box: BoxRanges | None = None
    resampling: Resampling = "antialiased"
    outside: Outside = "mean"

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales: {self.scales}; expected one or more positive numbers")
        if not self.rotations:
            raise ValueError("rotations: (); expected angles in degrees, (0.0,) for none")
        if self.crop is not None and min(self.crop) < 1:
            raise ValueError(f"crop: {self.crop}; expected a positive height and width")
        if self.margin < 0:
            raise ValueError(f"margin: {self.margin}; expected a number of pixels >= 0")
        if self.margin and self.crop is not None:
            raise ValueError(f"margin: {self.margin} says how large a crop is, and so does crop {self.crop}")
        if self.colour == ColourRanges():
            raise ValueError("colour: its ranges change nothing; expected None, or others")
        if self.box is not None and self.crop is None:
            raise ValueError("crop: a size is needed with box")

    def unread(self) -> Mapping[str, str]:
        """Options that nothing reads, and why."""
        if self.box is not None:
            own = ("scales", "rotations", "scale_between", "canvas", "rotation_between")
            return dict.fromkeys(own, "a crop around a box has ranges of its own, those of box")
        reasons = {}
        if min(self.scales) >= 1:
            reasons["resampling"] = "nothing is made smaller"
        if self.crop is None and self.canvas == "inscribed":
            reasons["outside"] = "nothing outside of the image is shown"
        if len(set(self.scales)) == 1:
            reasons["scale_between"] = "there is one scale"
        if len(set(self.rotations)) == 1:
            reasons["rotation_between"] = "there is one rotation"
        if not any(self.rotations):
            reasons["canvas"] = "nothing is rotated"
        return reasons
