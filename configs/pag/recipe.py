"""Shared by the configs of this folder: PAG's network, the variants of its tables, training in stages.

A config reads its argument with `read_args` and gets all sections but `data` from `pag_config`. Arguments:

  variant        base | multipool | average | gated | truncated | layer_skip
  rho            target density, of variant=gated and layer_skip
  gate_scope     residual | conv3x3, the two readings of eq. 2; on BSDS500, with an earlier recipe, residual
                 cost .014 ODS at 82 % of the MACs, conv3x3 .018 at 89 % (docs/results.md)
  calibrate      each | mean: the last stage begins and ends by shifting the gates' biases until arg-max masks
                 have density rho (see GateConfig), and trains on such masks; none: it trains on samples, and
                 density rho is theirs alone
  multipool      the blocks that hold a MultiPool, joined by "+", such as res3_2+res4_2+res5_2+res6; that of
                 variant=layer_skip and truncated is at the top (section 5.2). "multipool=" is a network with
                 gates alone, for variant=gated and layer_skip
  drop_blocks    of variant=truncated, from the top; variant=gated drops none by itself
  drop_layers    of variant=truncated, 0 to 2 more, from the top of the last block that is kept
  stem           of nyuv2, stanford2d3d, cityscapes: 3x3 (three of them, as the budgets of table 2 have it;
                 default of budget=gpu) | 7x7 (that of most ImageNet weights; default of budget=cpu)
  loss           of depth both | l2 | l1, of normals both | cosine | arccos
  budget         cpu | gpu
  recipe         ours | paper, the training of the paper (../published.py) in place of what departs from it
  weights        ImageNet weights imported by ``dynpix import-weights``; with stem=3x3 those of ``--arch
                 resnet50_deep``
  continue_from  workdir of the variant one stage earlier, so that only the last stages are trained
  root, split    folder of the data set, images that are evaluated
  packed         root holds what ``dynpix prepare`` wrote

An argument that the variant or the task does not read is refused.

Where this departs from the paper: AdamW instead of SGD at 2e-4, because its steps do not depend on the scale
of the loss, which is a mean over pixels here and a sum in eq. 7. Lambda of eq. 6 is SPARSITY_WEIGHT instead
of 1e-4, because gates have hundreds of steps a stage to reach rho, not tens of thousands. Gates start open
with high confidence (init_std, open_bias): from the release's start layers close before the budget asks for
it; on BSDS500 they choose by what sets a position apart (choosing_gates). The last stage trains on the masks
of evaluation, whose density is held at rho (calibrate). recipe=paper undoes all of this but the last
(calibrate=none undoes that), takes as many images, and keeps the means over pixels. budget=cpu leaves out
Res6, which would add half of the backbone's MACs, and freezes stem and Res2. Evaluation scores variant=gated
with masks of chance, too.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_collections

from dynpix_jax.configs import published, training
from dynpix_jax.core.configs import check_read_by_variant, given_args, one_of, parse_arg
from dynpix_jax.core.errors import UserError, suggest

VARIANTS = ("base", "multipool", "average", "gated", "truncated", "layer_skip")
CALIBRATE = one_of("each", "mean", "none")
LOSSES: dict[str, dict[str, dict[str, float]]] = {
    # Beside an L1 of this weight the L2 of eq. 9 is negligible; AdamW does not depend on the scale.
    "depth": {"both": {}, "l2": {"gamma": 0.0}, "l1": {"gamma": 1000.0}},
    "normals": {"both": {}, "cosine": {"arccos": 0.0}, "arccos": {"cosine": 0.0}},
}
"""Task -> value of the argument ``loss`` -> options of the task (tables 7 and 8)."""

STEM = one_of("", "3x3", "7x7")
BLOCKS = tuple(
    f"res{stage}_{index + 1}"
    for stage, count in zip((2, 3, 4, 5), (3, 4, 6, 3), strict=True)
    for index in range(count)
)
"""The blocks of a ResNet-50, bottom first."""

SPARSITY_WEIGHT = {"boundaries": 0.02, "segmentation": 0.1, "depth": 0.1, "normals": 0.3}

_NORMS = (
    r"backbone/stem_bn\d?/.*",
    r"backbone/res\d_\d+/(bn\d|projection_bn|multipool/dilation_\d+/bn)/.*",
)
_EARLY = (r"backbone/stem_conv\d?/.*", r"backbone/res2_\d+/(conv\d|projection)/.*")
FROZEN = {"cpu": (*_NORMS, *_EARLY), "gpu": _NORMS}
"""Norms keep their ImageNet moments and scales (section 4); only those of a gate's own network learn.

On a CPU back-propagation ends above Res2, but for the gates in it.
"""

READ_BY = {
    "rho": ("gated", "layer_skip"),
    "gate_scope": ("gated",),
    "calibrate": ("gated",),
    "multipool": ("multipool", "average", "gated", "layer_skip"),
    "drop_blocks": ("truncated", "gated"),
    "drop_layers": ("truncated",),
}
"""Variants that read an argument; the others refuse it rather than train something else than asked for."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Batch and length of the stages, and learning-rate multipliers of new layers.

    Attributes:
        batch_size: Images a step.
        base: Steps of the first stage.
        multipool: Steps of the stage that brings the MultiPool.
        gates: Steps of each of the stages with gates.
        settle: Steps of the last of them; None for ``gates``.
        head_rate: Multiplier of the head after the first stage, relative to the backbone's.
        gate_rate: Multiplier of the gates.
        learning_rates: Of the first stage and of the later ones.
    """

    batch_size: int
    base: int
    multipool: int
    gates: int
    settle: int | None = None
    head_rate: float = 20.0
    gate_rate: float = 20.0
    learning_rates: tuple[float, float] = (5e-5, 3e-5)


def read_args(
    arg: str | None, *, tasks: tuple[str, ...], root: str, split: str, **more: Any
) -> ml_collections.ConfigDict:
    """The string argument of a config; ``more`` are names and defaults of its own, or other defaults.

    Raises:
        UserError: An unknown name or value, or one that the variant or task does not read.
    """
    spec: dict[str, Any] = dict(
        task=one_of(*tasks),
        variant=one_of(*VARIANTS),
        rho=0.7,
        gate_scope=one_of("residual", "conv3x3"),
        calibrate=CALIBRATE,
        multipool=("res5_2",),
        drop_blocks=1,
        drop_layers=0,
        loss="both",
        budget=training.BUDGET,
        recipe=published.RECIPE,
        root=root,
        packed=False,
        weights="weights/resnet50.safetensors",
        continue_from="",
        split=split,
    )
    args = parse_arg(arg, **(spec | more))
    losses = LOSSES.get(args.task, {"both": {}})
    if args.loss not in losses:
        raise UserError(f"config argument loss={args.loss}: {suggest(args.loss, losses)}")
    check_density(args.rho)
    check_read_by_variant(arg, args, READ_BY)
    given = given_args(arg)
    if args.variant == "layer_skip" and "multipool" not in given:
        args.multipool = (BLOCKS[-1],)
    if not args.multipool and args.variant in ("multipool", "average"):
        raise UserError(f"config argument multipool=: variant={args.variant} needs a block that holds one")
    if args.variant != "truncated" and "drop_blocks" not in given:
        args.drop_blocks = 0
    if "stem" in args:
        args.stem = args.stem or ("7x7" if args.budget == "cpu" else "3x3")
        if args.stem == "3x3" and "weights" not in given:
            args.weights = "weights/resnet50_deep.safetensors"
    return args


def check_density(rho: float) -> None:
    """Raises UserError for a target density that is none."""
    if not 0.0 < rho <= 1.0:
        raise UserError(f"config argument rho={rho:g}: expected a density in (0, 1]")


def pag_config(
    args: ml_collections.ConfigDict,
    dataset: str,
    *,
    task_options: dict[str, Any],
    schedule: Schedule,
    head_features: int,
    scale: float = 1.0,
) -> ml_collections.ConfigDict:
    """All sections but ``data``.

    Args:
        args: Result of `read_args`.
        dataset: For the config's name.
        task_options: Options of the task; those of the argument ``loss`` are added.
        schedule: Schedule of the training.
        head_features: Width of the decoder.
        scale: Size at which the network sees an image in evaluation, relative to the image's own.
    """
    boundaries = args.task == "boundaries"
    res6 = "res6" in args.multipool or (args.budget == "gpu" and not boundaries)
    config = ml_collections.ConfigDict()
    config.name = (
        f"pag_{dataset}_{args.variant}" if boundaries else f"pag_{dataset}_{args.task}_{args.variant}"
    )
    config.model = dict(
        system="pag",
        compute_dtype=training.COMPUTE_DTYPE[args.budget],
        task=args.task,
        task_options={**task_options, **LOSSES.get(args.task, {"both": {}})[args.loss]},
        head_features=head_features,
        head_layers=1 if args.budget == "cpu" else 2,
        drop_blocks=args.drop_blocks,
        drop_layers=args.drop_layers,
        res6=res6,
    )
    if args.get("stem") == "3x3":
        config.model.backbone = dict(name="resnet", deep_stem=True)
    stages = _stages(args, schedule, res6=res6)
    config.training = training.section(args, schedule.batch_size, stages, warmup_steps=50)
    config.evaluation = dict(inference=dict(scales=(scale,)))
    if args.variant == "gated":
        config.evaluation.chance = 1
    if args.recipe == "paper":
        published.pag(config)
    return config


def choosing_gates(config: ml_collections.ConfigDict, args: ml_collections.ConfigDict, **gate: Any) -> None:
    """Gates of a config that choose by what sets a position apart from the rest of its image (``centred``).

    They begin at .7, and samples become the masks of evaluation while rho is lowered (calibrate): what was
    tried is in docs/results.md. Stages without gates stay as they are, and those that skip whole layers.

    Args:
        config: Result of `pag_config`.
        args: Result of `read_args`.
        **gate: Changes of the section ``gate``.
    """
    start = max(0.7, args.rho)
    ends = {} if args.calibrate == "none" else dict(temperature=(1.0, 0.5), noise=(1.0, 0.0))
    changes = {"gates": dict(rho=start), "rho": dict(rho_start=start, **ends), "settle": {}}
    options = dict(centred=True, init_std=0.02, open_bias=2.0)

    def changed(stage: dict[str, Any]) -> dict[str, Any]:
        model = stage.get("model", {})
        if model.get("gate", {}).get("kind") != "pixel":
            return stage
        own = dict(model["gate"], **gate, options=options, **changes[stage["name"]])
        return dict(stage, model=dict(model, gate=own))

    config.training.stages = tuple(changed(stage) for stage in config.training.stages)


def _stages(args: ml_collections.ConfigDict, schedule: Schedule, *, res6: bool) -> tuple[dict, ...]:
    """Stage-wise training (section 4): base, MultiPool, gates inserted layer by layer, rho lowered.

    With ``continue_from`` only what comes after the variant one stage earlier.
    """
    # Layers that no ImageNet network has.
    new = ((r"res6/.*", 10.0), (r".*", 1.0)) if res6 else ((r".*", 1.0),)
    base = dict(
        name="base",
        steps=schedule.base,
        learning_rate=schedule.learning_rates[0],
        frozen=FROZEN[args.budget],
        multipliers=((r"head/.*", 20.0), *new),
    )
    pooled, gates = _pooled(args), _gates(args)

    def later(name: str, steps: int, rate: tuple[str, float], **model: Any) -> dict[str, Any]:
        multipliers = (rate, (r"head/.*", schedule.head_rate), *new)
        learning_rate = schedule.learning_rates[1]
        changes = dict(
            name=name, steps=steps, learning_rate=learning_rate, multipliers=multipliers, model=model
        )
        return dict(base, **changes)

    stages, pool = [base], {}
    if pooled:
        selection = "average" if args.variant == "average" else "pag"
        pool = dict(multipool=dict(blocks=pooled, selection=selection, original_bias=2.0))
        stages.append(later("multipool", schedule.multipool, (r".*/multipool/gate/.*", 20.0), **pool))
    # All blocks have a gate in the budgets of table 2, that of the MultiPool, too.
    counted = "stem" in args and args.budget == "gpu" and args.gate_scope == "residual"
    if args.variant == "gated" and counted and pooled and pooled != ("res6",):
        pool = dict(multipool=dict(pool["multipool"], gated=True))
    begun = len(stages) if gates else len(stages) - 1
    steps = (schedule.gates, schedule.gates, schedule.settle or schedule.gates)
    for count, (name, gate) in zip(steps, gates.items(), strict=False):
        rate = (r".*/gate/.*", schedule.gate_rate)
        stages.append(later(name, count, rate, **pool, gate=gate))
    return tuple(stages[begun:] if args.continue_from else stages)


def _gates(args: ml_collections.ConfigDict) -> dict[str, dict[str, Any]]:
    """Section ``gate`` of each of the stages with gates; {} without gates."""
    if args.variant == "gated":
        options = dict(init_std=0.1, open_bias=4.0)
        weight = SPARSITY_WEIGHT[args.task]
        gate = dict(kind="pixel", scope=args.gate_scope, weight=weight, options=options)
    elif args.variant == "layer_skip":  # the baseline has a gate and a loss of its own (weight as released)
        gate = dict(kind="layer", weight=1.0)
    else:
        return {}
    start = max(0.9, args.rho)
    inserted = dict(gate, rho=start, rho_start=start, ramp=0.6, insert=True)
    lowered = dict(gate, rho=args.rho, rho_start=start, ramp=0.5, temperature=(0.5, 0.1))
    kept = dict(gate, rho=args.rho, temperature=(0.1, 0.1))
    if args.variant == "gated":
        # Every image is one more pass of the network, and a bit more of certainty.
        images = 64 if args.budget == "cpu" else 256
        lowered, kept = held_at_rho(args.calibrate, lowered, kept, calibration_images=images)
    return dict(gates=inserted, rho=lowered, settle=kept)


def held_at_rho(
    calibrate: str, entered: dict[str, Any], last: dict[str, Any], **options: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sections ``gate`` of the last two stages, with the density of arg-max masks held at rho.

    Both end with a calibration, so that the last one begins with it; that one trains on such masks.

    Args:
        calibrate: The argument; with ``none`` both stay as they are.
        entered: Of the last stage but one.
        last: Of the last stage.
        **options: Others of the calibration.
    """
    if calibrate == "none":
        return entered, last
    held = dict(calibrate=calibrate, **options)
    return entered | held, last | held | dict(noise=(0.0, 0.0), temperature=(1.0, 1.0))


def _pooled(args: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Blocks with a MultiPool. The truncated network has it in its last block ("at the top", section 5.2);
    that of boundaries has none.
    """
    if args.variant == "base":
        return ()
    if args.variant != "truncated":
        return tuple(args.multipool)
    if not 0 <= args.drop_blocks < len(BLOCKS):
        raise UserError(
            f"config argument drop_blocks={args.drop_blocks}: expected 0 to {len(BLOCKS) - 1} of the "
            f"{len(BLOCKS)} blocks"
        )
    if args.drop_layers not in (0, 1, 2):
        raise UserError(
            f"config argument drop_layers={args.drop_layers}: expected 0, 1 or 2 of the last block's three"
        )
    # Without its 3x3 the last block has no place for one.
    kept = BLOCKS[: len(BLOCKS) - args.drop_blocks - (args.drop_layers == 2)]
    return () if args.task == "boundaries" else kept[-1:]
