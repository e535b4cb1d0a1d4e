"""Boundaries of BSDS500 and segmentation of CamVid in one MobileNetV2: two data sets, each with one label.

    dynpix import-weights --arch mobilenetv2 --source mobilenet_v2-b0353104.pth \
        --out weights/mobilenetv2.safetensors
    python train.py --config=configs/astmt/bsds_camvid.py:variant=se,weights=weights/mobilenetv2.safetensors \
        --workdir=runs/joint/se
    python eval.py --config=configs/astmt/bsds_camvid.py:variant=se,weights=weights/mobilenetv2.safetensors \
        --workdir=runs/joint/se

Every batch is of one data set, in turns; the other task is skipped. Single-task runs to compare with:
variant=single,task=boundaries and variant=single,task=segmentation, each with as many updates of its task as
a joint run (half its steps). All are evaluated on both data sets, each image for the labels that it has.

Arguments: variant = single | multi | se (se=dec alone: torchvision's weights have no SE for the encoder to
start from); bsds=DIR, camvid=DIR; weights=FILE; steps, of joint runs; seed; split, to evaluate; budget = cpu
(images of BSDS500 at 2/3, CamVid at 2/3, four a step) | gpu (full size, 16 a step). Norms of the backbone
keep their ImageNet moments, those of the decoder are each task's own: the data sets differ. Not in the paper;
measured here: docs/results.md.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs import datasets, training
from dynpix_jax.configs.astmt import recipe
from dynpix_jax.core.configs import given_args
from dynpix_jax.core.errors import UserError

TASKS = ("boundaries", "segmentation")
READ = ("variant", "task", "weights", "seed", "bsds", "camvid", "steps", "budget", "split")


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one variant."""
    for name in given_args(arg):
        if name not in READ:
            raise UserError(f"config argument {name}: this config reads {', '.join(READ)}")
    args = recipe.read_args(
        arg,
        TASKS,
        bsds=datasets.BSDS500.root,
        camvid=datasets.CAMVID.root,
        steps=800,
        budget=training.BUDGET,
        variants=("single", "multi", "se"),
    )
    args.backbone, args.se = "mobilenet", "dec"
    args.norm = "" if args.variant == "single" else "own"
    cpu = args.budget == "cpu"
    options = dict(boundaries=dict(positive_weight=None), segmentation=datasets.CAMVID.segmentation)
    # A joint run has half of its updates for each task.
    steps = args.steps // 2 if args.variant == "single" else args.steps
    schedule = recipe.Steps(steps, 60, 4 if cpu else 16)
    config = recipe.astmt_config(args, "bsds_camvid", TASKS, options, schedule)
    config.model.backbone.update(se=False, frozen_norm=True)
    config.model.encoder.norm = False
    # Both losses are of about the same size so; 50 is for the other balance of boundaries.
    weights = dict(boundaries=10.0, segmentation=1.0)
    config.model.task_weights.update({task: weights[task] for task in config.model.tasks})
    (stage,) = config.training.stages
    # Norms of the backbone keep their ImageNet scales too.
    norms = (r"backbone/.*_bn/.*",)
    multipliers = ((r"backbone/.*", 0.2), (r".*", 1.0))
    config.training.update(
        stages=(dict(stage, learning_rate=1e-3, frozen=norms, multipliers=multipliers),),
        optimizer="adamw",
        weight_decay_on=(r".*/kernel",),
        warmup_steps=50,
        checkpoint_every=200,
    )
    parts = dict(
        boundaries=dict(datasets.BSDS500.options, name="bsds500", root=args.bsds),
        segmentation=dict(name="camvid", root=args.camvid),
    )
    joint = dict(name="joint", sources=tuple(parts.values()))
    trained = parts[args.task] if args.variant == "single" else joint
    augment = datasets.CAMVID.augment[args.budget]
    config.data = dict(
        train=dict(source=dict(trained, split="train"), augment=dict(augment)),
        eval=dict(source=dict(joint, split=args.split)),
    )
    config.evaluation.inference = dict(scales=(2 / 3 if cpu else 1.0,), flip=False)
    if "boundaries" in config.model.tasks:
        config.evaluation.thresholds = 25
    return config
