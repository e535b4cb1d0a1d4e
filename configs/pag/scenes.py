"""PAG on synthetic scenes, one network a task: what every task learns in minutes, without a download.

    python train.py --config=configs/pag/scenes.py:task=depth --workdir=runs/scenes/depth
    python eval.py --config=configs/pag/scenes.py:task=depth --workdir=runs/scenes/depth

Arguments: task = boundaries | segmentation | depth | normals; variant = base | multipool | average | gated;
rho, the target density of variant=gated, and calibrate = each | mean | none, how it is held; continue_from,
the workdir of variant=base, so that only the later stages are trained (recipe.py). A ResNet-26 of half the
usual width learns from nothing on rendered rooms of 96x128 pixels. Two CPU cores are enough: base trains in
under 3 minutes, the others add 1 minute a stage.

The paper has no such rows: this is to try the tasks, and to see what gates and MultiPool (Res5, second block;
boundaries: Res4) do to them. Measured here: docs/results.md.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs import datasets, training
from dynpix_jax.configs.pag import recipe
from dynpix_jax.core.configs import check_read_by_variant, one_of, parse_arg

TASKS = ("boundaries", "segmentation", "depth", "normals")
VARIANTS = ("base", "multipool", "average", "gated")


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one task and variant."""
    args = parse_arg(
        arg,
        task=one_of(*TASKS, default="segmentation"),
        variant=one_of(*VARIANTS),
        rho=0.7,
        calibrate=recipe.CALIBRATE,
        continue_from="",
    )
    recipe.check_density(args.rho)
    read_by = {"rho": ("gated",), "calibrate": ("gated",), "continue_from": VARIANTS[1:]}
    check_read_by_variant(arg, args, read_by)
    config = ml_collections.ConfigDict()
    config.name = f"pag_scenes_{args.task}_{args.variant}"
    config.model = dict(
        system="pag",
        task=args.task,
        task_options=dict(classes=datasets.SCENE_CLASSES) if args.task == "segmentation" else {},
        backbone=dict(depth=26, width=32, frozen_norm=False, preprocessing="torch"),
    )
    config.data = datasets.scenes((args.task,))
    changes = dict(warmup_steps=20, grad_clip=1.0, log_every=25, keep=1)
    config.training = training.section(args, 4, _stages(args), **changes)
    config.evaluation = dict(every_stage=True, pictures=4)
    if args.variant == "gated":
        config.evaluation.chance = 1
    if args.task == "boundaries":
        config.evaluation.thresholds = 25
    return config


def _stages(args: ml_collections.ConfigDict) -> tuple[dict, ...]:
    """Stage-wise training (section 4 of the paper): base, MultiPool, gates."""
    base = dict(name="base", steps=400, learning_rate=1e-3)
    if args.variant == "base":
        return (base,)
    if args.variant == "gated":
        gate = dict(
            kind="pixel",
            scope="residual",
            weight=0.1,
            options=dict(init_std=0.2, open_bias=2.0),
            rho=args.rho,
        )
        inserted = dict(gate, rho_start=min(1.0, args.rho + 0.2), ramp=0.6, insert=True)
        inserted, kept = recipe.held_at_rho(args.calibrate, inserted, dict(gate))
        added = (("gates", 100, dict(gate=inserted)), ("settle", 100, dict(gate=kept)))
    else:
        block = "res4_2" if args.task == "boundaries" else "res5_2"
        selection = "average" if args.variant == "average" else "pag"
        pool = dict(blocks=(block,), selection=selection, original_bias=2.0)
        added = (("multipool", 150, dict(multipool=pool)),)
    # New layers learn faster.
    multipliers = ((r".*/gate/.*", 5.0), (r".*", 1.0))
    later = dict(learning_rate=3e-4, multipliers=multipliers)
    stages = tuple(dict(later, name=name, steps=steps, model=model) for name, steps, model in added)
    return stages if args.continue_from else (base, *stages)
