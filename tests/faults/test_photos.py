"""Photos that are not 8-bit RGB, and files that are none."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from dynpix_jax.core.errors import UserError
from dynpix_jax.data import images
from dynpix_jax.data.images import read_image

RAMP = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
GREY = np.repeat((RAMP // 257).astype(np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize("kind", ["png", "tif", "pgm"])
def test_16_bit_grey_is_scaled(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"ramp.{kind}"
    if kind == "pgm":
        path.write_bytes(b"P5 8 8 65535\n" + RAMP.astype(">u2").tobytes())
    else:
        Image.fromarray(RAMP).save(path)
    found = read_image(path).astype(int)
    assert abs(found - GREY).max() <= 1
    assert (found.min(), found.max()) == (0, 255)


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_numbers_without_a_range_are_refused(tmp_path: Path, kind: type) -> None:
    path = tmp_path / "numbers.tif"
    Image.fromarray(np.ones((4, 4), kind)).save(path)
    with pytest.raises(UserError, match=r"numbers, whose range is not known; expected 8 or 16.*numbers\.tif"):
        read_image(path)


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    pixels = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 51]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "rgba.png")
    expected = [[[255, 0, 0], [255, 255, 255], [204, 204, 204]]]
    np.testing.assert_array_equal(read_image(tmp_path / "rgba.png"), expected)
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "palette.png", transparency=0)
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), [[[255, 255, 255], [40, 50, 60]]])


def test_cmyk_and_lab(tmp_path: Path) -> None:
    Image.new("CMYK", (2, 2), (0, 0, 0, 255)).save(tmp_path / "black.jpg")
    assert read_image(tmp_path / "black.jpg").max() <= 8
    Image.new("CMYK", (2, 2), (0, 255, 255, 0)).save(tmp_path / "red.tif", icc_profile=b"no profile")
    np.testing.assert_array_equal(read_image(tmp_path / "red.tif")[0, 0], [255, 0, 0])
    # Lab (L 53.2, a 80.1, b 67.2) is the red of sRGB.
    lab = ImageCms.profileToProfile(
        Image.new("RGB", (2, 2), (255, 0, 0)),
        ImageCms.createProfile("sRGB"),
        ImageCms.createProfile("LAB"),
        outputMode="LAB",
    )
    assert lab is not None
    lab.save(tmp_path / "lab.tif")
    assert abs(read_image(tmp_path / "lab.tif")[0, 0].astype(int) - [255, 0, 0]).max() <= 6


def test_the_first_frame_is_taken_and_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_image(tmp_path / "moving.gif")[0, 0], [255, 0, 0])
    assert "moving.gif has 2 frames; the first is taken" in caplog.text


def test_upright(tmp_path: Path) -> None:
    tags = Image.Exif()
    tags[0x0112] = 6  # the camera was turned by a quarter
    Image.fromarray(GREY[:4]).save(tmp_path / "turned.png", exif=tags)
    assert read_image(tmp_path / "turned.png").shape == (4, 8, 3)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png", upright=True), np.rot90(GREY[:4], -1))


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(UserError, match=r"no regular file: .*pipe\.jpg"):
        read_image(tmp_path / "pipe.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    with pytest.raises(UserError, match=r"Too many levels of symbolic links.*loop\.jpg"):
        read_image(tmp_path / "loop.jpg")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "I;16", "LAB"])
def test_bands_of_a_photo(tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    depth = {"RGB": (3,), "RGBA": (4,), "LAB": (3,)}.get(mode, ())
    kind = np.uint16 if mode == "I;16" else np.uint8
    photo = Image.fromarray(rng.integers(0, np.iinfo(kind).max, (8, 5, *depth), kind))
    if mode == "P":
        photo = photo.convert("P")
        photo.putpalette(rng.integers(0, 255, 768, np.uint8).tobytes())
    elif mode == "LAB":
        photo = Image.frombytes("LAB", photo.size, photo.tobytes())
    photo.save(tmp_path / "photo.tif")
    whole = read_image(tmp_path / "photo.tif")
    monkeypatch.setattr(images, "_ROWS", 3)
    np.testing.assert_array_equal(read_image(tmp_path / "photo.tif"), whole)
    assert whole.std() > 10
