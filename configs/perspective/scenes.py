"""Recurrent scene parsing on synthetic scenes: every variant in minutes, without a download.

    python train.py --config=configs/perspective/scenes.py:variant=pred_depth,loops=2 \
        --workdir=runs/scenes/loop2
    python eval.py --config=configs/perspective/scenes.py:variant=pred_depth,loops=2 \
        --workdir=runs/scenes/loop2

A ResNet-26 of half the usual width learns from nothing on rendered rooms of 96x128 pixels with exact depth.
Arguments: variant, loops, loop_loss, tied, pooling, gate, regression, blur, test_aug, steps, continue_from
as in recipe.py; seed, of the weights, the order of the images and the scenes' augmentation. Every variant
trains for the same number of steps in all, whatever its stages, so that variants compare: pred_depth with
average,tied=True, each with seed=0, 1 and 2, as ``dynpix reproduce perspective scenes`` does. The paper has
no such rows. Measured here: docs/results.md.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs import datasets
from dynpix_jax.configs.perspective import recipe
from dynpix_jax.core.configs import refuse_args

STEPS = 1800
"""Of all stages together, unless the argument says otherwise."""

EDGES = (0.001, 2.45, 3.0, 3.9, 4.8, 20.0)
"""Metres: the quintiles of the scenes' depth."""


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one variant."""
    refuse_args(arg, ("budget", "recipe", "root", "packed", "weights", "split"), "the scenes do")
    args = recipe.read_args(arg, root="", split="val", seed=0)
    config = recipe.perspective_config(
        args,
        "scenes",
        segmentation=dict(classes=datasets.SCENE_CLASSES),
        steps=recipe.Steps(4, 1, 1, 1, 1),
        bins=dict(edges=EDGES, of="depth"),
    )
    config.seed = args.seed
    config.model.backbone.update(depth=26, width=32, frozen_norm=False, preprocessing="torch")
    config.model.update(features=64, dropout=0.0)
    if args.variant == "pred_depth":
        config.model.depth_features = (32, 16)
    config.training.update(
        stages=recipe.share_out(_stages(config.training.stages), args.steps or STEPS),
        warmup_steps=20,
        grad_clip=1.0,
        log_every=25,
        keep=1,
        init_from=args.continue_from,
    )
    config.evaluation.update(every_stage=True, pictures=4)
    config.data = datasets.scenes(recipe.labels(args), val=200)
    return config


def _stages(stages: tuple) -> tuple[dict, ...]:
    """The recipe's stages for a network without pretrained weights: all is trained."""
    rates = {"base": 1e-3, "gating": 1e-3, "finetune": 3e-4}
    return tuple(
        dict(
            stage,
            learning_rate=rates.get(stage["name"], 5e-4),
            frozen=(),
            multipliers=((r".*", 1.0),),
        )
        for stage in stages
    )
