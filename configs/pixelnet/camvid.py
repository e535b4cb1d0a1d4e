"""PixelNet on CamVid: table 2's question, pixels of many images or of few. Not in the paper.

    python train.py --config=configs/pixelnet/camvid.py:pixels=2000,images=5 --workdir=runs/pixelnet/camvid5
    python eval.py --config=configs/pixelnet/camvid.py:pixels=2000,images=5 --workdir=runs/pixelnet/camvid5

Needs the data set as SegNet's authors publish it (root=DIR) and VGG-16 imported by ``dynpix import-weights
--arch vgg16`` (weights=FILE). Arguments: pixels of an image and images a step (2000 and 5; 10000 and 1 has as
many pixels); steps with budget=cpu, 250 of images at half size, with conv1 to conv3 frozen; the others as in
pascal_context.py. ``dynpix reproduce pixelnet camvid`` trains both with three seeds each.

Measured here: docs/results.md.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs import datasets
from dynpix_jax.configs.pixelnet import recipe
from dynpix_jax.core.configs import given_args
from dynpix_jax.core.errors import UserError


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one batch."""
    args = recipe.read_args(arg, root=datasets.CAMVID.root, split="val", steps=250)
    if args.budget == "gpu" and "steps" in given_args(arg):
        raise UserError("config argument steps: budget=gpu does not read it, it trains the paper's epochs")
    config = recipe.pixelnet_config(
        args,
        "camvid",
        task="segmentation",
        task_options=dict(datasets.CAMVID.segmentation),
        length=recipe.Length(images=367, cpu=args.steps),
        cpu_images=5,
    )
    if args.budget == "cpu" and args.recipe == "ours":
        (stage,) = config.training.stages
        config.training.stages = (dict(stage, frozen=(r"backbone/conv[123]_\d/.*",)),)
        config.training.warmup_steps = 20
    augment = recipe.cropped(args, (360, 480), colour=datasets.COLOUR)
    config.data = datasets.CAMVID.data(args, ("segmentation",), augment=augment)
    return config
