"""ASTMT on the Free Supervision from Video games data (FSV), three tasks: segmentation, albedo, depth.

    python train.py --config=configs/astmt/fsv.py:backbone=r26,variant=adversarial --workdir=runs/fsv/sea
    python eval.py --config=configs/astmt/fsv.py:backbone=r26,variant=adversarial --workdir=runs/fsv/sea \
        --set evaluation.reference=runs/fsv/single.json

Needs the FSV archive as ASTMT's authors pruned it (root=DIR) and ImageNet weights (weights=FILE), see
pascal.py. Arguments: as in pascal.py. Three epochs, of about 220 000 images; batches of 8, one GPU.

The paper (mIoU, albedo, depth): R-26 single 69.77, 0.087, 0.065; multi 66.71, 0.090, 0.073 (6.41 % worse);
SEA 71.36, 0.085, 0.065 (1.80 % better). Ours: not run, needs the archive.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs import datasets
from dynpix_jax.configs.astmt import recipe

TASKS = ("segmentation", "albedo", "depth")
IMAGES, EPOCHS = 220_000, 3


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one variant."""
    args = recipe.read_args(arg, TASKS, root=datasets.FSV.root, split="test")
    schedule = recipe.Steps(EPOCHS * IMAGES // 8, EPOCHS)
    return recipe.data_set_config(args, "fsv", datasets.FSV, TASKS, schedule)
