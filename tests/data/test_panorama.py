"""Normals of panoramas on a box-shaped room, whose walls, distances and turns are known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynpix_jax.data.panorama import (
    Axes,
    decode_normals,
    depth_angle,
    detect_axes,
    estimate_angle,
    local_normals,
    panorama_rays,
    point_angle,
)
from tests.data.panorama_room import HEIGHT, WIDTH, angles, room, seen, stored
from tools.annotate_panorama.views import facing_bands


@pytest.mark.parametrize("up", [1, -1])
@pytest.mark.parametrize("turn", [1, -1])
@pytest.mark.parametrize(("north", "degrees"), [(0.0, 0.0), (0.7, 33.0), (-2.0, 250.0)])
def test_local_normals_of_a_room(up: int, turn: int, north: float, degrees: float) -> None:
    distances, normals = room(north)
    axes = Axes(up, turn)
    picture = decode_normals(stored(normals, axes, degrees))
    assert detect_axes(picture) == axes
    expected = seen(normals, north)
    # The north wall is straight ahead at azimuth 0, a little above the horizon.
    column = round(-north / (2 * math.pi) * WIDTH) % WIDTH
    rest = (-north / (2 * math.pi) * WIDTH) - round(-north / (2 * math.pi) * WIDTH)
    clicked = local_normals(picture, point_angle(picture, (column, HEIGHT // 2), axes), axes)
    # A click is as exact as the pixel: the rest of a column, and rounding to 8 bits.
    assert angles(clicked, expected).max() < abs(rest) * 360 / WIDTH + 0.6
    measured = local_normals(picture, depth_angle(picture, distances, axes), axes)
    assert angles(measured, expected).max() < 1
    guessed = local_normals(picture, estimate_angle(picture, axes), axes)
    assert angles(guessed, expected).max() < 20


@given(st.floats(-3.1, 3.1), st.floats(0, 360), st.sampled_from([1, -1]))
def test_any_canonical_point_gives_the_same(north: float, degrees: float, turn: int) -> None:
    """Clicks in the bands of different walls differ by less than the width of the bands."""
    _, normals = room(north)
    axes = Axes(1, turn)
    picture = decode_normals(stored(normals, axes, degrees))
    expected = seen(normals, north)
    rows, columns = np.nonzero(facing_bands(expected, 4.0))
    assert len({int(column) for column in columns}) >= 4
    for place in range(0, len(rows), max(1, len(rows) // 4)):
        try:
            angle = point_angle(picture, (int(columns[place]), int(rows[place])), axes)
        except ValueError:
            continue  # at the edge of a wall
        local = local_normals(picture, angle, axes)
        assert np.median(angles(local, expected)) < 5


def test_cropped_panorama_with_depth() -> None:
    distances, normals = room(0.3)
    picture = decode_normals(stored(normals, Axes(), 40))
    rows = slice(10, 54)
    angle = depth_angle(picture[rows], distances[rows], Axes(), top=10, full=HEIGHT)
    assert angles(local_normals(picture, angle, Axes()), seen(normals, 0.3)).max() < 1
    np.testing.assert_allclose(
        panorama_rays(HEIGHT, WIDTH)[rows], panorama_rays(44, WIDTH, top=10, full=HEIGHT)
    )


def test_invalid_pixels_stay_invalid() -> None:
    picture = np.full((8, 16, 3), 128, np.uint8)
    picture[0, 0] = 255, 128, 128
    picture[0, 1] = 255, 255, 255  # longer than a unit vector
    normals = decode_normals(picture)
    np.testing.assert_allclose(normals[0, 0], [1, 0, 0], atol=0.01)
    assert np.count_nonzero(normals.any(-1)) == 1
    assert np.count_nonzero(local_normals(normals, 0.3, Axes()).any(-1)) == 1
    with pytest.raises(ValueError, match="no upright surface"):
        point_angle(normals, (8, 4), Axes())
    with pytest.raises(ValueError, match="no surface with depth and normals"):
        depth_angle(normals, np.ones((8, 16)), Axes())


def test_a_click_on_the_floor_is_refused() -> None:
    _, normals = room(0.0)
    picture = decode_normals(stored(normals, Axes(), 0))
    with pytest.raises(ValueError, match="no upright surface"):
        point_angle(picture, (40, HEIGHT - 3), Axes())
