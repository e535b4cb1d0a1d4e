"""Exact, vectorised ray casting of a few kinds of solids, for the synthetic scenes.

The camera is at the origin of the world (X right, Y down, Z along the floor, forward) and looks along its own
z axis.
Rays are not normalised: their camera z is 1, so the ray parameter t is the depth.
"""

from __future__ import annotations

import math

import numpy as np

Vector = np.ndarray


class RayCaster:
    """Casts solids one by one and keeps the nearest hit of every pixel.

    Args:
        size: (H, W) of the picture.
        focal: Focal length in pixels; the principal point is the middle of the picture.
        rotation: (3, 3), world to camera.

    Attributes:
        depth: float64 (H, W), camera z in metres, inf where nothing was hit.
        surface: int32 (H, W), the id given with the nearest solid, -1 where nothing was hit.
        normal: float64 (H, W, 3), unit, world frame, towards the camera.
        uv: float64 (H, W, 2), metres along the surface, for textures.
    """

    def __init__(self, size: tuple[int, int], focal: float, rotation: np.ndarray) -> None:
        height, width = size
        self.size = size
        self.focal = focal
        self.rotation = rotation
        y, x = np.indices(size, dtype=np.float64)
        camera = np.stack(
            [(x - (width - 1) / 2) / focal, (y - (height - 1) / 2) / focal, np.ones(size)], axis=-1
        )
        self.rays = camera @ rotation
        self.depth = np.full(size, np.inf)
        self.surface = np.full(size, -1, np.int32)
        self.normal = np.zeros((*size, 3))
        self.uv = np.zeros((*size, 2))

    def project(self, points: np.ndarray) -> np.ndarray:
        """Pixels and depth (N, 3): x, y, z of world points (N, 3) in front of the camera."""
        camera = points @ self.rotation.T
        centre = np.array([(self.size[1] - 1) / 2, (self.size[0] - 1) / 2])
        return np.concatenate([camera[:, :2] / camera[:, 2:] * self.focal + centre, camera[:, 2:]], axis=1)

    def room(self, low: Vector, high: Vector, surfaces: np.ndarray) -> None:
        """The inside of an upright box around the camera; ids `surfaces` (3 axes, 2 sides)."""
        with np.errstate(divide="ignore"):
            times = np.where(self.rays > 0, high, low) / self.rays
        axis = np.argmin(np.where(self.rays == 0, np.inf, times), axis=-1)
        t = np.take_along_axis(times, axis[..., None], axis=-1)[..., 0]
        side = (np.take_along_axis(self.rays, axis[..., None], axis=-1)[..., 0] > 0).astype(np.int64)
        point = self.rays * t[..., None]
        self._keep(
            (slice(None), slice(None)),
            t,
            t > 0,
            surfaces[axis, side],
            _axis_normal(axis, 1 - side),
            _face_uv(point, axis),
        )

    def box(self, centre: Vector, half: Vector, yaw: float, surfaces: np.ndarray) -> None:
        """A box turned by `yaw` about the vertical; half extents `half`; ids `surfaces` (3 axes, 2 sides)."""
        turn = np.array([[math.cos(yaw), 0, -math.sin(yaw)], [0, 1, 0], [math.sin(yaw), 0, math.cos(yaw)]])
        signs = np.array([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)])
        window = self._window(centre + (signs * half) @ turn, np.zeros(8))
        rays = self.rays[window] @ turn.T
        origin = -turn @ centre
        with np.errstate(divide="ignore", invalid="ignore"):
            first, second = (-half - origin) / rays, (half - origin) / rays
        near, far = np.minimum(first, second), np.maximum(first, second)
        axis = np.argmax(near, axis=-1)
        t = near.max(axis=-1)
        hit = (t <= far.min(axis=-1)) & (t > 0)
        side = (np.take_along_axis(rays, axis[..., None], axis=-1)[..., 0] < 0).astype(np.int64)
        point = rays * t[..., None] + origin
        self._keep(
            window, t, hit, surfaces[axis, side], _axis_normal(axis, side) @ turn, _face_uv(point, axis)
        )

    def sphere(self, centre: Vector, radius: float, surface: int) -> None:
        """A ball."""
        window = self._window(centre[None], np.array([radius]))
        rays = self.rays[window]
        t, hit = _nearest_root(np.sum(rays * rays, -1), -(rays @ centre), centre @ centre - radius**2)
        normal = (rays * t[..., None] - centre) / radius
        longitude = np.arctan2(normal[..., 0], -normal[..., 2])
        uv = radius * np.stack([longitude, np.arcsin(np.clip(normal[..., 1], -1, 1))], axis=-1)
        self._keep(window, t, hit, surface, normal, uv)

    def capsule(self, start: Vector, end: Vector, radius: float, surface: int) -> None:
        """All points within `radius` of the segment from `start` to `end`."""
        window = self._window(np.stack([start, end]), np.array([radius, radius]))
        rays = self.rays[window]
        bone = end - start
        length = bone @ bone
        along, square = rays @ bone, np.sum(rays * rays, -1)
        offset = -(start @ bone)
        # The infinite cylinder first; where it is hit beyond an end, the ball at that end.
        a = np.maximum(length * square - along * along, 1e-12)
        b = -length * (rays @ start) - offset * along
        t, hit = _nearest_root(a, b, length * (start @ start) - offset**2 - radius**2 * length)
        place = (offset + t * along) / length
        ends = np.where((place < 0.5)[..., None], start, end)
        t_ball, hit_ball = _nearest_root(
            square, -np.sum(rays * ends, -1), np.sum(ends * ends, -1) - radius**2
        )
        beyond = (place < 0) | (place > 1) | ~hit
        # A ray along the bone misses the cylinder's side, and then enters by the nearer of the two balls.
        t, hit = np.where(beyond, t_ball, t), np.where(beyond, hit_ball, hit)
        place = np.clip((offset + t * along) / length, 0, 1)
        point = rays * t[..., None]
        normal = (point - start - place[..., None] * bone) / radius
        self._keep(window, t, hit, surface, normal, np.stack([point[..., 0], point[..., 1]], axis=-1))

    def _window(self, points: np.ndarray, radii: np.ndarray) -> tuple[slice, slice]:
        """The rows and columns that can see balls around `points`; all if one reaches the camera."""
        height, width = self.size
        projected = self.project(points)
        z = projected[:, 2]
        if np.any(z - radii < 0.1):
            return slice(None), slice(None)
        # A ball's outline reaches at most this far from its centre's pixel, obliquely seen as well.
        off_axis = (projected[:, :2] - [(width - 1) / 2, (height - 1) / 2]) / self.focal
        slant = np.sqrt(1 + np.sum(off_axis**2, axis=1))
        reach = self.focal * radii * slant / (z - radii) * slant + 1
        left, top = np.floor(projected[:, :2] - reach[:, None]).min(axis=0)
        right, bottom = np.ceil(projected[:, :2] + reach[:, None]).max(axis=0) + 1
        rows = slice(int(np.clip(top, 0, height)), int(np.clip(bottom, 0, height)))
        return rows, slice(int(np.clip(left, 0, width)), int(np.clip(right, 0, width)))

    def _keep(
        self,
        window: tuple[slice, slice],
        t: np.ndarray,
        hit: np.ndarray,
        surface: np.ndarray | int,
        normal: np.ndarray,
        uv: np.ndarray,
    ) -> None:
        nearer = hit & (t < self.depth[window])
        self.depth[window][nearer] = t[nearer]
        self.surface[window][nearer] = surface if np.isscalar(surface) else np.asarray(surface)[nearer]
        self.normal[window][nearer] = normal[nearer]
        self.uv[window][nearer] = uv[nearer]


def _nearest_root(a: np.ndarray, b: np.ndarray, c: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """The lesser root of a t^2 + 2 b t + c, and whether it is real and in front of the camera."""
    discriminant = b * b - a * c
    t = (-b - np.sqrt(np.maximum(discriminant, 0))) / a
    return t, (discriminant > 0) & (t > 0)


def _axis_normal(axis: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Unit vectors along `axis`, positive where `side` is 1."""
    return np.eye(3)[axis] * (2 * side - 1)[..., None]


def _face_uv(point: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """The two coordinates in the plane of a face: the horizontal one first."""
    first = np.where(axis == 0, point[..., 2], point[..., 0])
    second = np.where(axis == 1, point[..., 2], point[..., 1])
    return np.stack([first, second], axis=-1)
