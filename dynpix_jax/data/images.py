"""Reading pictures, with errors that name the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dynpix_jax.utils.errors import UserError


def read_image(path: str | Path, *, upright: bool = False) -> np.ndarray:
    """Reads a picture as uint8 (H, W, 3) RGB.

    Pillow and not OpenCV, because OpenCV returns a truncated JPEG half grey with no more than a line on
    stderr.

    Args:
      upright: obey the camera's orientation tag. Right for photos of users; wrong for data sets, whose labels
        are aligned with the pixels as stored.

    Raises:
      UserError: missing, unreadable or truncated file.
    """
    path = Path(path)
    try:
        with Image.open(path) as picture:
            picture.load()
            picture_upright = ImageOps.exif_transpose(picture) if upright else picture
            return np.array(picture_upright.convert("RGB"))
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
