"""PAG on Cityscapes: segmentation (19 classes, iIoU too) and depth of street scenes (tables 3 and 4).

    python train.py --config=configs/pag/cityscapes.py:task=segmentation,variant=gated,rho=0.7,budget=gpu \
        --workdir=runs/cityscapes/gated
    python eval.py --config=configs/pag/cityscapes.py:task=segmentation,variant=gated,rho=0.7,budget=gpu \
        --workdir=runs/cityscapes/gated

Needs leftImg8bit, gtFine and, for depth, disparity (and camera) unpacked into one folder (root=DIR), and
ImageNet weights imported by ``dynpix import-weights`` (weights=FILE; with budget=gpu those of a stem of three
3x3, or give stem=7x7). Arguments: task = segmentation | depth;
split = train | val; budget = cpu (a quarter of the images' area, one crop a step) | gpu (crops of 800x800,
four a step; made for one GPU of 40 GB); packed=True: root holds what ``dynpix prepare cityscapes --set
fields=segmentation,instances`` (depth: ``fields=depth``) wrote; the others, and departures from the paper,
are those of recipe.py.

Paper, 500 images of val. Segmentation (IoU, iIoU): base .738, .547, MultiPool at Res5 .757, .558, rho .9 / .7
/ .5: .750, .554 / .726, .551 / .708, .532. Depth (delta < 1.25): base .290, MultiPool .346, .345 / .320 /
.287. All rows: ``dynpix tables pag``.
Here: not run, needs Cityscapes.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs.datasets import CITYSCAPES
from dynpix_jax.configs.pag import recipe


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one task and variant."""
    args = recipe.read_args(
        arg, tasks=("segmentation", "depth"), root=CITYSCAPES.root, split="val", stem=recipe.STEM
    )
    cpu = args.budget == "cpu"
    segmentation = args.task == "segmentation"
    config = recipe.pag_config(
        args,
        "cityscapes",
        task_options=dict(CITYSCAPES.segmentation) if segmentation else {},
        schedule=recipe.Schedule(1, 4000, 1000, 400) if cpu else recipe.Schedule(4, 40000, 20000, 10000),
        head_features=32 if cpu else 64,
        scale=CITYSCAPES.scale(args.budget),
    )
    labels = ("segmentation", "instances") if segmentation else ("depth",)
    augment = dict(flip=True, crop=(352, 352) if cpu else (800, 800), scales=(0.5,) if cpu else (1.0,))
    config.data = CITYSCAPES.data(args, labels, augment=augment)
    return config
