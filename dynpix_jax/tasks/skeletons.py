"""The sets of joints that people are labelled with: their order, sides, and groups for scores."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Skeleton:
    """One set of joints.

    Attributes:
        joints: Their names, in order.
        pairs: Left and right joints, which change places in a mirror.
        groups: Names of groups that have a score each, with their joints.
        excluded: Joints that no overall score counts.
        bones: Pairs of joints that a picture joins by a line.
    """

    joints: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]
    groups: tuple[tuple[str, tuple[int, ...]], ...]
    excluded: tuple[int, ...]
    bones: tuple[tuple[int, int], ...]

    @property
    def mirrored(self) -> tuple[int, ...]:
        """For each joint the one that a mirror shows in its place."""
        order = list(range(len(self.joints)))
        for left, right in self.pairs:
            order[left], order[right] = right, left
        return tuple(order)


MPII = Skeleton(
    joints=(
        *("right ankle", "right knee", "right hip", "left hip", "left knee", "left ankle"),
        *("pelvis", "thorax", "upper neck", "head top"),
        *("right wrist", "right elbow", "right shoulder", "left shoulder", "left elbow", "left wrist"),
    ),
    pairs=((0, 5), (1, 4), (2, 3), (10, 15), (11, 14), (12, 13)),
    groups=(
        ("head", (9,)),
        ("shoulder", (12, 13)),
        ("elbow", (11, 14)),
        ("wrist", (10, 15)),
        ("hip", (2, 3)),
        ("knee", (1, 4)),
        ("ankle", (0, 5)),
    ),
    # Pelvis and thorax: the benchmark's tools leave them out.
    excluded=(6, 7),
    bones=(
        *((0, 1), (1, 2), (2, 6), (6, 3), (3, 4), (4, 5), (6, 7), (7, 8), (8, 9)),
        *((10, 11), (11, 12), (12, 7), (7, 13), (13, 14), (14, 15)),
    ),
)
"""Andriluka, Pishchulin, Gehler, Schiele, "2D Human Pose Estimation: New Benchmark ...", CVPR 2014."""

COCO = Skeleton(
    joints=(
        *("nose", "left eye", "right eye", "left ear", "right ear"),
        *("left shoulder", "right shoulder", "left elbow", "right elbow", "left wrist", "right wrist"),
        *("left hip", "right hip", "left knee", "right knee", "left ankle", "right ankle"),
    ),
    pairs=tuple((joint, joint + 1) for joint in range(1, 16, 2)),
    groups=(
        ("head", (0, 1, 2, 3, 4)),
        ("shoulder", (5, 6)),
        ("elbow", (7, 8)),
        ("wrist", (9, 10)),
        ("hip", (11, 12)),
        ("knee", (13, 14)),
        ("ankle", (15, 16)),
    ),
    excluded=(),
    bones=(
        *((0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 6), (5, 7), (7, 9), (6, 8), (8, 10)),
        *((5, 11), (6, 12), (11, 12), (11, 13), (13, 15), (12, 14), (14, 16)),
    ),
)
"""Lin et al., "Microsoft COCO", ECCV 2014: 17 joints."""

SKELETONS = {"mpii": MPII, "coco": COCO}
