"""ASTMT on NYUD, four tasks: boundaries, segmentation, normals, depth.

    python train.py --config=configs/astmt/nyud.py:backbone=r26,variant=adversarial --workdir=runs/nyud/sea
    python eval.py --config=configs/astmt/nyud.py:backbone=r26,variant=adversarial --workdir=runs/nyud/sea \
        --set evaluation.reference=runs/nyud/single.json

Needs the NYUD_MT archive of ASTMT's authors (root=DIR) and ImageNet weights (weights=FILE), see pascal.py.
The segmentation has 41 classes, the background counted, as ASTMT has it. Arguments: as in pascal.py. 200
epochs of 795 images, batches of 8, one GPU.

The paper (boundaries, mIoU, normals, depth): R-26 single 72.9, 29.87, 24.34, 0.650; multi 72.4, 27.74, 24.83,
0.729 (5.50 % worse); SEA 73.5, 30.07, 24.316, 0.625 (1.36 % better). Ours: not run, needs the archive.
"""

from __future__ import annotations

import ml_collections

from .. import datasets
from . import recipe

TASKS = ("boundaries", "segmentation", "normals", "depth")
IMAGES, EPOCHS = 795, 200


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one variant."""
    args = recipe.read_args(arg, TASKS, root=datasets.NYUD_MULTITASK.root)
    schedule = recipe.Steps(EPOCHS * IMAGES // 8, EPOCHS)
    return recipe.data_set_config(args, "nyud", datasets.NYUD_MULTITASK, TASKS, schedule, max_dist=0.011)
