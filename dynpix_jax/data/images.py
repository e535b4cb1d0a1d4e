"""Reading pictures, with errors that name the file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dynpix_jax.core.errors import UserError


def read_image(path: str | Path, *, upright: bool = False) -> np.ndarray:
    """Reads a picture as uint8 (H, W, 3) RGB.

    Pillow and not OpenCV, because OpenCV returns a truncated JPEG half grey with no more than a line on
    stderr.

    Args:
        upright: Obey the camera's orientation tag. Right for photos of users; wrong for data sets, whose
            labels are aligned with the pixels as stored.

    Raises:
        UserError: Missing, unreadable or truncated file.
    """
    with _opened(Path(path)) as picture:
        picture_upright = ImageOps.exif_transpose(picture) if upright else picture
        return np.array(picture_upright.convert("RGB"))


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
        with Image.open(path) as picture:
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
