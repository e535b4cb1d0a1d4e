"""ASTMT on PASCAL, five tasks: boundaries, segmentation, human parts, normals, saliency.

    python train.py --config=configs/astmt/pascal.py:variant=adversarial --workdir=runs/pascal/sea
    python eval.py --config=configs/astmt/pascal.py:variant=adversarial --workdir=runs/pascal/sea \
        --set evaluation.reference=runs/pascal/single.json

Needs the PASCAL_MT archive of ASTMT's authors (root=DIR) and ImageNet weights imported by ``dynpix
import-weights`` (weights=FILE; of se_resnet26, se_resnet50, se_resnet101 or se_mobilenetv2). The reference
is what ``dynpix reference`` makes of five evaluated runs variant=single,task=...

Arguments: variant, task, backbone, decoder, se, norm, scores, w_d as in recipe.py; packed: root holds what
``dynpix prepare`` wrote; split, to evaluate; seed. The paper: one GPU, batches of 8 (MobileNet as released:
16, 130 epochs), 60 epochs of 4998 images. Its scores: ``dynpix tables astmt``; R-50 with UberNet's heads
loses 7.10 % multi, 0.43 % SEA; MobileNet 7.57 % multi, 0.97 % with SE. Ours: not run, needs the archive.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs import datasets
from dynpix_jax.configs.astmt import recipe

TASKS = ("boundaries", "segmentation", "parts", "normals", "saliency")
IMAGES = 4998


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one variant."""
    args = recipe.read_args(arg, TASKS, root=datasets.PASCAL_MULTITASK.root)
    mobile = args.backbone == "mobilenet"
    batch_size, epochs = (16, 130) if mobile else (8, 60)
    schedule = recipe.Steps(epochs * IMAGES // batch_size, epochs, batch_size)
    return recipe.data_set_config(args, "pascal", datasets.PASCAL_MULTITASK, TASKS, schedule)
