"""Anytime segmentation of Cityscapes: table 1, and figures 3, 6 and 7 with other arguments.

    python train.py --config=configs/anytime/cityscapes.py:variant=ca,arch=w48,budget=gpu \
        --workdir=runs/cityscapes/ca
    python eval.py --config=configs/anytime/cityscapes.py:variant=ca,arch=w48,budget=gpu \
        --workdir=runs/cityscapes/ca

Needs leftImg8bit and gtFine unpacked into one folder (root=DIR) and ImageNet weights imported by ``dynpix
import-weights --arch hrnet_w48`` (weights=FILE; arch=w18s2 takes those of hrnet_w18s2, ...). Arguments:
variant, arch and the others of recipe.py; split = train | val; budget = cpu (half size, crops of 256x512, two
a step) | gpu (as the paper: crops of 512x1024, scales .5 to 2.1, twelve a step for 484 epochs; made for four
GPUs of 40 GB).

Paper, 500 images of val, mIoU at exits 1 to 4, MACs / 2^30 at the last: HRNet-W48 .807, 696.2; EE .343 .590
.769 .804, 722.2; EE + RH .446 .602 .766 .799, 701.3; EE + RH + CA .443 .601 .768 .813, 387.1. All rows:
``dynpix tables anytime``.
Here: not run, needs Cityscapes.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs import training
from dynpix_jax.configs.anytime import recipe
from dynpix_jax.configs.datasets import CITYSCAPES, CITYSCAPES_RELEASED
from dynpix_jax.core.configs import given_args

CLASS_WEIGHTS = (
    *(0.8373, 0.918, 0.866, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023),
    *(0.9539, 0.9843, 1.1116, 0.9037, 1.0865, 1.0955, 1.0865, 1.1529, 1.0507),
)
"""Of the released code."""

EPOCHS, TRAIN_IMAGES = 484, 2975


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one variant."""
    args = recipe.read_args(
        arg,
        arch="w48",
        root=CITYSCAPES.root,
        split="val",
        budget=training.BUDGET,
        packed=False,
        weights="",
    )
    if "weights" not in given_args(arg):
        args.weights = f"weights/hrnet_{args.arch}.safetensors"
    cpu = args.budget == "cpu"
    config = recipe.anytime_config(
        args,
        "cityscapes",
        task_options=dict(classes=19, class_weights=CLASS_WEIGHTS),
        batch_size=2 if cpu else 12,
        steps=3000 if cpu else EPOCHS * TRAIN_IMAGES // 12,
        cpu=cpu,
        threshold=recipe.THRESHOLDS["max_probability"],
        scale=CITYSCAPES.scale(args.budget),
    )
    tenths = range(5, 22, 2) if cpu else range(5, 22)
    augment = dict(
        flip=True,
        crop=(256, 512) if cpu else (512, 1024),
        scales=tuple(tenth / (20 if cpu else 10) for tenth in tenths),
        **({} if cpu else CITYSCAPES_RELEASED),
    )
    config.data = CITYSCAPES.data(args, ("segmentation",), augment=augment)
    return config
