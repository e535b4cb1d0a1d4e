"""Recurrent scene parsing on NYUv2: 40 classes, five bins of depth (Kong and Fowlkes, tables 1 and 2).

    python train.py --config=configs/perspective/nyuv2.py:variant=pred_depth,loops=2,budget=gpu \
        --workdir=runs/nyuv2/loop2
    python eval.py --config=configs/perspective/nyuv2.py:variant=pred_depth,loops=2,budget=gpu \
        --workdir=runs/nyuv2/loop2

Needs the data set, published files or extracted folders (root=DIR), and ImageNet weights imported by
``dynpix import-weights`` (weights=FILE). Arguments, which of them make which row of the paper, and departures
from it: recipe.py. budget = cpu (half size, one image a step) | gpu (crops of 400x544, eight a step; made for
one GPU of 40 GB); split = train | test.

The depth is the data set's filled one (the paper's footnote 3). What the sensor measured: ``--set
data.train.source.depth=raw data.eval.source.depth=raw``.

Paper, 654 test images (IoU): baseline .406, gt-depth .413, pred-depth .418, loop1 without depth .419, with
gt-depth .425, with pred-depth .427, loop2 .431, with test augmentation .445.
Here: not run, needs NYUv2.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs.datasets import NYUV2
from dynpix_jax.configs.perspective import recipe


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one variant."""
    args = recipe.read_args(arg, root=NYUV2.root, split="test")
    cpu = args.budget == "cpu"
    config = recipe.perspective_config(
        args,
        "nyuv2",
        segmentation=dict(NYUV2.segmentation),
        steps=recipe.Steps(1, 2400, 800, 500, 300) if cpu else recipe.Steps(8, 12000, 6000, 4000, 3000),
        bins=recipe.NYU_BINS,
        scale=NYUV2.scale(args.budget),
    )
    config.data = NYUV2.data(args, recipe.labels(args), **recipe.filled(args))
    return config
