"""ASTMT on NYUD, four tasks: boundaries, segmentation, normals, depth.

    python train.py --config=configs/astmt/nyud.py:backbone=r26,variant=adversarial --workdir=runs/nyud/sea
    python eval.py --config=configs/astmt/nyud.py:backbone=r26,variant=adversarial --workdir=runs/nyud/sea \
        --set evaluation.reference=runs/nyud/single.json

Needs the NYUD_MT archive of ASTMT's authors (root=DIR) and ImageNet weights (weights=FILE), see pascal.py.
The segmentation has 41 classes, the background counted, as ASTMT has it; classes=40 ignores it, as most
others do. valid_normals=astmt takes all pixels' normals, as released; otherwise those without a direction are
left out. Other arguments: as in pascal.py. 200 epochs of 795 images, batches of 8, one GPU. The released code
weighs boundaries by .8: so does variant=released, others with
``--set model.task_options.boundaries.positive_weight=0.8``.

The paper (boundaries, mIoU, normals, depth): R-26 single 72.9, 29.87, 24.34, 0.650; multi 72.4, 27.74, 24.83,
0.729 (5.50 % worse); SEA 73.5, 30.07, 24.316, 0.625 (1.36 % better). Ours: not run, needs the archive.
"""

from __future__ import annotations

import dataclasses

import ml_collections

from dynpix_jax.configs import datasets
from dynpix_jax.configs.astmt import recipe
from dynpix_jax.core.configs import one_of

TASKS = ("boundaries", "segmentation", "normals", "depth")
IMAGES, EPOCHS = 795, 200


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one variant."""
    data = datasets.NYUD_MULTITASK
    args = recipe.read_args(
        arg, TASKS, root=data.root, classes=one_of(41, 40), valid_normals=one_of("long", "astmt")
    )
    recipe.check_read_by_task(arg, args, dict(classes="segmentation", valid_normals="normals"))
    if args.classes == 40:
        data = dataclasses.replace(data, segmentation=dict(classes=40), options=dict(classes=40))
    if args.valid_normals != "long":
        options = {**data.options, "valid_normals": args.valid_normals}
        data = dataclasses.replace(data, options=options)
    schedule = recipe.Steps(EPOCHS * IMAGES // 8, EPOCHS)
    config = recipe.data_set_config(args, "nyud", data, TASKS, schedule, max_dist=0.011)
    if args.variant == "released":
        config.model.adversarial.kernel = 3
        config.model.task_options.boundaries.positive_weight = 0.8
    return config
