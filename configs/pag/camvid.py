"""PAG on CamVid: semantic segmentation of street scenes, 11 classes. Not in the paper.

    python train.py --config=configs/pag/camvid.py:variant=gated,rho=0.7 --workdir=runs/camvid/gated
    python eval.py --config=configs/pag/camvid.py:variant=gated,rho=0.7 --workdir=runs/camvid/gated

Needs the data set as SegNet's authors publish it (root=DIR) and ImageNet weights imported by ``dynpix
import-weights`` (weights=FILE). Arguments, and departures from the paper: recipe.py. budget = cpu (images at
two thirds of their size, one a step, 1500 steps and about 1 a second on 2 cores for base) | gpu (full size);
split = train | val | test.

Measured here (367 images to train on, 101 of val): docs/results.md.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs.datasets import CAMVID
from dynpix_jax.configs.pag import recipe


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one variant."""
    args = recipe.read_args(arg, tasks=("segmentation",), root=CAMVID.root, split="val")
    cpu = args.budget == "cpu"
    config = recipe.pag_config(
        args,
        "camvid",
        task_options=dict(CAMVID.segmentation),
        schedule=recipe.Schedule(1, 1500, 400, 180) if cpu else recipe.Schedule(8, 6000, 3000, 2000),
        head_features=32 if cpu else 64,
        scale=CAMVID.scale(args.budget),
    )
    config.data = CAMVID.data(args, ("segmentation",))
    return config
