"""PAG on NYUv2: segmentation into 40 classes, depth, surface normals (Kong and Fowlkes, tables 1 to 10).

    python train.py --config=configs/pag/nyuv2.py:task=segmentation,variant=gated,rho=0.7,budget=gpu \
        --workdir=runs/nyuv2/gated
    python eval.py --config=configs/pag/nyuv2.py:task=segmentation,variant=gated,rho=0.7,budget=gpu \
        --workdir=runs/nyuv2/gated

Needs the data set, published files or extracted folders (root=DIR), and ImageNet weights imported by ``dynpix
import-weights`` (weights=FILE; with budget=gpu those of a stem of three 3x3, or give stem=7x7). Arguments,
and departures from the paper: recipe.py. task = segmentation | depth | normals; budget = cpu (half size, one
image a step) | gpu (crops of 400x544 with scales and rotations as in the authors' other work on these images,
eight a step; made for one GPU of 40 GB); split = train | test.

Paper, 654 test images. Segmentation (IoU): base .421, MultiPool at Res5 .465, rho .9 / .7 / .5: .458 / .436 /
.409. Depth (delta < 1.25): base .711, MultiPool .751, .745 / .710 / .673. Normals (mean angle): base 22.3,
MultiPool 21.7, 21.9 / 22.5 / 23.6. All rows: ``dynpix tables pag``.
Here: not run, needs NYUv2.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs import published
from dynpix_jax.configs.datasets import NYUV2
from dynpix_jax.configs.pag import recipe


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one task and variant."""
    args = recipe.read_args(
        arg, tasks=("segmentation", "depth", "normals"), root=NYUV2.root, split="test", stem=recipe.STEM
    )
    cpu = args.budget == "cpu"
    config = recipe.pag_config(
        args,
        "nyuv2",
        task_options=dict(NYUV2.segmentation) if args.task == "segmentation" else {},
        schedule=recipe.Schedule(1, 3000, 800, 300) if cpu else recipe.Schedule(8, 12000, 6000, 4000),
        head_features=48 if cpu else 64,
        scale=NYUV2.scale(args.budget),
    )
    augment = published.crops(NYUV2.scale(args.budget)) if args.recipe == "paper" else None
    config.data = NYUV2.data(args, (args.task,), augment=augment)
    return config
