"""ASTMT on your own images: several kinds of labels in one network, from a folder (docs/own-data.md).

    dynpix train --config=astmt/folder.py:root=my,labels=segmentation+depth,classes=5 --workdir=runs/my
    dynpix eval --workdir=runs/my

Every image has all labels: labels/segmentation/NAME.png, labels/depth/NAME.png, and so on. ImageNet weights
are imported by ``dynpix import-weights`` (weights=FILE). Arguments: labels, some of segmentation, boundaries,
depth, normals, saliency, joined by "+" (variant=single trains task=NAME alone); classes, crop, val_share,
steps as of `datasets.FOLDER_ARGS`; the others are those of recipe.py. budget = cpu (four images a step) | gpu
(eight).

Expected score: that of your images.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs import datasets, training
from dynpix_jax.configs.astmt import recipe
from dynpix_jax.core.configs import given_args
from dynpix_jax.core.errors import UserError, suggest


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one variant."""
    args = recipe.read_args(
        arg,
        datasets.FOLDER_TASKS,
        root=datasets.FOLDER.root,
        budget=training.BUDGET,
        labels=("segmentation", "depth"),
        **datasets.FOLDER_ARGS,
    )
    for task in args.labels:
        if task not in datasets.FOLDER_TASKS:
            raise UserError(f"config argument labels={task}: {suggest(task, datasets.FOLDER_TASKS)}")
    if args.variant == "single" and "labels" in given_args(arg):
        raise UserError("config argument labels: variant=single does not read it; give task=NAME")
    tasks = recipe.chosen(args, tuple(args.labels))
    data = datasets.folder(arg, args, tasks)
    cpu = args.budget == "cpu"
    schedule = recipe.Steps(args.steps or (2000 if cpu else 20000), 60, 4 if cpu else 8)
    config = recipe.astmt_config(
        args, "folder", tasks, dict(segmentation=dict(classes=args.classes)), schedule
    )
    config.data = data
    return config
