"""What stands where in a synthetic scene: a room with a rug and pictures, boxes, balls and a figure."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from dynpix_jax.data.figure import HEAD_RADIUS, JOINTS, LIMBS, PARTS, sample_pose
from dynpix_jax.data.raycast import RayCaster

CLASSES = ("floor", "wall", "ceiling", "rug", "picture", "box", "ball", "person")


@dataclasses.dataclass
class Surface:
    """What is the same all over a surface. A change of surface is a boundary."""

    class_id: int
    instance: int
    part: int
    material: int


class Layout:
    """The cast solids of one scene, its surfaces and materials."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self.rng = rng
        self.surfaces: list[Surface] = []
        self.materials: list[tuple[int, np.ndarray, np.ndarray, float]] = []
        self.shadows: list[tuple[float, float, float]] = []
        self.instances = 0
        self.has_figure = False
        self.joints = np.zeros((len(JOINTS), 3))
        self.head, self.head_radius = np.zeros(3), 0.0
        self._yaw = rng.uniform(-0.6, 0.6)
        pitch = rng.uniform(0.06, 0.28)
        cos, sin = math.cos(self._yaw), math.sin(self._yaw)
        about_y = np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])
        cos, sin = math.cos(pitch), math.sin(pitch)
        about_x = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
        self.caster = RayCaster(size, 0.85 * size[1], about_x @ about_y)
        self.floor = rng.uniform(1.1, 1.6)
        self._low = np.array([-rng.uniform(1.8, 3.5), self.floor - rng.uniform(2.4, 3.0), -1.0])
        self._high = np.array([rng.uniform(1.8, 3.5), self.floor, rng.uniform(4.0, 6.5)])
        self._room()
        self._objects()

    def surface(self, class_name: str, material: int, part: int = 0) -> int:
        """Adds a surface of the object that is being placed, and returns its id."""
        self.surfaces.append(Surface(CLASSES.index(class_name), self.instances, part, material))
        return len(self.surfaces) - 1

    def material(self, low: float, high: float, *, plain: float = 0.3, saturation: float = 0.6) -> int:
        """Draws a texture: kind 0 plain, 1 checks, 2 stripes, 3 noise; two colours; its period in metres."""
        rng = self.rng
        first = _colour(rng, saturation)
        second = np.clip(
            first * rng.uniform(0.45, 0.8) if rng.random() < 0.6 else _colour(rng, saturation), 0, 1
        )
        kind = 0 if rng.random() < plain else int(rng.integers(1, 4))
        self.materials.append((kind, first, second, rng.uniform(low, high)))
        return len(self.materials) - 1

    def _room(self) -> None:
        ids = np.zeros((3, 2), np.int64)
        wall = self.material(0.2, 0.6, plain=0.4, saturation=0.3)
        for axis, side, name in (
            (0, 0, "wall"),
            (0, 1, "wall"),
            (1, 0, "ceiling"),
            (1, 1, "floor"),
            (2, 0, "wall"),
            (2, 1, "wall"),
        ):
            material = wall
            if name != "wall":
                material = self.material(0.3, 0.8, plain=0.2 if name == "floor" else 0.9, saturation=0.35)
            ids[axis, side] = self.surface(name, material)
        self.caster.room(self._low, self._high, ids)
        rng, caster, high = self.rng, self.caster, self._high
        # Flat things change the surface inside of a rectangle of a face's own coordinates.
        for face, name, centre, half in (
            (
                ids[1, 1],
                "rug",
                (rng.uniform(-1, 1), rng.uniform(2, 3.5)),
                (rng.uniform(0.5, 1.1), rng.uniform(0.4, 0.9)),
            ),
            (
                ids[2, 1],
                "picture",
                (rng.uniform(-1.2, 1.2), self.floor - rng.uniform(1.4, 1.8)),
                rng.uniform(0.2, 0.45, 2),
            ),
            (
                ids[0, int(self._yaw > 0)],
                "picture",
                (rng.uniform(1.5, high[2] - 1), self.floor - rng.uniform(1.4, 1.8)),
                rng.uniform(0.2, 0.5, 2),
            ),
        ):
            self.instances += 1
            flat = self.surface(name, self.material(0.08, 0.25, plain=0.2))
            inside = np.all(np.abs(caster.uv - np.asarray(centre)) < np.asarray(half), axis=-1)
            caster.surface[(caster.surface == face) & inside] = flat

    def _objects(self) -> None:
        rng = self.rng
        taken: list[tuple[float, float, float]] = []
        place = self._place(taken, 0.45, 2.1, 3.6)
        for _ in range(int(rng.integers(2, 5))):
            spot = self._place(taken, half_width := rng.uniform(0.2, 0.5), 2.2, 5.5)
            if spot is not None:
                self._box(spot, half_width)
        for _ in range(int(rng.integers(1, 4))):
            spot = self._place(taken, radius := rng.uniform(0.12, 0.35), 1.8, 5.0)
            if spot is not None:
                self._ball(np.array([spot[0], self.floor - radius, spot[1]]), radius)
        if place is not None:
            self._figure(place)

    def _place(
        self, taken: list[tuple[float, float, float]], radius: float, near: float, far: float
    ) -> tuple[float, float] | None:
        """A free place (X, Z) on the floor, within sight; None after some attempts."""
        for _ in range(12):
            angle = self._yaw + self.rng.uniform(-0.45, 0.45)
            distance = self.rng.uniform(near, far)
            x, z = distance * math.sin(angle), distance * math.cos(angle)
            in_room = self._low[0] + radius < x < self._high[0] - radius and z < self._high[2] - radius
            if in_room and all(math.hypot(x - a, z - b) > radius + r for a, b, r in taken):
                taken.append((x, z, radius))
                self.shadows.append((x, z, radius))
                return x, z
        return None

    def _box(self, spot: tuple[float, float], reach: float) -> None:
        half = np.array(
            [
                reach * self.rng.uniform(0.5, 0.7),
                self.rng.uniform(0.15, 0.55),
                reach * self.rng.uniform(0.5, 0.7),
            ]
        )
        self.instances += 1
        material = self.material(0.12, 0.3)
        ids = np.array([[self.surface("box", material) for _ in range(2)] for _ in range(3)])
        centre = np.array([spot[0], self.floor - half[1], spot[1]])
        self.caster.box(centre, half, self.rng.uniform(0, math.pi), ids)
        if self.rng.random() < 0.4:
            radius = min(half[0], half[2]) * self.rng.uniform(0.5, 0.9)
            self._ball(centre - [0, half[1] + radius, 0], radius)

    def _ball(self, centre: np.ndarray, radius: float) -> None:
        self.instances += 1
        self.caster.sphere(centre, radius, self.surface("ball", self.material(0.1, 0.25, saturation=0.9)))

    def _figure(self, place: tuple[float, float]) -> None:
        rng = self.rng
        self.instances += 1
        height = rng.uniform(1.5, 1.85)
        pose = sample_pose(rng, height, rng.uniform(-0.9, 0.9) + self._yaw)
        spot = np.array([place[0], self.floor, place[1]])
        pose = {name: joint + spot for name, joint in pose.items()}
        skin, shirt, trousers = (self.material(0.1, 0.2, plain=p, saturation=0.7) for p in (1.0, 0.5, 0.8))
        self.materials[skin] = (0, np.array([0.85, 0.66, 0.53]) * rng.uniform(0.5, 1.1), np.zeros(3), 1.0)
        clothes = {
            "head": skin,
            "torso": shirt,
            "upper arm": shirt,
            "lower arm": skin,
            "upper leg": trousers,
            "lower leg": trousers,
        }
        ids: dict[str, int] = {}
        for name, part, start, end, radius in LIMBS:
            if name not in ids:
                ids[name] = self.surface("person", clothes[part], PARTS.index(part))
            self.caster.capsule(pose[start], pose[end], radius * height / 1.7, ids[name])
        self.head, self.head_radius = pose["head"], HEAD_RADIUS * height / 1.7
        self.caster.sphere(self.head, self.head_radius, ids["head"])
        self.has_figure = True
        self.joints = np.stack([pose[name] for name in JOINTS])

    def table(self, attribute: str) -> np.ndarray:
        """That attribute of the surface that each pixel shows, int32 (H, W)."""
        values = np.array([getattr(surface, attribute) for surface in self.surfaces], np.int32)
        return values[self.caster.surface]


def _colour(rng: np.random.Generator, saturation: float) -> np.ndarray:
    """An RGB colour in [0, 1] of a random hue, with up to this saturation."""
    hue, value = rng.uniform(0, 6), rng.uniform(0.45, 0.95)
    chroma = rng.uniform(0.2, 1.0) * saturation
    return value * (1 - chroma * np.clip(np.abs((hue + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1))
