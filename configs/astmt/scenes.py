"""ASTMT on synthetic scenes: five tasks in one small network, in minutes, without a download.

    python train.py --config=configs/astmt/scenes.py:variant=se --workdir=runs/scenes/se
    python eval.py --config=configs/astmt/scenes.py:variant=se --workdir=runs/scenes/se

All rows, three seeds each, with their average drop against single-task networks:

    dynpix reproduce astmt scenes --workdir runs

An SE-ResNet-26 of a quarter of the usual width learns from nothing on rooms of 64x80 pixels. Arguments:
variant, task, se, norm, scores, w_d, decoder as in recipe.py; seed, of the weights and of the order of the
images; steps. Every variant sees the same batches. AdamW in place of SGD: its steps do not depend on the
losses' scales, and training is short. The paper has no such rows; measured here: docs/results.md.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs import datasets
from dynpix_jax.configs.astmt import recipe
from dynpix_jax.core.configs import refuse_args

TASKS = ("boundaries", "segmentation", "normals", "depth", "saliency")
SIZE = (64, 80)


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one variant."""
    refuse_args(arg, ("root", "packed", "split", "weights", "backbone"), "the scenes do")
    args = recipe.read_args(arg, TASKS, steps=400)
    args.backbone = "r26"
    options = dict(
        segmentation=dict(classes=datasets.SCENE_CLASSES),
        # Rooms differ in depth by a factor of ten: a small network learns its logarithm sooner.
        depth=dict(logit="log"),
    )
    config = recipe.astmt_config(args, "scenes", TASKS, options, recipe.Steps(args.steps, 20, 8))
    config.model.backbone.update(width=16)
    if args.decoder == "deeplab":
        config.model.decoder.update(features=32, rates=(1, 2))  # of 4 x 5 cells
    (stage,) = config.training.stages
    config.training.update(
        stages=(dict(stage, learning_rate=3e-3),),
        optimizer="adamw",
        weight_decay_on=(r".*/kernel",),
        warmup_steps=20,
        checkpoint_every=0,
    )
    config.evaluation.update(pictures=2, batch_size=4)
    if "boundaries" in config.model.tasks:
        config.evaluation.thresholds = 25
    config.data = datasets.scenes(recipe.chosen(args, TASKS), size=SIZE, train=1000, val=100)
    return config
