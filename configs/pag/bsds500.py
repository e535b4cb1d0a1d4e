"""PAG on BSDS500 boundaries (Kong and Fowlkes, section 5.2, table 1 and figure 5).

    python train.py --config=configs/pag/bsds500.py:variant=gated,rho=0.7 --workdir=runs/bsds500/gated
    python eval.py --config=configs/pag/bsds500.py:variant=gated,rho=0.7 --workdir=runs/bsds500/gated

Needs the data set (root=DIR) and ImageNet weights imported by ``dynpix import-weights`` (weights=FILE).
Arguments: variant = base | multipool | average | gated | truncated | layer_skip; rho, the target density;
gate_scope = conv3x3 | residual, the two readings of eq. 2; multipool = the blocks that hold a MultiPool,
joined by "+"; budget = cpu (one 320x320 crop, few thousand steps, stem and Res2 frozen) | gpu (longer, ten
crops, HED's scales and rotations); continue_from = workdir of the variant one stage earlier, so that only the
last stage is trained; split = train | val | test, the images that are evaluated. An argument that the variant
does not read is refused.

Where this departs from the paper: AdamW instead of SGD at 2e-4, because its steps do not depend on the scale
of the loss, which is a mean over pixels here and a sum in eq. 7. Lambda .02 instead of 1e-4, because gates
have hundreds of steps a stage to reach rho, not tens of thousands. Gates start open and sure of it (init_std,
open_bias), because the release's start closes layers before the budget asks for it.

Paper, test set: base .790, MultiPool at Res4 .792, at 70 % of the computation .773 (ODS F).
Measured here: docs/results.md.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.core.configs import check_choices, check_read_by_variant, parse_arg
from dynpix_jax.core.errors import UserError

from ..datasets import BSDS500

VARIANTS = ("base", "multipool", "average", "gated", "truncated", "layer_skip")

READ_BY = {
    "rho": ("gated", "layer_skip"),
    "gate_scope": ("gated",),
    "multipool": ("multipool", "average", "gated", "layer_skip"),
    "drop_blocks": ("truncated",),
}
"""Variants that read an argument; the others refuse it rather than train something else than asked for."""


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one row of the results."""
    args = parse_arg(
        arg,
        variant="base",
        rho=0.7,
        gate_scope="conv3x3",
        multipool=("res4_2",),
        drop_blocks=3,
        budget="cpu",
        root=BSDS500.root,
        weights="weights/resnet50.safetensors",
        continue_from="",
        split="val",
    )
    check_choices(args, {"variant": VARIANTS, "budget": ("cpu", "gpu")})
    if not 0.0 < args.rho <= 1.0:
        raise UserError(f"config argument rho={args.rho:g}: expected a density in (0, 1]")
    check_read_by_variant(arg, args, READ_BY)

    config = ml_collections.ConfigDict()
    config.name = f"pag_bsds500_{args.variant}"
    config.seed = 0
    config.model = dict(
        system="pag",
        task="boundaries",
        backbone=dict(
            name="resnet",
            depth=50,
            width=64,
            output_stride=8,
            stride_in_1x1=True,
            frozen_norm=True,
            preprocessing="caffe",
        ),
        gate=dict(
            kind="none",
            scope=args.gate_scope,
            rho=1.0,
            rho_start=1.0,
            ramp=0.0,
            insert=False,
            sparsity="per_layer",
            weight=0.02,
            temperature=(1.0, 0.1),
            soft=False,
            options=dict(),
        ),
        multipool=dict(blocks=(), selection="pag", dilations=(0, 1, 2, 4, 6, 8, 10), original_bias=2.0),
        head_features=16,
        drop_blocks=args.drop_blocks if args.variant == "truncated" else 0,
    )

    if "res6" in args.multipool:
        config.model.res6 = True  # the paper's boundary network has none

    cpu = args.budget == "cpu"
    augment = dict(
        flip=True,
        crop=(320, 320),
        # On a GPU the augmentation of HED (Xie and Tu, ICCV 2015): 3 scales, 16 rotations, mirrored or not.
        scales=(1.0,) if cpu else (0.5, 1.0, 1.5),
        rotations=(0.0,) if cpu else tuple(22.5 * k for k in range(16)),
        canvas="inscribed",
    )
    config.data = BSDS500.data(args, (), augment=augment)

    config.training = dict(
        batch_size=1 if cpu else 10,
        stages=_stages(args),
        optimizer="adamw",
        weight_decay=1e-4,
        weight_decay_on=(r".*/kernel",),
        poly_power=0.9,
        warmup_steps=50,
        grad_clip=0.0,
        log_every=20,
        checkpoint_every=250,
        eval_every=0,
        keep=2,
        init_from=args.continue_from or args.weights,
        mesh=dict(data=-1, model=1),
        workers=0,
    )
    config.evaluation = dict(
        mode="both",
        thresholds=99,
        max_dist=0.0075,
        nms=True,
        smooth=True,
        workers=2,
        pictures=8,
        limit=0,
        every_stage=False,
    )
    return config


def _stages(args: ml_collections.ConfigDict) -> tuple[dict, ...]:
    """Stage-wise training (section 4): base, MultiPool, gates inserted layer by layer, rho lowered."""
    cpu = args.budget == "cpu"
    # Norms keep their ImageNet moments and scales (section 4). Only those of a gate's own network learn.
    norms = (r"backbone/stem_bn/.*", r"backbone/res\d_\d+/(bn\d|projection_bn|multipool/dilation_\d+/bn)/.*")
    # Back-propagation ends above Res2 on a CPU, but for the gates in it.
    early = (r"backbone/stem_conv/.*", r"backbone/res2_\d+/(conv\d|projection)/.*") if cpu else ()
    head, rest = r"head/.*", (r".*", 1.0)
    base = dict(
        name="base",
        steps=1700 if cpu else 6000,
        learning_rate=5e-5,
        model=dict(),
        frozen=(*norms, *early),
        multipliers=((head, 20.0), rest),
    )
    if args.variant in ("base", "truncated"):
        return (base,)
    pool = dict(blocks=args.multipool, selection="average" if args.variant == "average" else "pag")
    multipool = dict(
        name="multipool",
        steps=500 if cpu else 3000,
        learning_rate=3e-5,
        model=dict(multipool=pool),
        frozen=(*norms, *early),
        multipliers=((r".*/multipool/gate/.*", 20.0), (head, 10.0), rest),
    )
    if args.variant in ("multipool", "average"):
        return (multipool,) if args.continue_from else (base, multipool)
    # Gates must be sure of themselves from the start, or the samples of training and the arg-max of
    # evaluation differ in density. The release's std of 1 closes some layers for hundreds of steps.
    gate = dict(kind="pixel", options=dict(blur=False, init_std=0.1, open_bias=4.0))
    if args.variant == "layer_skip":
        # The baseline has a gate and a loss of its own (weight as released).
        gate = dict(kind="layer", weight=1.0)
    insertion = dict(
        name="gates",
        steps=240 if cpu else 2000,
        learning_rate=3e-5,
        model=dict(multipool=pool, gate=dict(gate, rho=0.9, rho_start=0.9, ramp=0.6, insert=True)),
        frozen=(*norms, *early),
        multipliers=((r".*/gate/.*", 10.0), (head, 10.0), rest),
    )
    lowered = dict(gate, rho=args.rho, rho_start=0.9, ramp=0.5, insert=False, temperature=(0.5, 0.1))
    lowering = dict(insertion, name="rho", model=dict(multipool=pool, gate=lowered))
    kept = dict(lowered, rho_start=args.rho, ramp=0.0, temperature=(0.1, 0.1))
    settling = dict(
        insertion, name="settle", steps=200 if cpu else 2000, model=dict(multipool=pool, gate=kept)
    )
    gates = (insertion, lowering, settling)
    return gates if args.continue_from else (base, multipool, *gates)
