"""MDEQ on CamVid: segmentation of street scenes, 11 classes. Not in the paper.

    python train.py --config=configs/mdeq/camvid.py --workdir=runs/camvid/mdeq
    python eval.py --config=configs/mdeq/camvid.py --workdir=runs/camvid/mdeq

Needs the data set as SegNet's authors publish it (root=DIR). Arguments: variant and the others of recipe.py;
budget = cpu (images at two thirds of their size, two a step, variant=tiny unless told otherwise) | gpu (full
size, eight a step, variant=small); weights = official MDEQ weights imported by ``dynpix import-weights``;
continue_from = workdir of a pretraining; split = train | val | test; packed=True: root holds what ``dynpix
prepare`` wrote.

Here: not run.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs.datasets import CAMVID
from dynpix_jax.configs.mdeq import recipe
from dynpix_jax.core.configs import given_args


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one variant."""
    args = recipe.read_args(arg, variant="tiny", root=CAMVID.root, split="val")
    cpu = args.budget == "cpu"
    if not cpu and "variant" not in given_args(arg):
        args.variant = "small"
    config = recipe.mdeq_config(
        args,
        "camvid",
        task_options=dict(CAMVID.segmentation),
        steps=recipe.Steps(2, 600, 1200) if cpu else recipe.Steps(8, 6000, 12000),
        scale=CAMVID.scale(args.budget),
    )
    config.data = CAMVID.data(args, ("segmentation",))
    return config
