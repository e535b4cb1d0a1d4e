"""PixelNet on synthetic scenes: every task in minutes, without a download.

    python train.py --config=configs/pixelnet/scenes.py:task=normals --workdir=runs/pixelnet/scenes
    python eval.py --config=configs/pixelnet/scenes.py:task=normals --workdir=runs/pixelnet/scenes

A quarter of VGG-16's width, with batch norms, learns from nothing on rendered rooms of 96x128 pixels.
Arguments: task = segmentation | boundaries | depth (scale-invariant loss) | normals; strategy = stratified |
uniform | biased and rare, the share of rare pixels of the last; fc, width, pixels, images, conv7,
test_scales and seed as in pascal_context.py. The paper has no such rows.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs import datasets
from dynpix_jax.configs.pixelnet import recipe
from dynpix_jax.core.configs import given_args, one_of, refuse_args
from dynpix_jax.core.errors import UserError

OPTIONS = {
    "segmentation": dict(classes=datasets.SCENE_CLASSES),
    "boundaries": dict(positive_weight=0.5),
    "depth": dict(gamma=0.0, scale_invariance=0.5),
    "normals": dict(cosine=2.0, arccos=0.0),
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one task."""
    names = ("budget", "recipe", "root", "packed", "weights", "continue_from", "split", "train_scales")
    refuse_args(arg, names, "the scenes do")
    args = recipe.read_args(
        arg,
        root="",
        split="val",
        test_scale=1.0,
        task=one_of(*OPTIONS),
        strategy=one_of("stratified", "uniform", "biased"),
        rare=0.5,
    )
    if "rare" in given_args(arg) and args.strategy != "biased":
        raise UserError(f"config argument rare: strategy={args.strategy} does not read it")
    if "pixels" not in given_args(arg):
        args.pixels = 500
    if "width" not in given_args(arg) and args.fc > 1:
        args.width = 128
    config = recipe.pixelnet_config(
        args,
        f"scenes_{args.task}",
        task=args.task,
        task_options=OPTIONS[args.task],
        length=recipe.Length(images=1000, cpu=500),
        sampling=dict(strategy=args.strategy, rare_share=args.rare if args.strategy == "biased" else 0.5),
        cpu_images=5,
    )
    config.model.backbone.update(width=16, batch_norm=True)
    if args.conv7:
        config.model.backbone.fc_features = 128
    (stage,) = config.training.stages
    rest = ((r".*", 1.0),)
    config.training.update(
        stages=(dict(stage, learning_rate=1e-3, frozen=(), multipliers=rest),),
        warmup_steps=20,
        log_every=25,
        keep=1,
        init_from="",
    )
    config.evaluation.pictures = 4
    if args.task == "boundaries":
        config.evaluation.thresholds = 25
    config.data = datasets.scenes((args.task,))
    return config
