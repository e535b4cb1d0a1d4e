"""Recurrent scene parsing on Cityscapes: 19 classes, five bins of disparity (table 2, figure 4, supplement).

    python train.py --config=configs/perspective/cityscapes.py:variant=pred_depth,loops=2,budget=gpu \
        --workdir=runs/cityscapes/loop2
    python eval.py --config=configs/perspective/cityscapes.py:variant=pred_depth,loops=2,budget=gpu \
        --workdir=runs/cityscapes/loop2

Needs leftImg8bit, gtFine, disparity and camera unpacked into one folder (root=DIR) and ImageNet weights of a
ResNet-101 imported by ``dynpix import-weights --arch resnet101`` (weights=FILE; backbone=50 takes a
ResNet-50). The depth is that of the stereo disparity files, its bins are of log2 of what they hold. Other
arguments, and departures from the paper: those of recipe.py; budget = cpu (half size, crops of 352x352, one a
step) | gpu (crops of 800x800, four a step; made for one GPU of 80 GB).

Paper, 500 images of val (IoU / iIoU): baseline .738 / .547; tied average .747 / .554; gt-depth tied .748 /
.556, untied .753 / .561; attention .754 / .558; pred-depth .759 / .571. With loops (IoU): loop1 without depth
.762, with gt-depth .769, with pred-depth .772, loop2 .776, with test augmentation .791.
Here: not run, needs Cityscapes.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs.datasets import CITYSCAPES
from dynpix_jax.configs.perspective import recipe


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one variant."""
    args = recipe.read_args(arg, root=CITYSCAPES.root, split="val", backbone=101)
    cpu = args.budget == "cpu"
    config = recipe.perspective_config(
        args,
        "cityscapes",
        segmentation=dict(CITYSCAPES.segmentation),
        steps=recipe.Steps(1, 3000, 1000, 600, 400) if cpu else recipe.Steps(4, 40000, 20000, 10000, 8000),
        depth_kernel=3,
        bins=dict(edges=(0.0, 11.0, 12.5, 13.2, 13.9, 20.0), of="disparity"),
        depth=args.backbone,
        scale=CITYSCAPES.scale(args.budget),
    )
    labels = ("segmentation", "instances", "depth")[: 3 if recipe.reads_depth(args) else 2]
    augment = dict(
        flip=True,
        crop=(352, 352) if cpu else (800, 800),
        scales=(0.5, 0.75) if cpu else (0.5, 2.0),
        scale_between=True,
        rotations=(0.0,) if cpu else (-10.0, 10.0),
        rotation_between=not cpu,
        colour=dict(brightness=0.2, contrast=0.2, saturation=0.2),
    )
    config.data = CITYSCAPES.data(args, labels, augment=augment)
    return config
