"""Anytime segmentation of synthetic scenes: every variant in minutes, without a download.

    python train.py --config=configs/anytime/scenes.py:variant=ca --workdir=runs/scenes/anytime
    python eval.py --config=configs/anytime/scenes.py:variant=ca --workdir=runs/scenes/anytime

HRNet-W18-Small-v1 learns from nothing on rendered rooms of 96x128 pixels. Arguments: variant and the others
of recipe.py (arch=w18s2 is the paper's small network); seed, of the weights and the order of the images. The
paper has no such rows; measured here: docs/results.md.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs import datasets
from dynpix_jax.configs.anytime import recipe

THRESHOLD = 0.98


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one variant."""
    args = recipe.read_args(arg, arch="w18s1", seed=0)
    config = recipe.anytime_config(
        args,
        "scenes",
        task_options=dict(classes=datasets.SCENE_CLASSES),
        batch_size=4,
        steps=500,
        cpu=True,
        threshold=THRESHOLD,
    )
    config.seed = args.seed
    config.data = datasets.scenes(("segmentation",))
    return config
