from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dynpix_jax.core.errors import UserError
from dynpix_jax.visualization import pictures, task_pictures


def photo(value: int = 100) -> np.ndarray:
    return np.full((4, 6, 3), value, np.uint8)


def test_boundary_map_by_hand():
    probability = np.array([[0.0, 0.5], [1.0, 0.2]], np.float32)
    np.testing.assert_array_equal(pictures.boundary_map(probability), [[0, 128], [255, 51]])


def test_boundary_overlay_keeps_the_photo_where_nothing_is():
    probability = np.zeros((21, 31))
    probability[:, 14:17] = 1.0  # the middle column is the ridge
    result = pictures.boundary_overlay(np.full((21, 31, 3), 100, np.uint8), probability)
    assert (result[5:-5, 15] == pictures.LINE_COLOUR).all()
    assert tuple(result[0, 15]) == (100, 100, 100)  # faded at the border
    result[:, 15] = 100
    assert (result == 100).all()


def test_boundary_overlay_draws_ridges_as_lines():
    # A ridge along column 20 with slopes; the line is its top alone: (.7 + 2 x .8 + .7) / 4 after smoothing.
    slope = np.clip(0.8 - 0.1 * abs(np.arange(41) - 20.0), 0, 1)
    probability = np.tile(slope, (30, 1)).astype(np.float32)
    grey = np.full((30, 41, 3), 100, np.uint8)
    drawn = pictures.boundary_overlay(grey, probability)
    assert (drawn[5:-5, 20] == np.rint(0.75 * np.array(pictures.LINE_COLOUR) + 0.25 * 100)).all()
    assert (np.delete(drawn, 20, axis=1) == 100).all()
    # The map that programs read keeps the slopes.
    files = task_pictures.BoundaryPictures().files(grey, probability)
    np.testing.assert_array_equal(files["map"][0], np.rint(255 * probability[0]))
    np.testing.assert_array_equal(files["overlay"], drawn)


def test_boundary_overlay_widens_lines_on_wide_photos():
    probability = np.tile(np.clip(0.8 - 0.1 * abs(np.arange(1600) - 700.0), 0, 1), (30, 1))
    drawn = pictures.boundary_overlay(np.full((30, 1600, 3), 100, np.uint8), probability)
    red = (drawn != 100).any(-1)
    np.testing.assert_array_equal(np.flatnonzero(red[15]), [698, 699, 700, 701, 702])


def test_heat_overlay_goes_from_dark_blue_to_yellow():
    shares = np.zeros((4, 6))
    shares[:, 3:] = 1.0
    result = pictures.heat_overlay(photo(), shares).astype(int)
    nothing, everything = result[0, 0], result[0, 5]
    assert nothing[2] > nothing[1]  # the ends of viridis: (68, 1, 84) and (253, 231, 37)
    assert everything[0] > everything[1] > everything[2]
    np.testing.assert_allclose(everything, 0.65 * np.array([253, 231, 37]) + 0.35 * 100, atol=1)


def test_mask_picture():
    np.testing.assert_array_equal(pictures.mask_picture(np.array([[True, False]])), [[255, 0]])
    np.testing.assert_array_equal(pictures.mask_picture(np.array([[0.0, 1.0]])), [[0, 255]])


def texts(figure: Figure) -> str:
    return " ".join(axes.get_title() for axes in figure.axes)


@pytest.mark.parametrize("count", [1, 2, 5, 17])
def test_masks_figure_has_every_block_with_its_density(count, tmp_path):
    masks = {f"res4_{i + 1}": np.arange(12).reshape(3, 4) % 4 == 0 for i in range(count)}
    figure = pictures.masks_figure(masks)
    for block in masks:
        assert f"{block}: 25%" in texts(figure)
    pictures.save_png(figure, tmp_path / "masks.png")  # warnings of the layout are errors


@pytest.mark.parametrize("size", [(4, 6), (300, 20), (20, 300)])
def test_ponder_figure_has_a_colour_bar(size, tmp_path):
    maps = {name: np.full(size, 0.5) for name in ("res2", "res3", "total")}
    figure = pictures.ponder_figure(np.zeros((*size, 3), np.uint8), maps)
    assert texts(figure).startswith("total: 50%")
    assert "computed" in figure.axes[-1].get_xlabel()
    pictures.save_png(figure, tmp_path / "deep" / "ponder.png")
    with Image.open(tmp_path / "deep" / "ponder.png") as picture:
        assert picture.size[0] > 200


def test_png_of_arrays_is_lossless(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    pictures.save_png(picture, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as stored:
        np.testing.assert_array_equal(np.asarray(stored), picture)


def test_no_place_to_write(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the picture"):
        pictures.save_png(photo(), tmp_path / "file" / "a.png")


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"boundary_map: expected \(H, W\), got shape \(1, 2, 1\)"):
        pictures.boundary_map(np.zeros((1, 2, 1)))
    with pytest.raises(ValueError, match=r"heat_overlay: expected a photo uint8 \(3, 3, 3\)"):
        pictures.heat_overlay(photo(), np.zeros((3, 3)))
    with pytest.raises(ValueError, match="no masks"):
        pictures.masks_figure({})


def test_pyplot_is_not_involved():
    program = "import sys; import dynpix_jax.visualization.report; print('matplotlib.pyplot' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
