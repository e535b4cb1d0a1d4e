"""Shared by the configs of this folder: networks, the variants of the appendix's tables, training.

A config reads its argument with `read_args`, gets all sections but ``data`` from `astmt_config`.

The rows of the appendix's tables, as arguments:
  variant=single,task=depth          a network for one task ("#T 1"); one for each of them is the reference
  variant=multi                      everything shared up to each task's last layer
  variant=se[,se=dec|enc]            squeeze-and-excitation for each task
  variant=adapters                   residual adapters for each task
  variant=adversarial                se, and the discriminator ("SEA")
  variant=released                   all three at once, the network whose weights the authors released
  decoder=uber                       table 2 (adapters and SE are in the encoder only)
  backbone=r26|r50|r101|mobilenet    table 3: mobilenet, which has no adapters

Where this departs from the released code, it follows the paper: the learning rate 0.005 is divided by the
number of tasks for what they share (released: multiplied by it for what they do not share), w_d is 0.1
(0.01), the discriminator has 1x1 convolutions, momentum is kept over epochs. Images are normalised as for
ImageNet training; released networks see raw values: ``--set model.backbone.preprocessing=none``. Strides
stand on the 3x3, as in the pretrained networks: ``--set model.backbone.stride_in_1x1=True`` has them where
the released multi-task networks do. Images are cropped, not stretched, to 512x512.

variant=released has the released values of w_d, preprocessing and strides, and on NYUD of the discriminator's
kernel and the boundaries' weight; its learning rates are the paper's, for five tasks the same as released.

Norms are each task's own as released: the encoder's wherever there are several tasks (MobileNet: with SE of
each task's own), the decoder's with its SE. ``norm=own|shared`` says otherwise, for both. MobileNet's decoder
is depthwise separable with SE of reduction 16, which keeps it near the paper's 8 % of R-50's parameters; the
released one is grouped without 1x1 convolutions, its reduction is 4: ``--set model.decoder.reduction=4``.

``scores=astmt`` counts as the released evaluation does: classes that never occur are 0 in the mean IoU, the
logarithmic RMSE of depth is the median of images, a missing depth counts as 1e-9 metres.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections

from dynpix_jax.configs import training
from dynpix_jax.configs.datasets import DataSet
from dynpix_jax.core.configs import check_read_by_variant, given_args, one_of, parse_arg
from dynpix_jax.core.errors import UserError

BACKBONES = {"r26": 26, "r50": 50, "r101": 101, "mobilenet": 0}
VARIANTS = ("single", "multi", "se", "adapters", "adversarial", "released")
WEIGHTS = dict(
    boundaries=50.0, segmentation=1.0, parts=2.0, normals=10.0, saliency=5.0, albedo=10.0, depth=1.0
)
"""w_t of the appendix; that of saliency is the released code's."""

OPTIONS: Mapping[str, Mapping[str, Any]] = dict(
    boundaries=dict(positive_weight=0.95),
    normals=dict(cosine=0.0, arccos=0.0, l1=1.0, epsilon="astmt"),
    depth=dict(logit="metres"),
)
"""The appendix's losses."""

RELEASED_W_D = 0.01
SCORES = dict(segmentation=dict(scoring="astmt"), parts=dict(scoring="astmt"), depth=dict(scoring="astmt"))
"""With scores=astmt: the conventions of the released evaluation, where they differ."""

READ_BY = {
    "task": ("single",),
    "se": ("se", "adversarial"),
    "norm": ("multi", "se", "adapters", "adversarial"),
    "w_d": ("adversarial", "released"),
}
"""Variants that read an argument; the others refuse it rather than train something else than asked for."""


@dataclasses.dataclass(frozen=True)
class Steps:
    """Training length: updates, their number of epochs, images an update."""

    steps: int
    epochs: int
    batch_size: int = 8


def read_args(
    arg: str | None,
    tasks: tuple[str, ...],
    *,
    root: str = "",
    split: str = "val",
    variants: tuple[str, ...] = VARIANTS,
    **more: Any,
) -> ml_collections.ConfigDict:
    """The string argument of a config; ``more`` are names and defaults of its own.

    Raises:
        UserError: An unknown name or value, or one that the variant does not read.
    """
    args = parse_arg(
        arg,
        variant=one_of(*variants, default="multi"),
        task=one_of(*tasks),
        backbone=one_of(*BACKBONES, default="r50"),
        decoder=one_of("deeplab", "uber"),
        se=one_of("both", "enc", "dec"),
        norm=one_of("", "own", "shared"),
        scores=one_of("", "astmt"),
        w_d=0.1,
        root=root,
        packed=False,
        split=split,
        weights="",
        seed=0,
        **more,
    )
    check_read_by_variant(arg, args, READ_BY)
    if args.backbone == "mobilenet" and args.variant in ("adapters", "adversarial", "released"):
        raise UserError(f"config argument variant={args.variant}: backbone=mobilenet has none in the paper")
    if args.decoder == "uber" and args.variant == "released":
        raise UserError("config argument variant=released: none was with decoder=uber; expected deeplab")
    if args.variant == "released" and "w_d" not in given_args(arg):
        args.w_d = RELEASED_W_D
    if args.decoder == "uber" and "se" in given_args(arg) and args.se != "enc":
        raise UserError(f"config argument se={args.se}: decoder=uber has no SE; expected se=enc")
    if args.scores and args.variant == "single" and args.task not in SCORES:
        raise UserError(
            f"config argument scores: task={args.task} does not read it; it is for task={' or '.join(SCORES)}"
        )
    if not 0.0 <= args.w_d < 1.0:
        raise UserError(f"config argument w_d={args.w_d:g}: expected a share in [0, 1)")
    return args


def check_read_by_task(arg: str | None, args: ml_collections.ConfigDict, read_by: Mapping[str, str]) -> None:
    """Refuses an argument of one task, argument -> task in ``read_by``, for a network without that task.

    Raises:
        UserError: Names the first such argument.
    """
    for name, task in read_by.items():
        if name in given_args(arg) and args.variant == "single" and args.task != task:
            raise UserError(
                f"config argument {name}: task={args.task} does not read it; {name} is for task={task}"
            )


def chosen(args: ml_collections.ConfigDict, tasks: tuple[str, ...]) -> tuple[str, ...]:
    """The tasks of the network."""
    return (args.task,) if args.variant == "single" else tasks


def model(
    args: ml_collections.ConfigDict,
    tasks: tuple[str, ...],
    options: Mapping[str, Mapping[str, Any]],
    epochs: int,
) -> dict[str, Any]:
    """Section ``model``.

    Args:
        tasks: Tasks of the network.
        options: Options of the tasks, over those of the appendix.
        epochs: Epochs in which the reversal of gradients grows.
    """
    modulated, uber = args.variant in ("se", "adversarial", "released"), args.decoder == "uber"
    mobile, released = args.backbone == "mobilenet", args.variant == "released"
    encoder = modulated and args.se != "dec"
    decoder = modulated and args.se != "enc" and not uber
    adapters = args.variant in ("adapters", "released")
    own = {"own": True, "shared": False}
    scores: Mapping[str, Mapping[str, Any]] = SCORES if args.scores else {}
    discriminator = dict(weight=args.w_d, **({"epochs": epochs} if args.w_d else {}))
    sections: dict[str, Any] = dict(
        system="astmt",
        tasks=tasks,
        task_options={
            task: {**OPTIONS.get(task, {}), **scores.get(task, {}), **options.get(task, {})} for task in tasks
        },
        task_weights={task: WEIGHTS[task] for task in tasks},
        encoder=dict(
            se=encoder,
            norm=args.variant != "single" and own.get(args.norm, encoder or not mobile),
            adapters=adapters,
        ),
        decoder=dict(
            kind=args.decoder,
            separable=mobile and not uber,
            se=decoder,
            norm=not uber and own.get(args.norm, decoder),
            adapters=adapters and not uber,
        ),
        adversarial=discriminator if args.variant in ("adversarial", "released") else None,
    )
    if mobile:
        sections["backbone"] = dict(name="mobilenetv2")
    else:
        sections["backbone"] = dict(
            se=True,
            depth=BACKBONES[args.backbone],
            output_stride=16,
            stride_in_1x1=released,
            frozen_norm=False,
            preprocessing="none" if released else "torch",
        )
    return sections


def multipliers(args: ml_collections.ConfigDict, tasks: tuple[str, ...]) -> tuple[tuple[str, float], ...]:
    """Learning-rate multipliers: 1 / T for what T tasks share, 10 / T for the discriminator (as released)."""
    if len(tasks) == 1:
        return ((r".*", 1.0),)
    share = 1.0 / len(tasks)
    own = (rf"(head_\w+|.*/({'|'.join(tasks)}))/.*", 1.0)
    dscr = ((r"discriminator/.*", 10.0 * share),) if args.variant in ("adversarial", "released") else ()
    return (own, *dscr, (r".*", share))


def astmt_config(
    args: ml_collections.ConfigDict,
    dataset: str,
    tasks: tuple[str, ...],
    options: Mapping[str, Mapping[str, Any]],
    schedule: Steps,
    *,
    max_dist: float = 0.0075,
) -> ml_collections.ConfigDict:
    """All sections but ``data``.

    Args:
        dataset: For the config's name.
        tasks: All tasks that the data set has labels of.
        options: Options of the tasks, over those of the appendix.
        max_dist: Tolerance of the boundary benchmark.
    """
    tasks = chosen(args, tasks)
    config = ml_collections.ConfigDict()
    config.name = f"astmt_{dataset}_{args.backbone}_{args.variant}"
    if args.variant == "single":
        config.name += f"_{args.task}"
    config.seed = args.seed
    config.model = model(args, tasks, options, schedule.epochs)
    config.model.compute_dtype = training.COMPUTE_DTYPE[args.get("budget", "cpu")]
    stage = dict(
        name="train",
        steps=schedule.steps,
        learning_rate=0.005,
        multipliers=multipliers(args, tasks),
    )
    config.training = training.section(
        args,
        schedule.batch_size,
        (stage,),
        optimizer="sgd",
        weight_decay_on=(r".*",),
        log_every=50,
        checkpoint_every=1000,
        keep=1,
    )
    config.evaluation = dict(mode="dense")
    if "boundaries" in tasks:
        config.evaluation.max_dist = max_dist
    return config


def data_set_config(
    args: ml_collections.ConfigDict,
    dataset: str,
    data: DataSet,
    tasks: tuple[str, ...],
    schedule: Steps,
    *,
    max_dist: float = 0.0075,
) -> ml_collections.ConfigDict:
    """The config of one of the paper's data sets, trained on a GPU."""
    args.budget = "gpu"
    options: dict[str, Mapping[str, Any]] = dict(segmentation=data.segmentation)
    config = astmt_config(args, dataset, tasks, options, schedule, max_dist=max_dist)
    config.data = data.data(args, chosen(args, tasks))
    return config
