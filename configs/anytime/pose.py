"""Shared by the pose configs of this folder: the variants of the paper's table 2 as networks, their stages.

variant=hrnet   HRNet with one exit at its end ("HRNet-W32")
variant=ee      exits after every stage, single 1x1 convolutions on the highest branch ("EE")
variant=rh      encoder-decoder heads of 64 channels on all branches joined ("EE + RH")
variant=ca      the same, skipping positions where all 16 outputs are below 0.002 ("EE + RH + CA")

The paper does not say what its exits read; these choices give its MACs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

VARIANTS = ("hrnet", "ee", "rh", "ca")

FEATURES = 64
"""Channels of the redesigned heads (section 4.2)."""
THRESHOLD = 0.002
"""Outputs below this are no joint (section 4.2)."""


def model(
    variant: str, *, arch: str, sigma: float, start: float, threshold: float = THRESHOLD
) -> dict[str, Any]:
    """Section ``model`` of a variant.

    Args:
        arch: Architecture of HRNet.
        sigma: Standard deviation of the targets' Gaussians, in cells of the heatmaps.
        start: Share of the first stage's steps before anything is skipped.
        threshold: Threshold of variant=ca.
    """
    exits = (4,) if variant == "hrnet" else (1, 2, 3, 4)
    heads = dict[str, Any](plain="single")
    if variant == "ee":
        heads.update(kind="plain", inputs="highest")
    elif variant != "hrnet":
        heads.update(kind="redesigned", features=FEATURES)
    adaptivity = dict(
        kind="confidence",
        options=dict(measure="max_value", threshold=threshold),
        start=start,
    )
    return dict(
        system="anytime",
        task="pose",
        task_options=dict(sigma=sigma),
        backbone=dict(arch=arch, form="pose"),
        exits=exits,
        weights=(1.0,) * len(exits),
        heads=heads,
        adaptivity=adaptivity if variant == "ca" else None,
    )


def stages(variant: str, steps: Sequence[int], learning_rate: float) -> tuple[dict[str, Any], ...]:
    """Adam's stages, each at a tenth of the learning rate before. Only the first warms up to adaptivity."""
    warm = dict(adaptivity=dict(start=0.0)) if variant == "ca" else {}
    return tuple(
        dict(
            name=f"decay_{index}" if index else "base",
            steps=count,
            learning_rate=learning_rate * 0.1**index,
            model=warm if index else {},
        )
        for index, count in enumerate(steps)
    )
