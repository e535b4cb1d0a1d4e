"""PixelNet on BSDS500 boundaries (Bansal et al., section 4.3, tables 6 and 7).

    python train.py --config=configs/pixelnet/bsds500.py:rare=0.25 --workdir=runs/pixelnet/rare25
    python eval.py --config=configs/pixelnet/bsds500.py:rare=0.25 --workdir=runs/pixelnet/rare25

Needs the data set (root=DIR) and VGG-16 imported by ``dynpix import-weights --arch vgg16`` (weights=FILE).
Arguments: rare = the share of boundary pixels in the sample, 0 for uniform sampling (the paper has 0, 0.25,
0.5, 0.75); conv7=True adds VGG's fc7 to the hypercolumn (its weights must hold fc6 and fc7); fc = 1 | 2 | 3,
layers of the MLP, and width, of its hidden ones (0: the budget's); pixels of an image and images a step (0:
the budget's); balanced=True weighs boundaries and the rest alike in each image's loss, as the paper's text
has it, in place of plain cross-entropy, as released; consensus, of a pixel's annotators (3 in the paper: a
number; below 1 a share); train_scales = half | full | both (the budget's: cpu full, gpu both); test_scales,
such as 0.5+1.0; budget = cpu (two 224x224 crops a step, 1000 steps) | gpu (the paper's 25 epochs of 9600
images, five a step at half or full size, with HED's rotations); continue_from = a run to start from;
train_split = train | trainval, the paper's 300 images, which are then evaluated on test; split = train | val
| test, the images that are evaluated; seed; recipe = ours | paper, by default the budget's. Departures from
the paper: see recipe.py.

Paper, test set: uniform .767, 25 % .792, 50 % .791, 75 % .790; with conv-7 .795 (ODS F).
Measured here: docs/results.md.
"""

from __future__ import annotations

import dataclasses

import ml_collections

from dynpix_jax.configs import datasets, published
from dynpix_jax.configs.pixelnet import recipe
from dynpix_jax.core.configs import given_args
from dynpix_jax.core.errors import UserError


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one row of table 6 or 7."""
    args = recipe.read_args(
        arg,
        root=datasets.BSDS500.root,
        split="val",
        train_split=published.TRAIN_SPLIT,
        train_scales="both",
        test_scale=1.0,
        rare=0.25,
        consensus=3.0,
        balanced=False,
    )
    published.choose_bsds_split(arg, args)
    if not 0.0 <= args.rare < 1.0:
        raise UserError(f"config argument rare={args.rare:g}: expected a share in [0, 1)")
    cpu = args.budget == "cpu"
    if cpu and "train_scales" not in given_args(arg):
        args.train_scales = "full"
    if cpu and "pixels" not in given_args(arg):
        args.pixels = 1000
    biased = dict(strategy="biased", rare_share=args.rare)
    config = recipe.pixelnet_config(
        args,
        "bsds500",
        task="boundaries",
        # Half and half is half of plain cross-entropy.
        task_options=dict(positive_weight=None if args.balanced else 0.5),
        length=recipe.Length(9600, 1000, (15, 5, 5)),
        sampling=biased if args.rare else dict(strategy="stratified"),
        column_dropout=0.5,
        mlp_rate=10.0,
    )
    if args.conv7:
        config.model.backbone.dropout = 0.0  # as released: that of the hypercolumn takes its place
    augment = dict(
        flip=True,
        crop=(224, 224) if cpu else (321, 481),
        scales=recipe.TRAIN_SCALES[args.train_scales],
        # HED's (Xie and Tu, ICCV 2015): 16 rotations, mirrored or not.
        rotations=(0.0,) if cpu else tuple(22.5 * k for k in range(16)),
    )
    options = dict(datasets.BSDS500.options, consensus=args.consensus)
    source = dataclasses.replace(datasets.BSDS500, options=options)
    config.data = source.data(args, ("boundaries",), augment=augment)
    return config
