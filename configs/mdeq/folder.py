"""MDEQ on your own images: segmentation from a folder (docs/own-data.md).

    dynpix train --config=mdeq/folder.py:root=my,classes=5 --workdir=runs/my
    dynpix eval --workdir=runs/my

The network of variant=tiny learns from nothing; weights = official MDEQ weights imported by ``dynpix
import-weights``, for variant=small. Arguments: classes, crop, val_share, steps as of `datasets.FOLDER_ARGS`;
the others are those of recipe.py. budget = cpu (two images a step) | gpu (eight).

Expected score: that of your images.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs import datasets
from dynpix_jax.configs.mdeq import recipe


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one variant."""
    args = recipe.read_args(
        arg, variant="tiny", root=datasets.FOLDER.root, split="val", **datasets.FOLDER_ARGS
    )
    data = datasets.folder(arg, args, ("segmentation",))
    cpu = args.budget == "cpu"
    steps = args.steps or (600 if cpu else 6000)
    config = recipe.mdeq_config(
        args,
        "folder",
        task_options=dict(classes=args.classes),
        steps=recipe.Steps(2 if cpu else 8, steps, 2 * steps),
    )
    config.data = data
    return config
