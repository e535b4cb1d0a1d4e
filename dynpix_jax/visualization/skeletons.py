"""People drawn as lines between their joints."""

from __future__ import annotations

import cv2
import numpy as np

from dynpix_jax.tasks.skeletons import SKELETONS, Skeleton

SIDES = {"right": (240, 130, 20), "left": (40, 120, 235)}
"""Colours, RGB, of the person's own right and left; the middle of the body has `MIDDLE`."""
MIDDLE = (60, 180, 75)
LEAST = 0.1
"""Peaks of heatmaps below this are taken for joints that are not in the picture."""
_SHIFT = 4
"""Fractional bits of OpenCV's coordinates."""


def skeleton_of(joints: np.ndarray) -> Skeleton:
    """The set of joints that (J, 3) is of, by their number; a ValueError if none has so many."""
    for skeleton in SKELETONS.values():
        if joints.shape == (len(skeleton.joints), 3):
            return skeleton
    raise ValueError(f"joints: (J, 3) with J joints of a known skeleton expected, got shape {joints.shape}")


def joint_colour(name: str) -> tuple[int, int, int]:
    """The colour of a joint's side, RGB."""
    return SIDES.get(name.split()[0], MIDDLE)


def draw_joints(photo: np.ndarray, joints: np.ndarray) -> np.ndarray:
    """Joints and the bones between them on a photo.

    Args:
        photo: uint8 (H, W, 3) RGB.
        joints: (J, 3) x, y in pixels, and the height of the peak or how visible the joint is; what is below
            `LEAST` is left out.
    """
    skeleton = skeleton_of(joints)
    drawn = np.ascontiguousarray(photo).copy()
    # About as thick in every picture: they are shown at one width.
    width = max(1, round(max(photo.shape[:2]) / 150))
    places = np.rint(joints[:, :2] * 2**_SHIFT).astype(int)
    seen = np.isfinite(joints).all(1) & (joints[:, 2] >= LEAST)
    for first, second in skeleton.bones:
        if seen[first] and seen[second]:
            sides = (skeleton.joints[joint] for joint in (first, second))
            # A bone has the colour of its side if one of its ends has one.
            colour = next((c for c in map(joint_colour, sides) if c != MIDDLE), MIDDLE)
            start, end = (tuple(map(int, places[joint])) for joint in (first, second))
            cv2.line(drawn, start, end, colour, width, cv2.LINE_AA, _SHIFT)
    for joint in np.flatnonzero(seen):
        centre = (int(places[joint, 0]), int(places[joint, 1]))
        for radius, colour in ((width + 1, (255, 255, 255)), (width, joint_colour(skeleton.joints[joint]))):
            cv2.circle(drawn, centre, radius << _SHIFT, colour, -1, cv2.LINE_AA, _SHIFT)
    return drawn
