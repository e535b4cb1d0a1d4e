"""Recurrent scene parsing on SUN RGB-D: 37 classes, five bins of depth (Kong and Fowlkes, table 2).

    python train.py --config=configs/perspective/sunrgbd.py:variant=pred_depth,loops=2,budget=gpu \
        --workdir=runs/sunrgbd/loop2
    python eval.py --config=configs/perspective/sunrgbd.py:variant=pred_depth,loops=2,budget=gpu \
        --workdir=runs/sunrgbd/loop2

Needs SUNRGBD and SUNRGBDtoolbox unpacked into one folder (root=DIR) and ImageNet weights imported by ``dynpix
import-weights`` (weights=FILE). Arguments, and departures from the paper: those of nyuv2.py, whose bins of
depth these are, too. The images have several sizes; what is cropped from them has one.

Paper, 5050 test images (IoU): baseline .402, gt-depth .422, pred-depth .423, loop1 without depth .432, with
gt-depth .439, with pred-depth .440, loop2 .443, with test augmentation .451.
Here: not run, needs SUN RGB-D.
"""

from __future__ import annotations

import ml_collections

from . import recipe


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one variant."""
    args = recipe.read_args(arg, root="data/sunrgbd", split="test")
    cpu = args.budget == "cpu"
    config = recipe.perspective_config(
        args,
        "sunrgbd",
        segmentation=dict(classes=37),
        steps=recipe.Steps(1, 3000, 1000, 600, 400) if cpu else recipe.Steps(8, 30000, 15000, 8000, 6000),
        bins=recipe.NYU_BINS,
        scale=0.5 if cpu else 1.0,
    )
    labels = ("segmentation", "depth") if recipe.reads_depth(args) else ("segmentation",)
    # The improved depth: it has no holes (the paper's footnote).
    source = recipe.source(args, "sun_rgbd", labels, fields=labels, depth="filled")
    augment = dict(
        flip=True,
        crop=(208, 272) if cpu else (400, 528),
        scales=(0.5, 0.75) if cpu else (0.5, 2.0),
        scale_between=True,
        rotations=(0.0,) if cpu else (-10.0, 10.0),
        rotation_between=not cpu,
        colour=dict(brightness=0.2, contrast=0.2, saturation=0.2, gamma=(0.9, 1.1)),
    )
    config.data = dict(
        train=dict(source=dict(source, split="train"), augment=augment),
        eval=dict(source=dict(source, split=args.split)),
    )
    return config
