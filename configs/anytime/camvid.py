"""Anytime segmentation of CamVid: street scenes, 11 classes. Not in the paper.

    python train.py --config=configs/anytime/camvid.py:variant=rh --workdir=runs/camvid/rh
    python train.py --config=configs/anytime/camvid.py:variant=ca,continue_from=runs/camvid/rh \
        --workdir=runs/camvid/ca
    python eval.py --config=configs/anytime/camvid.py:variant=ca,continue_from=runs/camvid/rh \
        --workdir=runs/camvid/ca

Needs the data set as SegNet's authors publish it (root=DIR). HRNet-W18-Small-v2 learns from nothing, or from
ImageNet weights (weights=FILE, then with fewer steps). Arguments: variant and the others of recipe.py; split
= train | val | test; budget = cpu (images at two thirds of their size, two a step, for about twelve minutes
on two cores) | gpu (full size, twelve a step); packed=True: root holds what ``dynpix prepare`` wrote. Such a
short training leaves predictions less certain than the paper's, so the threshold is lower.

Measured here (367 images to train on, 101 of val): docs/results.md.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs import training
from dynpix_jax.configs.anytime import recipe
from dynpix_jax.configs.datasets import CAMVID

THRESHOLD = 0.88


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one variant."""
    args = recipe.read_args(
        arg, arch="w18s2", root=CAMVID.root, split="val", budget=training.BUDGET, packed=False, weights=""
    )
    cpu = args.budget == "cpu"
    config = recipe.anytime_config(
        args,
        "camvid",
        task_options=dict(CAMVID.segmentation),
        batch_size=2 if cpu else 12,
        steps=900 if cpu else 12000,
        cpu=cpu,
        threshold=THRESHOLD if cpu else recipe.THRESHOLDS["max_probability"],
        scale=CAMVID.scale(args.budget),
    )
    config.data = CAMVID.data(args, ("segmentation",))
    return config
