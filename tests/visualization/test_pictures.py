from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dynpix_jax.core.errors import UserError
from dynpix_jax.visualization import pictures


def photo(value: int = 100) -> np.ndarray:
    return np.full((4, 6, 3), value, np.uint8)


def test_boundary_map_by_hand():
    probability = np.array([[0.0, 0.5], [1.0, 0.2]], np.float32)
    np.testing.assert_array_equal(pictures.boundary_map(probability), [[0, 128], [255, 51]])


def test_boundary_overlay_keeps_the_photo_where_nothing_is():
    probability = np.zeros((4, 6))
    probability[1, 2] = 1.0
    result = pictures.boundary_overlay(photo(), probability)
    assert tuple(result[1, 2]) == pictures.LINE_COLOUR
    result[1, 2] = 100
    np.testing.assert_array_equal(result, photo())


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
