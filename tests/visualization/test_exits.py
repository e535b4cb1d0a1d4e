"""Pictures of exits: colours by hand, and an animation read back."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from dynpix_jax.visualization.exits import confidence_picture, correctness_picture, player_gif

WHITE, BLACK, GREEN, GREY = (255, 255, 255), (0, 0, 0), (60, 180, 75), (128, 128, 128)


def test_right_wrong_skipped():
    prediction, truth = np.array([[1, 1, 2, 0]]), np.array([[1, 2, 2, 255]])
    skipped = np.array([[False, False, True, False]])
    drawn = correctness_picture(prediction, truth, truth == 255, skipped)
    assert [tuple(pixel) for pixel in drawn[0]] == [WHITE, BLACK, GREEN, GREY]
    assert drawn.dtype == np.uint8
    drawn = correctness_picture(prediction, truth, truth == 255, None)
    assert [tuple(pixel) for pixel in drawn[0]] == [WHITE, BLACK, WHITE, GREY]


def test_confidence_is_yellow_where_it_is_high():
    drawn = confidence_picture(np.array([[0.2, 0.6, 1.0, 2.0]]), 0.2, 1.0).astype(int)
    assert drawn[0, 0, 2] > drawn[0, 0, 0]  # dark blue
    assert min(drawn[0, 2, :2]) > 200 > drawn[0, 2, 2]  # yellow
    np.testing.assert_array_equal(drawn[0, 2], drawn[0, 3])


def test_the_player_shows_predictions_when_their_macs_are_done():
    photo = np.zeros((6, 8, 3), np.uint8)
    frames = [np.full((6, 8, 3), value, np.uint8) for value in (80, 160, 240)]
    film = Image.open(io.BytesIO(player_gif(photo, frames, [1.0, 2.0, 8.0], seconds=4.0, hold=1.0)))
    assert film.n_frames == 4
    durations = []
    for index, value in enumerate((0, 80, 160, 240)):
        film.seek(index)
        durations.append(film.info["duration"])
        assert np.array(film.convert("RGB"))[3, 4].tolist() == [value] * 3
    assert durations == [500, 500, 3000, 1000]
    with pytest.raises(ValueError, match="3 predictions and 2 MACs"):
        player_gif(photo, frames, [1.0, 2.0])
