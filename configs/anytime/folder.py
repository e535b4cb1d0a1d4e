"""Anytime segmentation of your own images: HRNet with exits, from a folder (docs/own-data.md).

    dynpix train --config=anytime/folder.py:root=my,classes=5 --workdir=runs/my
    dynpix eval --workdir=runs/my

HRNet-W18-Small-v2 learns from nothing, or from ImageNet weights (weights=FILE). Arguments: classes, crop,
val_share as of `datasets.FOLDER_ARGS`; steps and the others are those of recipe.py. budget = cpu (two images
a step) | gpu (twelve).

Expected score: that of your images.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs import datasets, training
from dynpix_jax.configs.anytime import recipe

ARGS = {name: default for name, default in datasets.FOLDER_ARGS.items() if name != "steps"}
"""The recipe has an argument ``steps`` of its own."""


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one variant."""
    args = recipe.read_args(
        arg,
        arch="w18s2",
        root=datasets.FOLDER.root,
        split="val",
        budget=training.BUDGET,
        packed=False,
        weights="",
        **ARGS,
    )
    data = datasets.folder(arg, args, ("segmentation",))
    cpu = args.budget == "cpu"
    config = recipe.anytime_config(
        args,
        "folder",
        task_options=dict(classes=args.classes),
        batch_size=2 if cpu else 12,
        steps=900 if cpu else 12000,
        cpu=cpu,
        threshold=0.9 if cpu else recipe.THRESHOLDS["max_probability"],
    )
    config.data = data
    return config
