"""Recurrent scene parsing on your own images: segmentation from a folder, with attention (docs/own-data.md).

    dynpix train --config=perspective/folder.py:root=my,classes=5,variant=attention,loops=1 --workdir=runs/my
    dynpix eval --workdir=runs/my

Needs ImageNet weights imported by ``dynpix import-weights`` (weights=FILE). Arguments: classes, crop,
val_share as of `datasets.FOLDER_ARGS`; variant = baseline | average | attention | gt_depth | pred_depth (the
last two read depth, too: folders labels/segmentation and labels/depth); the others are those of recipe.py.
budget = cpu (one image a step) | gpu (eight).

Expected score: that of your images.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs import datasets
from dynpix_jax.configs.perspective import recipe

ARGS = {name: default for name, default in datasets.FOLDER_ARGS.items() if name != "steps"}
"""The recipe has an argument ``steps`` of its own."""


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one variant."""
    args = recipe.read_args(arg, root=datasets.FOLDER.root, split="val", **ARGS)
    data = datasets.folder(arg, args, recipe.labels(args))
    cpu = args.budget == "cpu"
    config = recipe.perspective_config(
        args,
        "folder",
        segmentation=dict(classes=args.classes),
        steps=recipe.Steps(1, 1000, 500, 300, 200) if cpu else recipe.Steps(8, 6000, 3000, 2000, 1500),
        bins=recipe.NYU_BINS,
    )
    config.data = data
    return config
