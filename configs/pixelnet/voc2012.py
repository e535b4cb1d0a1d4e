"""PixelNet on PASCAL VOC 2012 (Bansal et al., section 4.1).

    python train.py --config=configs/pixelnet/voc2012.py:conv7,budget=gpu --workdir=runs/pixelnet/voc
    python eval.py --config=configs/pixelnet/voc2012.py:conv7,budget=gpu --workdir=runs/pixelnet/voc

Needs the data set (root=DIR) with SegmentationClassAug, or SBD's archive (sbd=DIR), and VGG-16 imported by
``dynpix import-weights --arch vgg16`` (weights=FILE). Trains on the 10,582 images of trainaug, evaluates on
split = val | train | trainval. Other arguments: those of pascal_context.py (packed=True: the shards of
trainaug and of split, SBD's labels are packed with ``--split trainaug --set sbd=DIR``); rare = the share of
objects' pixels in the sample, 0 as in the paper (0.5 where the released Python code biases it).

Paper: 69.7 mean IoU on the test set, whose labels the benchmark keeps. Here: not run, needs VOC 2012.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs import datasets
from dynpix_jax.configs.pixelnet import recipe
from dynpix_jax.core.errors import UserError


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one network."""
    args = recipe.read_args(arg, root=datasets.VOC2012.root, split="val", sbd="", rare=0.0)
    if not 0.0 <= args.rare < 1.0:
        raise UserError(f"config argument rare={args.rare:g}: expected a share in [0, 1)")
    biased = dict(strategy="biased", rare_share=args.rare)
    config = recipe.pixelnet_config(
        args,
        "voc2012",
        task="segmentation",
        task_options=dict(datasets.VOC2012.segmentation),
        length=recipe.Length(images=10582, cpu=4000),
        sampling=biased if args.rare else None,
    )
    augment = recipe.cropped(args, (500, 500), colour=datasets.COLOUR)
    config.data = datasets.VOC2012.data(args, ("segmentation",), augment=augment)
    config.data.train.source.split = "trainaug"
    if args.packed and args.sbd:
        raise UserError("config argument sbd: packed=True does not read it, dynpix prepare does")
    if not args.packed:
        config.data.train.source.sbd = args.sbd
    return config
