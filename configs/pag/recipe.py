"""What the configs of this folder share: PAG's network, the variants of its tables, training in stages.

A config reads its argument with `read_args` and gets all sections but `data` from `pag_config`.

Where this departs from the paper: AdamW instead of SGD at 2e-4, because its steps do not depend on the scale
of the loss. Lambda of eq. 6 is SPARSITY_WEIGHT instead of 1e-4, because gates have hundreds of steps a stage
to reach rho, not tens of thousands. Gates start open and sure of it (init_std, open_bias): the release's
start closes layers before the budget asks for it. budget=cpu leaves out Res6, which would add half of the
backbone's MACs, and freezes stem and Res2.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_collections

from dynpix_jax.core.configs import check_choices, check_read_by_variant, parse_arg
from dynpix_jax.core.errors import UserError

VARIANTS = ("base", "multipool", "average", "gated", "truncated", "layer_skip")
BUDGETS = ("cpu", "gpu")
LOSSES: dict[str, dict[str, dict[str, float]]] = {
    # Beside an L1 of this weight the L2 of eq. 9 is nothing, and AdamW does not mind the scale.
    "depth": {"both": {}, "l2": {"gamma": 0.0}, "l1": {"gamma": 1000.0}},
    "normals": {"both": {}, "cosine": {"arccos": 0.0}, "arccos": {"cosine": 0.0}},
}
"""Task -> value of the argument ``loss`` -> options of the task (tables 7 and 8)."""

SPARSITY_WEIGHT = {"segmentation": 0.1, "depth": 0.1, "normals": 0.3}

READ_BY = {
    "rho": ("gated", "layer_skip"),
    "gate_scope": ("gated",),
    "multipool": ("multipool", "average", "gated", "layer_skip"),
    "drop_blocks": ("truncated",),
}
"""Variants that read an argument; the others refuse it rather than train something else than asked for."""


@dataclasses.dataclass(frozen=True)
class Steps:
    """Batch and length of the stages. gates: of each of the three stages with gates."""

    batch_size: int
    base: int
    multipool: int
    gates: int


def read_args(
    arg: str | None, *, tasks: tuple[str, ...], root: str, split: str, **more: Any
) -> ml_collections.ConfigDict:
    """The string argument of a config; ``more`` are names and defaults of its own.

    Raises:
        UserError: a name or value that there is not, or one that the variant or task does not read.
    """
    args = parse_arg(
        arg,
        task=tasks[0],
        variant="base",
        rho=0.7,
        gate_scope="residual",
        multipool=("res5_2",),
        drop_blocks=1,
        loss="both",
        budget="cpu",
        root=root,
        packed=False,
        weights="weights/resnet50.safetensors",
        continue_from="",
        split=split,
        **more,
    )
    losses = tuple(LOSSES.get(args.task, {"both": {}}))
    check_choices(args, {"task": tasks, "variant": VARIANTS, "budget": BUDGETS, "loss": losses})
    if not 0.0 < args.rho <= 1.0:
        raise UserError(f"config argument rho={args.rho:g}: expected a density in (0, 1]")
    check_read_by_variant(arg, args, READ_BY)
    return args


def pag_config(
    args: ml_collections.ConfigDict,
    dataset: str,
    *,
    task_options: dict[str, Any],
    steps: Steps,
    head_features: int,
    scale: float = 1.0,
) -> ml_collections.ConfigDict:
    """All sections but ``data``.

    Args:
        dataset: for the config's name.
        task_options: of the task; those of the argument ``loss`` are added.
        head_features: width of the decoder.
        scale: size at which the network sees an image in evaluation, relative to the image's own.
    """
    config = ml_collections.ConfigDict()
    config.name = f"pag_{dataset}_{args.task}_{args.variant}"
    config.seed = 0
    config.model = dict(
        system="pag",
        task=args.task,
        task_options={**task_options, **LOSSES.get(args.task, {"both": {}})[args.loss]},
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
            weight=SPARSITY_WEIGHT[args.task],
            temperature=(1.0, 0.1),
            soft=False,
            options=dict(),
        ),
        multipool=dict(blocks=(), selection="pag", dilations=(0, 1, 2, 4, 6, 8, 10), original_bias=2.0),
        head_features=head_features,
        drop_blocks=args.drop_blocks if args.variant == "truncated" else 0,
        res6=args.budget == "gpu" or "res6" in args.multipool,
    )
    config.training = dict(
        batch_size=steps.batch_size,
        stages=_stages(args, steps, res6=config.model.res6),
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
        workers=0 if args.budget == "cpu" else 8,
    )
    config.evaluation = dict(
        mode="both",
        every_stage=False,
        pictures=8,
        limit=0,
        batch_size=1,
        inference=dict(scales=(scale,), flip=False),
    )
    return config


def _stages(args: ml_collections.ConfigDict, steps: Steps, *, res6: bool) -> tuple[dict, ...]:
    """Stage-wise training (section 4): base, MultiPool, gates inserted layer by layer, rho lowered.

    With ``continue_from`` only what comes after the variant one stage earlier.
    """
    # Norms keep their ImageNet moments and scales (section 4). Only those of a gate's own network learn.
    norms = (r"backbone/stem_bn/.*", r"backbone/res\d_\d+/(bn\d|projection_bn|multipool/dilation_\d+/bn)/.*")
    # Back-propagation ends above Res2 on a CPU, but for the gates in it.
    cpu = args.budget == "cpu"
    early = (r"backbone/stem_conv/.*", r"backbone/res2_\d+/(conv\d|projection)/.*") if cpu else ()
    # Layers that no ImageNet network has.
    new = ((r"head/.*", 20.0), *(((r"res6/.*", 10.0),) if res6 else ()), (r".*", 1.0))
    base = dict(
        name="base",
        steps=steps.base,
        learning_rate=5e-5,
        model=dict(),
        frozen=(*norms, *early),
        multipliers=new,
    )
    if args.variant == "base":
        return (base,)
    pool = dict(blocks=_pooled(args), selection="average" if args.variant == "average" else "pag")
    multipool = dict(
        base,
        name="multipool",
        steps=steps.multipool,
        learning_rate=3e-5,
        model=dict(multipool=pool),
        multipliers=((r".*/multipool/gate/.*", 20.0), *new),
    )
    if args.variant in ("multipool", "average", "truncated"):
        return (multipool,) if args.continue_from else (base, multipool)
    gate = dict(kind="pixel", options=dict(blur=False, init_std=0.1, open_bias=4.0))
    if args.variant == "layer_skip":
        # The baseline has a gate and a loss of its own (weight as released).
        gate = dict(kind="layer", weight=1.0, scope="conv3x3")
    start = max(0.9, args.rho)
    inserted = dict(gate, rho=start, rho_start=start, ramp=0.6, insert=True)
    lowered = dict(gate, rho=args.rho, rho_start=start, ramp=0.5, insert=False, temperature=(0.5, 0.1))
    kept = dict(lowered, rho_start=args.rho, ramp=0.0, temperature=(0.1, 0.1))
    gates = tuple(
        dict(
            multipool,
            name=name,
            steps=steps.gates,
            model=dict(multipool=pool, gate=section),
            multipliers=((r".*/gate/.*", 20.0), *new),
        )
        for name, section in (("gates", inserted), ("rho", lowered), ("settle", kept))
    )
    return gates if args.continue_from else (base, multipool, *gates)


def _pooled(args: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Blocks with a MultiPool. The truncated network has it "at the top" (section 5.2): in its last block."""
    if args.variant != "truncated":
        return tuple(args.multipool)
    blocks = [
        f"res{stage}_{k + 1}"
        for stage, count in zip((2, 3, 4, 5), (3, 4, 6, 3), strict=True)
        for k in range(count)
    ]
    if not 0 <= args.drop_blocks < len(blocks):
        raise UserError(
            f"config argument drop_blocks={args.drop_blocks}: expected 0 to {len(blocks) - 1} of the "
            f"{len(blocks)} blocks"
        )
    return (blocks[len(blocks) - args.drop_blocks - 1],)
