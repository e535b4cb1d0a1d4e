"""Normals from depth on planes and a ball whose normals are known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynpix_jax.data.normals import backproject, normals_from_depth

CAMERA = np.array([[60.0, 0, 32], [0, 70.0, 24], [0, 0, 1]])
SIZE = (48, 64)


def rays() -> np.ndarray:
    y, x = np.indices(SIZE)
    return np.stack([(x - 32) / 60, (y - 24) / 70, np.ones(SIZE)], axis=-1)


def plane_depth(normal: np.ndarray, distance: float) -> np.ndarray:
    """z where the rays meet the plane n.X = -distance."""
    return (-distance / (rays() @ normal)).astype(np.float32)


def angles(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos(np.clip((left * right).sum(-1), -1, 1)))


def test_backprojected_points_project_back() -> None:
    depth = np.random.default_rng(0).uniform(1, 5, SIZE)
    points = backproject(depth, CAMERA)
    pixels = points @ CAMERA.T
    y, x = np.indices(SIZE)
    np.testing.assert_allclose(pixels[..., 0] / pixels[..., 2], x, atol=1e-9)
    np.testing.assert_allclose(pixels[..., 1] / pixels[..., 2], y, atol=1e-9)
    np.testing.assert_allclose(points[..., 2], depth)


@given(st.floats(-0.7, 0.7), st.floats(-0.7, 0.7), st.floats(0.5, 8))
def test_planes_have_their_normal_everywhere(x: float, y: float, distance: float) -> None:
    normal = np.array([x, y, -1.0]) / np.linalg.norm([x, y, 1])
    found = normals_from_depth(plane_depth(normal, distance), CAMERA)
    # Not exact: depth in single precision, on slanted planes.
    assert angles(found, normal).max() < 0.1
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-5)


def test_frontal_plane_faces_the_camera() -> None:
    found = normals_from_depth(np.full(SIZE, 2.0, np.float32), CAMERA)
    np.testing.assert_allclose(found, np.broadcast_to([0, 0, -1], (*SIZE, 3)), atol=1e-6)


def test_ball() -> None:
    """Curved: the plane through the window is parallel to the tangent at its middle."""
    directions = rays()
    middle, radius = np.array([0, 0, 3.0]), 1.0
    a, b = (directions**2).sum(-1), directions @ middle
    root = b**2 - a * (middle @ middle - radius**2)
    depth = np.where(root > 0, (b - np.sqrt(np.maximum(root, 0))) / a, 0).astype(np.float32)
    found = normals_from_depth(depth, CAMERA, window=(-1, 0, 1))
    inner = root > 0.5 * root.max()
    exact = (depth[..., None] * directions - middle) / radius
    assert angles(found, exact)[inner].max() < 2
    assert not found[depth == 0].any()


def test_a_step_does_not_bend_the_normals() -> None:
    depth = np.full(SIZE, 2.0, np.float32)
    depth[:, 32:] = 3.0
    found = normals_from_depth(depth, CAMERA)
    np.testing.assert_allclose(found, np.broadcast_to([0, 0, -1], (*SIZE, 3)), atol=1e-5)


def test_too_few_points_have_no_normal() -> None:
    depth = np.zeros(SIZE, np.float32)
    assert not normals_from_depth(depth, CAMERA).any()
    depth[10, 10] = depth[10, 11] = 2.0
    assert not normals_from_depth(depth, CAMERA).any()
    # Three on a line do not make a plane either.
    depth[10, 9] = 2.0
    assert not normals_from_depth(depth, CAMERA).any()


@pytest.mark.parametrize("noise", [0.002])
def test_noise_is_averaged(noise: float) -> None:
    normal = np.array([0.3, -0.4, -np.sqrt(0.75)])
    depth = plane_depth(normal, 2.0)
    depth += np.random.default_rng(0).normal(0, noise, SIZE).astype(np.float32)
    found = normals_from_depth(depth, CAMERA)[12:-12, 12:-12]
    # 81 points with 2 mm of noise over +-9 pixels of 3 cm: a fraction of a degree.
    assert np.median(angles(found, normal)) < 0.5
