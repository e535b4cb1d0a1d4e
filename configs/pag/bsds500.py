"""PAG on BSDS500 boundaries (Kong and Fowlkes, section 5.2, table 1 and figure 5).

    python train.py --config=configs/pag/bsds500.py:variant=gated,rho=0.7 --workdir=runs/bsds500/gated
    python eval.py --config=configs/pag/bsds500.py:variant=gated,rho=0.7 --workdir=runs/bsds500/gated

Needs the data set (root=DIR) and ImageNet weights imported by ``dynpix import-weights`` (weights=FILE).
Arguments, and departures from the paper: recipe.py. budget = cpu (one 320x320 crop, few thousand steps) | gpu
(longer, ten crops, HED's scales and rotations); train_split = train | trainval, the paper's 300 images, which
are then evaluated on test; split = train | val | test, the images that are evaluated.

Paper, test set: base .790, MultiPool at Res4 .792, at 70 % of the computation .773 (ODS F).
Measured here: docs/results.md.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs import published
from dynpix_jax.configs.datasets import BSDS500
from dynpix_jax.configs.pag import recipe


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one row of the results."""
    args = recipe.read_args(
        arg,
        tasks=("boundaries",),
        root=BSDS500.root,
        split="val",
        train_split=published.TRAIN_SPLIT,
        multipool=("res4_2",),
        drop_blocks=3,
    )
    published.choose_bsds_split(arg, args)
    cpu = args.budget == "cpu"
    config = recipe.pag_config(
        args,
        "bsds500",
        task_options={},
        schedule=recipe.Schedule(1, 1700, 300, 230, 240, head_rate=10.0, learning_rates=(1e-4, 1e-4))
        if cpu
        else recipe.Schedule(10, 6000, 3000, 2000, head_rate=10.0),
        head_features=16,
    )
    # On a GPU the augmentation of HED (Xie and Tu, ICCV 2015): 3 scales, 16 rotations, mirrored or not.
    hed = dict(scales=(0.5, 1.0, 1.5), rotations=tuple(22.5 * k for k in range(16)))
    augment = dict(flip=True, crop=(320, 320), **({} if cpu else hed))
    if args.recipe == "paper":
        augment = published.crops()
    elif args.variant == "gated":
        recipe.choosing_gates(config, args)
    config.data = BSDS500.data(args, (), augment=augment)
    return config
