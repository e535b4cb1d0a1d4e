"""Shared by the configs of this folder: PixelNet as the paper's section 4 has it, and its training.

A config reads its argument with `read_args` and gets all sections but `data` from `pixelnet_config`.

recipe=paper, the default of budget=gpu, is the paper's training: batches of 5 images with 2000 pixels each,
SGD with momentum 0.9 and decay 5e-4, 80 epochs at 1e-3, then 8 at 1e-4 and 8 at 1e-5, MLP layers of 4096. An
epoch is all images once, however many there are in a step. Biases learn twice as fast as kernels, and the
boundaries' MLP ten times as fast as VGG, as released. These rates are for VGG's original Caffe weights, whose
activations are one to two orders of magnitude larger than torchvision's: weights/vgg16_caffe.safetensors,
imported by ``dynpix import-weights --arch vgg16`` from their .caffemodel. For torchvision's: ``weights=FILE``
and ``--set model.backbone.preprocessing=torch``.

Rows of several sizes (train_scales=multi, full) train the run of size .5 on for three times 8 epochs, from
right before it first lowers the rate: continue_from=DIR@train, what the stage "train" of the run in DIR
ended with.

recipe=ours, the default of budget=cpu, departs from that: AdamW, one stage, torchvision's weights, MLP layers
of 512 that start as He's do, a batch norm on the hypercolumn (normalize=batch). budget=cpu trains minutes, a
few images a step, and by our recipe with conv1 and conv2 frozen.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_collections

from dynpix_jax.configs import training
from dynpix_jax.core.configs import check_least, one_of, parse_arg
from dynpix_jax.core.errors import UserError

COLUMN = ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3")

TRAIN_SCALES = {
    "small": (0.25, 0.5),
    "half": (0.5,),
    "full": (1.0,),
    "both": (0.5, 1.0),
    "multi": (0.25, 0.5, 1.0),
}
"""Sizes of training images, relative to their own (table 3; ``both`` and ``full`` are table 7's)."""


@dataclasses.dataclass(frozen=True)
class Length:
    """How long a data set trains.

    Attributes:
        images: Those of an epoch, with budget=gpu.
        epochs: At each of the three learning rates of the paper; with recipe=ours their sum.
        cpu: Steps on budget=cpu, whatever the epochs.
    """

    images: int
    cpu: int
    epochs: tuple[int, int, int] = (80, 8, 8)


def read_args(
    arg: str | None,
    *,
    root: str,
    split: str,
    train_scales: str = "half",
    test_scale: float = 0.5,
    **more: Any,
) -> ml_collections.ConfigDict:
    """The string argument of a config; ``more`` are names and defaults of its own.

    Args:
        root: Default of ``root``.
        split: Default of ``split``.
        train_scales: Default of ``train_scales``.
        test_scale: Default of ``test_scales``.

    Raises:
        UserError: An unknown name or value.
    """
    args = parse_arg(
        arg,
        fc=one_of(1, 2, 3, default=3),
        width=0,
        pixels=2000,
        images=0,
        conv7=False,
        train_scales=one_of(*TRAIN_SCALES, default=train_scales),
        test_scales=(test_scale,),
        budget=training.BUDGET,
        recipe=one_of("", "ours", "paper"),
        root=root,
        packed=False,
        weights="",
        continue_from="",
        split=split,
        seed=0,
        **more,
    )
    args.recipe = args.recipe or ("ours" if args.budget == "cpu" else "paper")
    check_least(args, {"width": 0, "pixels": 2, "images": 0})
    if args.width and args.fc == 1:
        raise UserError("config argument width: fc=1 has no hidden layer and does not read it")
    return args


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What the argument ``recipe`` decides.

    Attributes:
        width: Of the MLP's hidden layers.
        weights: VGG's.
        preprocessing: Of these weights: "caffe" for those that expect BGR less the mean.
        normalize: Of the hypercolumn.
        mlp: Further options of the MLP; ``dropout`` is of hidden layers.
        training: How it optimizes.
    """

    width: int
    weights: str
    preprocessing: str
    normalize: str
    mlp: dict[str, Any]
    training: dict[str, Any]


RECIPES = {
    "ours": Recipe(
        512,
        "weights/vgg16.safetensors",
        "torch",
        "batch",
        dict(dropout=0.0, init_std=None),
        dict(warmup_steps=50, grad_clip=1.0),
    ),
    "paper": Recipe(
        4096, "weights/vgg16_caffe.safetensors", "caffe", "none", {}, dict(training.SGD, poly_power=0.0)
    ),
}


def pixelnet_config(
    args: ml_collections.ConfigDict,
    name: str,
    *,
    task: str,
    length: Length,
    task_options: dict[str, Any] | None = None,
    sampling: dict[str, Any] | None = None,
    column_dropout: float = 0.0,
    mlp_rate: float = 1.0,
    cpu_images: int = 2,
) -> ml_collections.ConfigDict:
    """All sections but ``data``.

    Args:
        name: Name of the config.
        length: Length of the training.
        task_options: Options of the task.
        sampling: Options of the sampling, beside the number of pixels.
        column_dropout: Dropout of hypercolumns, with recipe=paper.
        mlp_rate: Learning rate of the MLP relative to VGG's, with recipe=paper.
        cpu_images: Images a step, on budget=cpu.
    """
    recipe, ours = RECIPES[args.recipe], args.recipe == "ours"
    images = args.images or (cpu_images if ours and args.budget == "cpu" else 5)
    hidden = (args.width or recipe.width,) * (args.fc - 1)
    mlp = {name: value for name, value in recipe.mlp.items() if hidden or name != "dropout"}
    config = ml_collections.ConfigDict()
    config.name = f"pixelnet_{name}"
    config.seed = args.seed
    config.model = dict(
        system="pixelnet",
        compute_dtype=training.COMPUTE_DTYPE[args.budget],
        task=task,
        task_options=task_options or {},
        backbone=dict(preprocessing=recipe.preprocessing),
        hypercolumn=dict(
            layers=(*COLUMN, "fc7") if args.conv7 else COLUMN,
            normalize=recipe.normalize,
            dropout=0.0 if ours else column_dropout,
        ),
        mlp=dict(mlp, hidden=hidden),
        sampling=dict(sampling or {}, pixels=args.pixels),
    )
    args.weights = args.weights or recipe.weights
    config.training = training.section(
        args,
        images,
        _stages(args, length, images, mlp_rate),
        checkpoint_every=250 if args.budget == "cpu" else 1000,
        **recipe.training,
    )
    config.evaluation = dict(mode="dense", inference=dict(scales=args.test_scales))
    return config


def _stages(
    args: ml_collections.ConfigDict, length: Length, images: int, mlp_rate: float
) -> tuple[dict, ...]:
    cpu, rest = args.budget == "cpu", (r".*", 1.0)
    epochs = (8, 8, 8) if args.continue_from else length.epochs
    # Of one of the parts that ``epochs`` counts.
    steps = length.cpu / sum(epochs) if cpu else length.images // images
    if args.recipe == "ours":
        stage = dict(
            name="train",
            steps=round(steps * sum(epochs)),
            learning_rate=5e-5,
            frozen=(r"backbone/conv[12]_\d/.*",) if cpu else (),
            # Layers that no ImageNet network has learn faster.
            multipliers=((r"mlp\d/.*", 20.0), (r"norms_.*", 20.0), rest),
        )
        return (stage,)
    # A single layer diverges at the paper's usual rate (section 4.1, analysis 1).
    rate = 1e-7 if args.fc == 1 else 1e-3
    # Caffe's habit, as released: biases have twice the rate of kernels.
    mlp = ((r"mlp\d/bias", 2 * mlp_rate), (r"mlp\d/kernel", mlp_rate)) if mlp_rate != 1 else ()
    return tuple(
        dict(
            name=stage,
            steps=max(1, round(steps * count)),
            learning_rate=rate * factor,
            multipliers=(*mlp, (r".*/bias", 2.0), rest),
        )
        for stage, count, factor in zip(("train", "lower", "lowest"), epochs, (1.0, 0.1, 0.01), strict=True)
    )


def cropped(args: ml_collections.ConfigDict, sides: tuple[int, int], **more: Any) -> dict[str, Any]:
    """Section ``augment``: mirrored or not, one of the ``train_scales``, in a frame that holds the image.

    Args:
        args: Result of `read_args`.
        sides: (H, W) of the largest images at scale 1.
        **more: Further options of the section.
    """
    scales = TRAIN_SCALES[args.train_scales]
    height, width = (int(side * max(scales) + 0.5) for side in sides)
    return dict(flip=True, scales=scales, crop=(height, width), **more)
