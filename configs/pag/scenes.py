"""PAG on synthetic scenes, one network a task: what every task learns in minutes, without a download.

    python train.py --config=configs/pag/scenes.py:task=depth --workdir=runs/scenes/depth
    python eval.py --config=configs/pag/scenes.py:task=depth --workdir=runs/scenes/depth

Arguments: task = boundaries | segmentation | depth | normals; variant = base | multipool | average | gated;
rho, the target density of variant=gated. A ResNet-26 of half the usual width learns from nothing on rendered
rooms of 96x128 pixels. Two CPU cores do: base trains in under 3 minutes, the others add 1 minute a stage.

The paper has no such rows: this is to try the tasks, and to see what gates and MultiPool (Res5, second block;
boundaries: Res4) do to them. Measured here: docs/results.md.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.core.configs import check_choices, given_args, parse_arg
from dynpix_jax.core.errors import UserError

from .. import datasets

TASKS = ("boundaries", "segmentation", "depth", "normals")
VARIANTS = ("base", "multipool", "average", "gated")


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one task and variant."""
    args = parse_arg(arg, task="segmentation", variant="base", rho=0.7)
    check_choices(args, {"task": TASKS, "variant": VARIANTS})
    if not 0.0 < args.rho <= 1.0:
        raise UserError(f"config argument rho={args.rho:g}: expected a density in (0, 1]")
    if "rho" in given_args(arg) and args.variant != "gated":
        raise UserError(
            f"config argument rho: variant={args.variant} does not read it; expected variant=gated"
        )

    config = ml_collections.ConfigDict()
    config.name = f"pag_scenes_{args.task}_{args.variant}"
    config.seed = 0
    config.model = dict(
        system="pag",
        task=args.task,
        task_options=dict(classes=datasets.SCENE_CLASSES) if args.task == "segmentation" else dict(),
        backbone=dict(
            name="resnet",
            depth=26,
            width=32,
            output_stride=8,
            stride_in_1x1=True,
            frozen_norm=False,
            preprocessing="torch",
        ),
        gate=dict(
            kind="none",
            scope="residual",
            rho=1.0,
            rho_start=1.0,
            ramp=0.0,
            insert=False,
            weight=0.1,
            temperature=(1.0, 0.1),
            options=dict(),
        ),
        multipool=dict(blocks=(), selection="pag", dilations=(0, 1, 2, 4, 6, 8, 10), original_bias=2.0),
        head_features=16,
        res6=False,  # it would cost as much as all the rest here
    )
    config.data = datasets.scenes((args.task,))
    config.training = dict(
        batch_size=4,
        stages=_stages(args),
        optimizer="adamw",
        weight_decay=1e-4,
        weight_decay_on=(r".*/kernel",),
        poly_power=0.9,
        warmup_steps=20,
        grad_clip=1.0,
        log_every=25,
        checkpoint_every=250,
        eval_every=0,
        keep=1,
        init_from="",
        mesh=dict(data=-1, model=1),
        workers=0,
    )
    config.evaluation = dict(
        mode="both",
        every_stage=True,
        thresholds=25,
        workers=2,
        pictures=4,
        limit=0,
        batch_size=1,
        inference=dict(scales=(1.0,), flip=False),
    )
    return config


def _stages(args: ml_collections.ConfigDict) -> tuple[dict, ...]:
    """Stage-wise training (section 4 of the paper): base, MultiPool, gates."""
    rest = (r".*", 1.0)
    stages = [dict(name="base", steps=400, learning_rate=1e-3, model=dict(), multipliers=(rest,))]
    if args.variant in ("multipool", "average"):
        block = "res4_2" if args.task == "boundaries" else "res5_2"
        pool = dict(blocks=(block,), selection="average" if args.variant == "average" else "pag")
        learn_choice = (r".*/multipool/gate/.*", 5.0)
        stages.append(
            dict(
                name="multipool",
                steps=150,
                learning_rate=3e-4,
                model=dict(multipool=pool),
                multipliers=(learn_choice, rest),
            )
        )
    if args.variant == "gated":
        gate = dict(
            kind="pixel",
            rho=args.rho,
            rho_start=min(1.0, args.rho + 0.2),
            ramp=0.5,
            insert=True,
            options=dict(init_std=0.2, open_bias=2.0),
        )
        learn_gates = (r".*/gate/.*", 5.0)
        stages.append(
            dict(
                name=f"rho{args.rho:g}",
                steps=200,
                learning_rate=3e-4,
                model=dict(gate=gate),
                multipliers=(learn_gates, rest),
            )
        )
    return tuple(stages)
