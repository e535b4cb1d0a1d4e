"""Large photos in tiles and bands, against all at once."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from dynpix_jax.core.errors import UserError
from dynpix_jax.evaluation.runner import ImageResult
from dynpix_jax.evaluation.tiles import Mosaic, Tile, in_tiles, tiles
from dynpix_jax.visualization.bands import PngFile, enlarged, save_bands
from dynpix_jax.visualization.task_pictures import BoundaryPictures, ClassPictures, DepthPictures
from tests.tiny import TinyRun

ROOT = Path(__file__).resolve().parents[2]
SIZE = (704, 960)
PHOTO = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)


@pytest.mark.parametrize("size", [(704, 960), (1000, 333), (257, 256), (64, 2000)])
def test_tiles_keep_each_pixel_once(size: tuple[int, int]) -> None:
    count = np.zeros(size, int)
    for tile in tiles(size, 256, 32):
        count[tile.kept] += 1
        for seen, kept, whole in zip(tile.seen, tile.kept, size, strict=True):
            assert seen.start % 64 == 0
            assert seen.stop - seen.start < 256 + 64
            # At least the overlap around what is kept, unless the image ends there.
            assert seen.start == 0 or kept.start - seen.start >= 32
            assert seen.stop == whole or seen.stop - kept.stop >= 32
    assert (count == 1).all()


def look(image: np.ndarray) -> np.ndarray:
    """A network of stride 64 that depends on 32 pixels around: means of cells, and a blur."""
    grey = image.astype(np.float32).mean(-1)
    height, width = grey.shape
    cells = grey.reshape(height // 64, 64, width // 64, 64).mean((1, 3))
    return cv2.blur(grey, (65, 65)) + cells.repeat(64, 0).repeat(64, 1)


def predict(image: np.ndarray) -> ImageResult:
    outputs: Any = types.SimpleNamespace(predictions={"grey": look(image)[None]})
    return ImageResult(outputs, {"gate": 0.5}, float(image.size), 2.0 * image.size, 1.0, image.shape[:2])


def test_tiles_predict_what_the_whole_image_does() -> None:
    task: Any = types.SimpleNamespace(decode=lambda logits: logits)
    whole, seen = look(PHOTO), Mosaic(SIZE)

    def each(tile: Tile, result: ImageResult) -> None:
        seen.add(tile, {"grey": result.outputs.predictions["grey"][0]})

    found, result = in_tiles(predict, {"grey": task}, PHOTO, side=256, overlap=64, each=each)
    np.testing.assert_allclose(found["grey"], whole, atol=1e-3)
    np.testing.assert_allclose(seen.maps["grey"], whole, atol=1e-3)
    assert result.shares == {"gate": pytest.approx(0.5)}
    assert (result.seen, result.macs_open) == (SIZE, 2 * result.macs)
    # Too little overlap shows at the seams: the test can fail.
    found, _ = in_tiles(predict, {"grey": task}, PHOTO, side=256, overlap=0)
    assert abs(found["grey"] - whole).max() > 1


@pytest.mark.slow
def test_a_hundred_megapixels_in_tiles_take_little_memory(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cv2.imwrite(str(tmp_path / "large.jpg"), cv2.resize(PHOTO, (11552, 8664)))
    command = [sys.executable, "-m", "dynpix_jax.cli.main", "predict", f"--workdir={tiny_run.workdir}"]
    command += ["--max-side=0", f"--out={tmp_path}", str(tmp_path / "large.jpg")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, process.returncode, used = os.wait4(process.pid, 0)
    assert process.returncode == 0
    assert used.ru_maxrss < 2 * 2**20  # KiB
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with Image.open(tmp_path / "large_map.png") as found:
        assert found.size == (11552, 8664)


@pytest.mark.parametrize(("shape", "kind"), [((3,), np.uint8), ((), np.uint8), ((), np.uint16)])
def test_png_by_rows(tmp_path: Path, shape: tuple[int, ...], kind: type) -> None:
    picture = np.random.default_rng(0).integers(0, np.iinfo(kind).max, (50, 7, *shape), kind)
    with PngFile(tmp_path / "a" / "rows.png", (50, 7)) as file:
        for first in range(0, 50, 13):
            file.write(picture[first : first + 13])
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a" / "rows.png")), picture)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("rows", [1, 400], ids=["at the end", "on the way"])
def test_a_full_disk_leaves_no_picture(tmp_path: Path, rows: int) -> None:
    """A small picture fits into the file's buffer, which is written when the file is closed."""
    (tmp_path / "x.png").symlink_to("/dev/full")
    noise = np.random.default_rng(0).integers(0, 256, (rows, 300), np.uint8)
    with (
        pytest.raises(UserError, match=r"cannot write the picture .*x\.png: No space left on device"),
        PngFile(tmp_path / "x.png", noise.shape) as file,
    ):
        file.write(noise)
    assert list(tmp_path.iterdir()) == []


def test_pictures_of_a_photo_that_cannot_all_be_written_are_removed(tmp_path: Path) -> None:
    (tmp_path / "map.png").symlink_to("/dev/full")
    small, photo = np.zeros((20, 30), np.float32), np.zeros((20, 30, 3), np.uint8)
    with pytest.raises(UserError, match=r"map\.png: No space left"):
        save_bands(BoundaryPictures(), photo, small, lambda kind: tmp_path / f"{kind}.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("drawn", [BoundaryPictures(), ClassPictures(), DepthPictures()])
def test_bands_draw_what_the_whole_photo_does(tmp_path: Path, drawn: Any) -> None:
    rng = np.random.default_rng(0)
    is_class = isinstance(drawn, ClassPictures)
    small = rng.integers(0, 9, (120, 200), np.uint8) if is_class else rng.random((120, 200), np.float32)
    large = drawn.resized(small, small.shape, SIZE)
    np.testing.assert_allclose(enlarged(small, SIZE, slice(0, SIZE[0])), large, atol=1e-6)
    saved = save_bands(drawn, PHOTO, small, lambda kind: tmp_path / f"{kind}.png")
    if isinstance(drawn, BoundaryPictures):  # which of two equal neighbours is a ridge, rounding decides
        large = enlarged(small, SIZE, slice(0, SIZE[0]))
    whole = drawn.like(small).files(PHOTO, large)
    assert saved.keys() == whole.keys()
    for kind, picture in whole.items():
        difference = np.asarray(Image.open(saved[kind])).astype(int) - picture
        assert abs(difference).max() <= 4  # a step of a colour map
        assert np.mean(difference != 0) < 1e-3


@pytest.mark.parametrize("width", [300, 960])
def test_lines_do_not_change_where_bands_meet(tmp_path: Path, width: int) -> None:
    noise = np.random.default_rng(0).random((400, width), np.float32)
    probability = cv2.GaussianBlur(noise, (0, 0), 2)
    probability = (probability - probability.min()) / np.ptp(probability)
    photo = np.full((400, width, 3), 90, np.uint8)
    drawn = BoundaryPictures()
    saved = save_bands(drawn, photo, probability, lambda kind: tmp_path / f"{kind}.png")
    for kind, picture in drawn.files(photo, probability).items():
        np.testing.assert_array_equal(np.asarray(Image.open(saved[kind])), picture)
    # Bands on their own differ there: the test can fail.
    alone = [drawn.files(photo[:128], probability[:128]), drawn.files(photo[128:], probability[128:])]
    parts = np.concatenate([one["overlay"] for one in alone])
    assert (parts != np.asarray(Image.open(saved["overlay"]))).any()
