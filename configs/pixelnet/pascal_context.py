"""PixelNet on PASCAL-Context, 59 or 33 classes (Bansal et al., section 4.1, tables 1 to 3).

    python train.py --config=configs/pixelnet/pascal_context.py:budget=gpu --workdir=runs/pixelnet/context
    python eval.py --config=configs/pixelnet/pascal_context.py:budget=gpu --workdir=runs/pixelnet/context

Needs VOC 2010 (root=DIR), the labels (label_root=DIR) and VGG-16 imported by ``dynpix import-weights --arch
vgg16`` (weights=FILE). Arguments: classes = 59 | 33; fc = 1 | 2 | 3, layers of the MLP, and width, of its
hidden ones (table 1); pixels of an image and images a step (table 2: 2000 and 5; 10000 and 1); conv7=True
adds VGG's fc7 to the hypercolumn (its weights must hold fc6 and fc7); train_scales = small | half | full |
both | multi (.25 and .5; .5; 1; .5 and 1; all three); test_scales, such as 0.25+0.5+1.0; continue_from = a
run to train on from, for three times 8 epochs with budget=gpu (DIR@train: as it was before it first lowered
the rate); budget = cpu | gpu (the paper's 96 epochs; made for one GPU of 40 GB); recipe = ours | paper, by
default the budget's; packed=True: root holds what ``dynpix prepare`` wrote; split = train | val; seed. The
default is half alone: the paper's text can be read as if its baseline trained at .25 too. Departures from the
paper: see recipe.py.

Paper, class accuracy (its "AC") and IoU: 44.0 / 34.9 of 59 classes, 62.5 / 51.1 of 33; 2000 pixels of one
image 32.6 / 24.6; with conv-7 at all scales 51.5 / 41.4 and 69.5 / 56.9. All: ``dynpix tables pixelnet``.
Here: not run, needs PASCAL-Context.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs import datasets
from dynpix_jax.configs.pixelnet import recipe
from dynpix_jax.core.configs import one_of
from dynpix_jax.core.errors import UserError


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one row of tables 1 to 3."""
    context = datasets.PASCAL_CONTEXT
    args = recipe.read_args(arg, root=context.root, split="val", classes=one_of(59, 33), label_root="")
    if args.packed and args.label_root:
        raise UserError("config argument label_root: packed=True does not read it, dynpix prepare does")
    config = recipe.pixelnet_config(
        args,
        f"pascal_context_{args.classes}",
        task="segmentation",
        task_options=dict(classes=args.classes),
        length=recipe.Length(images=4998, cpu=4000),
    )
    augment = recipe.cropped(args, (500, 500), colour=datasets.COLOUR)
    labels = {} if args.packed else dict(label_root=args.label_root)
    config.data = context.data(args, ("segmentation",), augment=augment, classes=args.classes, **labels)
    return config
