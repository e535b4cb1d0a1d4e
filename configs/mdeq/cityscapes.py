"""MDEQ on Cityscapes: 19 classes, the baseline of the anytime paper (tables 1 and 3).

    python train.py --config=configs/mdeq/cityscapes.py:variant=small,budget=gpu \
        --workdir=runs/cityscapes/mdeq
    python eval.py --config=configs/mdeq/cityscapes.py:variant=small,budget=gpu \
        --workdir=runs/cityscapes/mdeq

Needs leftImg8bit and gtFine unpacked into one folder (root=DIR). Arguments: variant and the others of
recipe.py; budget = gpu (the paper's crops and batches, whole images in evaluation; 4 to 8 GPUs) | cpu (half
size, crops of 256x512, one a step); weights = official MDEQ weights imported by ``dynpix import-weights``;
continue_from = workdir of a pretraining; split = train | val | test; packed=True: root holds what ``dynpix
prepare`` wrote.

Paper, 500 images of val, mIoU after 4, 6, 8, 10 iterations: small .173, .387, .655, .724 (table 1; .765 after
27), XL .116, .494, .671, .745 (.798 after 27). ``dynpix tables mdeq`` has all of table 3 with its MACs,
counted as published and once. Here: not run, needs Cityscapes.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs.datasets import CITYSCAPES, CITYSCAPES_RELEASED
from dynpix_jax.configs.mdeq import recipe

CLASS_WEIGHTS = (
    *(0.8373, 0.918, 0.866, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023),
    *(0.9539, 0.9843, 1.1116, 0.9037, 1.0865, 1.0955, 1.0865, 1.1529, 1.0507),
)
"""Of the loss, as HRNet's release has them."""


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one variant."""
    args = recipe.read_args(arg, variant="small", root=CITYSCAPES.root, split="val")
    cpu, xl = args.budget == "cpu", args.variant == "xl"
    # 500 epochs of 2975 images, of which 60000 steps (small) or 40000 (XL) are pretraining.
    gpu = recipe.Steps(16, 40_000, 53_000) if xl else recipe.Steps(12, 60_000, 64_000)
    config = recipe.mdeq_config(
        args,
        "cityscapes",
        task_options=dict(CITYSCAPES.segmentation, class_weights=CLASS_WEIGHTS),
        steps=recipe.Steps(1, 3000, 6000) if cpu else gpu,
        scale=CITYSCAPES.scale(args.budget),
    )
    augment = dict(
        flip=True,
        crop=(256, 512) if cpu else (768, 1024) if xl else (512, 1024),
        # .5 to 2.1 in steps of .1, as released.
        scales=(0.25, 1.05) if cpu else tuple(k / 10 for k in range(5, 22)),
        scale_between=cpu,
        **({} if cpu else CITYSCAPES_RELEASED),
    )
    config.data = CITYSCAPES.data(args, ("segmentation", "instances"), augment=augment)
    return config
