"""Model sections of systems so small that tests compile them in seconds; each test adds what it is about."""

from __future__ import annotations

from typing import Any

ANYTIME: dict[str, Any] = dict(
    system="anytime",
    task="segmentation",
    task_options=dict(classes=3),
    backbone=dict(arch="w18s1", width=4, blocks=1),
    exits=(1, 4),
    weights=(1.0, 1.0),
    heads=dict(kind="plain"),
    adaptivity=dict(kind="confidence", options=dict(threshold=0.5)),
)
PERSPECTIVE: dict[str, Any] = dict(
    system="perspective",
    segmentation=dict(classes=3),
    backbone=dict(depth=18, width=4),
    features=8,
    depth_features=(8, 4),
)
