"""Recurrent scene parsing on Stanford 2D-3D-S panoramas: 13 classes, five bins of depth (table 2).

    python train.py --config=configs/perspective/stanford2d3d.py:variant=pred_depth,loops=2,budget=gpu \
        --workdir=runs/stanford2d3d/loop2
    python eval.py --config=configs/perspective/stanford2d3d.py:variant=pred_depth,loops=2,budget=gpu \
        --workdir=runs/stanford2d3d/loop2

Needs the areas with their assets in one folder (root=DIR) and ImageNet weights of a ResNet-101 imported by
``dynpix import-weights --arch resnet101`` (weights=FILE; backbone=50 takes a ResNet-50). The paper does not
give its bins: these are of equal width in log depth. Other arguments, and departures from the paper: those of
recipe.py; split = train | val, areas 3 and 4; budget = cpu (half size, crops of 352x352, one a step) | gpu
(crops of 704x704, four a step; made for one GPU of 80 GB).

Paper, areas 3 and 4 (IoU): baseline .644, gt-depth .730, pred-depth .742, loop1 without depth .744, with
gt-depth .747, with pred-depth .753, loop2 .760, with test augmentation .765.
Here: not run, needs Stanford 2D-3D-S.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs.datasets import STANFORD2D3D
from dynpix_jax.configs.perspective import recipe


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one variant."""
    args = recipe.read_args(arg, root=STANFORD2D3D.root, split="val", backbone=101)
    cpu = args.budget == "cpu"
    config = recipe.perspective_config(
        args,
        "stanford2d3d",
        segmentation=dict(STANFORD2D3D.segmentation),
        steps=recipe.Steps(1, 3000, 1000, 600, 400) if cpu else recipe.Steps(4, 20000, 10000, 6000, 5000),
        depth_kernel=3,
        bins=dict(edges=recipe.log_edges(1.0, 8.0), of="depth"),
        depth=args.backbone,
        scale=STANFORD2D3D.scale(args.budget),
    )
    # A panorama's rows are upright, so it is not rotated.
    augment = dict(
        flip=True,
        crop=(352, 352) if cpu else (704, 704),
        scales=(0.5, 0.75) if cpu else (1.0, 2.0),
        scale_between=True,
        colour=dict(brightness=0.2, contrast=0.2, saturation=0.2),
    )
    config.data = STANFORD2D3D.data(args, recipe.labels(args), augment=augment)
    return config
