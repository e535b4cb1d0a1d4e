"""A simple articulated figure of capsules and a ball, with the parts and joints that people are labelled
with."""

from __future__ import annotations

import math

import numpy as np

# As the data sets have them: parts of PASCAL-Person-Part, joints in the order of MPII.
PARTS = ("background", "head", "torso", "upper arm", "lower arm", "upper leg", "lower leg")
JOINTS = (
    *("right ankle", "right knee", "right hip", "left hip", "left knee", "left ankle"),
    *("pelvis", "thorax", "upper neck", "head top"),
    *("right wrist", "right elbow", "right shoulder", "left shoulder", "left elbow", "left wrist"),
)
JOINT_PAIRS = ((0, 5), (1, 4), (2, 3), (10, 15), (11, 14), (12, 13))

# Limbs: part, the joints at its ends, radius in metres for a figure of 1.7 m. The last two are feet, whose
# toes are no joint. Limbs that share a name are one surface.
LIMBS = (
    ("torso", "torso", "thorax", "pelvis", 0.135),
    ("torso", "torso", "left shoulder", "right shoulder", 0.06),
    ("torso", "torso", "left hip", "right hip", 0.095),
    ("head", "head", "upper neck", "thorax", 0.05),
    *(
        (f"{side} {name}", name, f"{side} {start}", f"{side} {end}", radius)
        for side in ("left", "right")
        for name, start, end, radius in (
            ("upper arm", "shoulder", "elbow", 0.052),
            ("lower arm", "elbow", "wrist", 0.042),
            ("upper leg", "hip", "knee", 0.078),
            ("lower leg", "knee", "ankle", 0.055),
            ("lower leg", "ankle", "toe", 0.045),
        )
    ),
)
HEAD_RADIUS = 0.11


def sample_pose(rng: np.random.Generator, height: float, yaw: float) -> dict[str, np.ndarray]:
    """Draws the joints of a standing figure.

    Returns:
        Each joint's (3,) place relative to the floor below the pelvis, world axes (x right, y down), besides
        the centre of the head, `head`, and the toes, `left toe` and `right toe`.
    """
    joints: dict[str, np.ndarray] = {"pelvis": np.zeros(3)}
    lean = rng.uniform(-0.12, 0.12)
    up = np.array([math.sin(lean), -math.cos(lean), 0.0])
    joints["thorax"] = 0.47 * up
    joints["upper neck"] = 0.56 * up
    joints["head"] = 0.69 * up
    joints["head top"] = 0.69 * up + HEAD_RADIUS * 0.7 * up
    for side, sign in (("left", 1.0), ("right", -1.0)):
        # Seen from the front, a figure's left is on the right of the picture: +x.
        shoulder = joints["thorax"] + np.array([0.2 * sign, 0.02, 0.0])
        raise_out = rng.uniform(0.1, 2.4) if rng.random() < 0.5 else rng.uniform(0.05, 0.6)
        swing = rng.uniform(-0.5, 0.7)
        elbow = shoulder + 0.29 * _limb(raise_out * sign, swing)
        bend = rng.uniform(0.0, 1.4)
        wrist = elbow + 0.27 * _limb(
            raise_out * sign + bend * sign * rng.choice([-1.0, 1.0]) * 0.6, swing + bend * 0.6
        )
        hip = np.array([0.1 * sign, 0.0, 0.0])
        spread, stride = rng.uniform(0.0, 0.3), rng.uniform(-0.35, 0.5)
        knee = hip + 0.42 * _limb(spread * sign, stride)
        ankle = knee + 0.41 * _limb(spread * sign * 0.5, stride - rng.uniform(0.0, 0.6))
        joints |= {
            f"{side} {name}": place
            for name, place in (
                ("shoulder", shoulder),
                ("elbow", elbow),
                ("wrist", wrist),
                ("hip", hip),
                ("knee", knee),
                ("ankle", ankle),
                ("toe", ankle + np.array([0.03 * sign, 0.04, -0.13])),
            )
        }
    cos, sin = math.cos(yaw), math.sin(yaw)
    turn = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    scale = height / 1.7
    lowest = max(joints["left toe"][1], joints["right toe"][1]) + 0.045
    return {name: scale * (turn @ (place - [0, lowest, 0])) for name, place in joints.items()}


def _limb(out: float, forward: float) -> np.ndarray:
    """A unit vector that hangs down (+y), raised sideways (x) by `out` and forwards (-z) by `forward`."""
    return np.array(
        [math.sin(out) * math.cos(forward), math.cos(out) * math.cos(forward), -math.sin(forward)]
    )
