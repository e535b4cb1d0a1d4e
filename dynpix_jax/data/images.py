"""Reading pictures, with errors that name the file."""

from __future__ import annotations

import contextlib
import io
import logging
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from dynpix_jax.core.errors import UserError

_log = logging.getLogger(__name__)
_ROWS = 1024
"""Of a band."""


def read_image(path: str | Path, *, upright: bool = False) -> np.ndarray:
    """Reads a picture as uint8 (H, W, 3) RGB.

    Pillow and not OpenCV, because OpenCV returns a truncated JPEG half grey with no more than a line on
    stderr.

    Of an animation the first frame is read, and that is said. See `as_rgb` for what is not 8-bit RGB.

    Args:
        upright: Obey the camera's orientation tag. Right for photos of users; wrong for data sets, whose
            labels are aligned with the pixels as stored.

    Raises:
        UserError: Missing, unreadable or truncated file; numbers whose range is not known.
    """
    with _opened(Path(path)) as picture:
        # A phone's JPEG (MPO) has a preview as its second frame.
        if (frames := getattr(picture, "n_frames", 1)) > 1 and picture.format != "MPO":
            _log.warning("%s has %d frames; the first is taken", path, frames)
        if upright:
            ImageOps.exif_transpose(picture, in_place=True)
        return _pixels(picture)


def _pixels(picture: Image.Image) -> np.ndarray:
    """Of a decoded picture. Band by band, or a large photo would be there several times."""
    found = np.empty((picture.height, picture.width, 3), np.uint8)
    for first in range(0, picture.height, _ROWS):
        last = min(first + _ROWS, picture.height)
        band = picture.crop((0, first, picture.width, last))
        band.format = picture.format
        found[first:last] = np.asarray(as_rgb(band))
    return found


def as_rgb(picture: Image.Image) -> Image.Image:
    """A picture of any kind as 8-bit RGB.

    16-bit grey is scaled by its range; what is transparent shows white; CMYK, Lab and palettes go through
    their colour profile, if they have one.

    Raises:
        ValueError: Its numbers have no range by their format (32 bits, real numbers).
    """
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "PPM")):
        grey = (np.asarray(picture, np.float64) / 257).round()
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):
        kind = "real numbers" if picture.mode == "F" else "32-bit numbers"
        raise ValueError(f"{kind}, whose range is not known; expected 8 or 16 bits")
    if picture.has_transparency_data:
        seen = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
    profile = picture.info.get("icc_profile")
    if picture.mode == "LAB" or (profile and picture.mode in ("CMYK", "P")):
        return _through_profile(picture, profile)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _through_profile(picture: Image.Image, profile: bytes | None) -> Image.Image:
    if picture.mode == "P":
        picture = picture.convert("RGB")
    try:
        own = ImageCms.getOpenProfile(io.BytesIO(profile)) if profile else ImageCms.createProfile("LAB")
        found = ImageCms.profileToProfile(picture, own, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return picture.convert("RGB")  # a broken profile, or one of another kind of picture
    assert found is not None
    return found


def read_map(path: str | Path, dtype: str, what: str) -> np.ndarray:
    """Reads a picture of one channel whose values are numbers, not colours: labels, depth, disparity.

    Args:
        dtype: `uint8` for 8 bits (grey or indices into a palette, which is not looked at), `uint16` for 16.
        what: The file is, for messages: "labels".

    Raises:
        UserError: Missing or unreadable file, or one of another form.
    """
    path = Path(path)
    with _opened(path) as picture:
        mode = picture.mode
        values = np.array(picture)
    # Pillow reads 16-bit PNGs as I;16 or, older ones, as I.
    modes = {"uint8": ("L", "P"), "uint16": ("I;16", "I;16B", "I")}[dtype]
    if mode not in modes:
        raise UserError(f"{what}: {path} has mode {mode}; expected one channel of {dtype}")
    return values.astype(dtype)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The picture, decoded; whatever is wrong with the file becomes a UserError."""
    try:
        # Of a pipe the size is not known, and who reads it waits for whoever writes.
        if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
            raise UserError(f"image expected, but this is no regular file: {path}")
        with warnings.catch_warnings():
            # Of 90 to 180 megapixels; beyond that is an error.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(path)
        with picture:
            picture.load()
            yield picture
    except FileNotFoundError:
        raise UserError(f"image not found: {path}") from None
    except IsADirectoryError:
        raise UserError(f"image expected, but this is a folder: {path}") from None
    except UnidentifiedImageError:
        raise UserError(f"corrupt image (not a picture in a known format): {path}") from None
    except Image.DecompressionBombError as error:
        raise UserError(f"image too large: {path} ({error})") from None
    # Pillow's decoders raise all of these on broken files.
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"corrupt image ({error}): {path}") from None
