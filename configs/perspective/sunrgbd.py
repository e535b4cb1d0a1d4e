"""Recurrent scene parsing on SUN RGB-D: 37 classes, five bins of depth (Kong and Fowlkes, table 2).

    python train.py --config=configs/perspective/sunrgbd.py:variant=pred_depth,loops=2,budget=gpu \
        --workdir=runs/sunrgbd/loop2
    python eval.py --config=configs/perspective/sunrgbd.py:variant=pred_depth,loops=2,budget=gpu \
        --workdir=runs/sunrgbd/loop2

Needs SUNRGBD and SUNRGBDtoolbox unpacked into one folder (root=DIR) and ImageNet weights imported by ``dynpix
import-weights`` (weights=FILE). Arguments, and departures from the paper: recipe.py. The bins of depth
are those of nyuv2.py. The images have several sizes; what is cropped from them has one.

Paper, 5050 test images (IoU): baseline .402, gt-depth .422, pred-depth .423, loop1 without depth .432, with
gt-depth .439, with pred-depth .440, loop2 .443, with test augmentation .451.
Here: not run, needs SUN RGB-D.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs.datasets import SUN_RGBD
from dynpix_jax.configs.perspective import recipe


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one variant."""
    args = recipe.read_args(arg, root=SUN_RGBD.root, split="test")
    cpu = args.budget == "cpu"
    config = recipe.perspective_config(
        args,
        "sunrgbd",
        segmentation=dict(SUN_RGBD.segmentation),
        steps=recipe.Steps(1, 3000, 1000, 600, 400) if cpu else recipe.Steps(8, 30000, 15000, 8000, 6000),
        bins=recipe.NYU_BINS,
        scale=SUN_RGBD.scale(args.budget),
    )
    config.data = SUN_RGBD.data(args, recipe.labels(args), **recipe.filled(args))
    return config
