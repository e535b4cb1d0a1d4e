"""PixelNet on your own images: segmentation, boundaries or normals, from a folder (docs/own-data.md).

    dynpix train --config=pixelnet/folder.py:root=my,task=segmentation,classes=5 --workdir=runs/my
    dynpix eval --workdir=runs/my

Needs VGG-16 imported by ``dynpix import-weights --arch vgg16`` (weights=FILE). Arguments: classes, crop,
val_share, steps as of `datasets.FOLDER_ARGS`; the others are those of recipe.py, but for train_scales: images
are scaled by .75 to 1.25. budget = cpu (two images a step) | gpu (five).

Expected score: that of your images.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs import datasets
from dynpix_jax.configs.pixelnet import recipe
from dynpix_jax.core.configs import one_of, refuse_args


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one task."""
    refuse_args(arg, ("train_scales",), "your own images do")
    args = recipe.read_args(
        arg,
        root=datasets.FOLDER.root,
        split="val",
        test_scale=1.0,
        task=one_of("segmentation", "boundaries", "normals"),
        **datasets.FOLDER_ARGS,
    )
    data = datasets.folder(arg, args, (args.task,))
    config = recipe.pixelnet_config(
        args,
        "folder",
        task=args.task,
        task_options=dict(classes=args.classes) if args.task == "segmentation" else {},
        # Of edges there are few: half of the pixels are on them.
        sampling=dict(strategy="stratified") if args.task == "boundaries" else None,
        length=recipe.Length(images=1000, cpu=args.steps or 1000),
    )
    if args.steps:
        config.training.stages = tuple(dict(stage, steps=args.steps) for stage in config.training.stages)
    config.data = data
    return config
