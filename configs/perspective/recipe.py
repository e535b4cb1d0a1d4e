"""Shared by the configs of this folder: the network, the variants of the paper's tables, training in stages.

A config reads its argument with `read_args` and gets all sections but `data` from `perspective_config`.

The variants of Table 2, Figure 4 and the supplement's Table 1, as arguments:
  baseline                             two more 3x3 convolutions above the ResNet
  average,tied=True                    "tied, avg."
  gt_depth,tied=True                   "gt-depth, tied, gating"
  gt_depth                             "gt-depth, untied, gating", "w/ gt-depth"
  attention                            "attention, untied, gating"
  pred_depth                           "pred-depth, untied, gating", "w/ pred-depth"
  average,pooling=multiscale[,tied=True], pred_depth,pooling=multiscale    MultiScale
  baseline,loops=1                     "loop1 w/o depth"
  gt_depth,loops=1 | pred_depth,loops=1 | pred_depth,loops=2 (,test_aug=True)
  pred_depth,regression=True (,blur=4) the depth of Table 1, "Ours" and "+blur"
All of them with configs and scores: ``dynpix tables perspective``.

Arguments of all configs (an argument that the variant does not read is refused):

  variant        baseline | average | gt_depth | attention | pred_depth
  loops          of the refinement module
  loop_loss      weights of the losses of the feed-forward pass, loop 1, ... (lambda_s of eq. 1): equal, the
                 paper's; nyuv2 (1, then 5 a loop) | cityscapes (0, .1, .5, 1), those of the released scripts
  tied           one kernel for all pooling sizes
  pooling        multipool | multiscale
  gate           softmax | argmax: how evaluation applies the weights
  regression     trains the log depth beside the bins, without the last stage, which is for the classes alone
  blur           pixels by which evaluation smooths that depth
  test_aug       evaluates at three sizes, mirrored too
  steps          of all stages together; 0: those of the config
  budget         cpu | gpu
  recipe         ours | paper
  weights        ImageNet weights imported by ``dynpix import-weights``, by default those of the backbone
  continue_from  workdir of the variant one stage earlier, so that only the last stages are trained, or
                 DIR@STAGE, what a stage of that run ended with
  root, split    folder of the data set, images that are evaluated
  packed         root holds what ``dynpix prepare`` wrote

Evaluation of a gated variant has two rows from one checkpoint: the soft mixture that was trained, and the
arg-max, in which each pixel runs its likeliest pooling size alone. With loops, the predictions before each
loop are scored, too, with the MACs up to there. To time fewer loops: ``python eval.py --config=...
--workdir=... --set "evaluation.also=('argmax', 'loop_0', 'loop_1')"``.

The last stage leaves the depth out and keeps the segmentation loss of every loop (section 4).

Rows of Cityscapes follow the supplement's order, each from the one before: baseline, tied average, gt_depth
tied, gt_depth, pred_depth (attention from the baseline); those of the other data sets start from their
baseline, as section 5 says. ``dynpix reproduce`` keeps that order; a run by itself starts from its own
baseline, or from what continue_from names.

Where this departs from the paper (recipe=paper, ../published.py, undoes the first two, with as many images):
AdamW instead of SGD at 2.5e-4, because its steps do not depend on the scale of the loss. Depth losses weigh
0.1 and 0.05, not as at the end of the NYU script (0.01 and 0.001), because training is shorter. The scales of
MultiScale and of test_aug are our choice, the paper does not give them. Losses are taken at the pixels; the
code released for NYU takes them at the cells of the network's map. budget=cpu freezes stem and Res2, and has
256 instead of 512 channels above the backbone.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_collections

from dynpix_jax.configs import published, training
from dynpix_jax.core.configs import check_least, check_read_by_variant, given_args, one_of, parse_arg
from dynpix_jax.core.errors import UserError

VARIANTS = ("baseline", "average", "gt_depth", "attention", "pred_depth")
LOOP_LOSS = {"equal": (1.0,), "nyuv2": (1.0, 5.0), "cityscapes": (0.0, 0.1, 0.5, 1.0)}
"""Lambda_s of the feed-forward pass, loop 1, ...: the paper's, and those of the released scripts."""
SCALES = (1.0, 0.84, 0.71, 0.59, 0.5)
"""Of MultiScale: an octave in four steps, small images for what is near."""

WIDTHS = {
    "cpu": dict(features=256, depth_features=(64, 32)),
    "gpu": dict(features=512, depth_features=(128, 32)),
}
"""Budget -> widths above the backbone."""

NYU_BINS = dict(edges=(0.001, 1.5, 2.1, 3.0, 4.7, 100.0), of="depth")
"""Metres, of the released code: bins of about equal population."""

READ_BY = {
    "tied": ("average", "gt_depth", "attention", "pred_depth"),
    "pooling": ("average", "gt_depth", "attention", "pred_depth"),
    "gate": ("gt_depth", "attention", "pred_depth"),
    "regression": ("pred_depth",),
    "blur": ("pred_depth",),
}
"""Variants that read an argument; the others refuse it rather than train something else than asked for."""


@dataclasses.dataclass(frozen=True)
class Steps:
    """Batch size and steps of the stages; ``loop`` is for each loop, ``finetune`` for the last stage."""

    batch_size: int
    base: int
    gating: int
    loop: int
    finetune: int


def log_edges(near: float, far: float) -> tuple[float, ...]:
    """Five bins of equal width in log depth, those at the ends open: from 1 mm, to 1 km.

    Args:
        near: Where equal bins would begin, metres.
        far: Where they would end, metres.
    """
    return (0.001, *(near * (far / near) ** (k / 5) for k in range(1, 5)), 1000.0)


def read_args(
    arg: str | None, *, root: str, split: str, variants: tuple[str, ...] = VARIANTS, **more: Any
) -> ml_collections.ConfigDict:
    """The string argument of a config; ``more`` are names and defaults of its own.

    Raises:
        UserError: An unknown name or value, or one that the variant does not read.
    """
    args = parse_arg(
        arg,
        variant=one_of(*variants),
        loops=0,
        loop_loss=one_of(*LOOP_LOSS),
        tied=False,
        pooling=one_of("multipool", "multiscale"),
        gate=one_of("softmax", "argmax"),
        regression=False,
        test_aug=False,
        blur=0.0,
        steps=0,
        budget=training.BUDGET,
        recipe=published.RECIPE,
        root=root,
        packed=False,
        weights="weights/resnet50.safetensors",
        continue_from="",
        split=split,
        **more,
    )
    if "backbone" in args and "weights" not in given_args(arg):
        args.weights = f"weights/resnet{args.backbone}.safetensors"
    check_read_by_variant(arg, args, READ_BY)
    check_least(args, {"blur": 0, "steps": 0, "loops": 0})
    if not args.loops and args.loop_loss != "equal":
        raise UserError(
            f"config argument loop_loss={args.loop_loss}: there is no loop without loops=1 or more"
        )
    if args.pooling == "multiscale" and (args.loops or args.gate == "argmax"):
        raise UserError("config argument pooling=multiscale: has no loops, and gate=softmax only")
    return args


def reads_depth(args: ml_collections.ConfigDict) -> bool:
    """Whether training needs a depth."""
    return args.variant in ("gt_depth", "pred_depth")


def filled(args: ml_collections.ConfigDict) -> dict[str, str]:
    """Options of a source that has two depths: the improved one, which has no holes (footnote 3)."""
    return dict(depth="filled") if reads_depth(args) else {}


def labels(args: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Fields that a segmentation reads."""
    return ("segmentation", "depth") if reads_depth(args) else ("segmentation",)


def perspective_config(
    args: ml_collections.ConfigDict,
    dataset: str,
    *,
    segmentation: dict[str, Any] | None,
    steps: Steps,
    bins: dict[str, Any],
    depth: int = 50,
    depth_kernel: int = 1,
    scale: float = 1.0,
) -> ml_collections.ConfigDict:
    """All sections but ``data``.

    Args:
        dataset: For the config's name.
        segmentation: Options of the task; None for depth alone (variant pred_depth).
        bins: Section ``model.bins``.
        depth: Depth of the ResNet.
        depth_kernel: Kernel size of the depth branch.
        scale: Size at which the network sees an image in evaluation, relative to the image's own.
    """
    config = ml_collections.ConfigDict()
    config.name = f"perspective_{dataset}_{args.variant}_loops{args.loops}"
    # L2 alone (section 3); None leaves the regression out.
    regression = dict(gamma=0.0) if args.regression or segmentation is None else None
    if args.blur and regression is None:
        raise UserError(
            f"config argument blur={args.blur:g}: there is no depth to smooth without regression=True"
        )
    widths = WIDTHS[args.budget]
    config.model = dict(
        system="perspective",
        compute_dtype=training.COMPUTE_DTYPE[args.budget],
        segmentation=segmentation,
        depth=regression,
        backbone=dict(depth=depth),
        pooling=_pooling(args),
        loss=_loop_loss(args, args.loops),
        loops=args.loops,
        features=widths["features"],
    )
    if reads_depth(args):
        config.model.bins = bins
    if args.variant == "pred_depth":
        config.model.update(depth_features=widths["depth_features"], depth_kernel=depth_kernel)
        config.model.loss.depth_class = 0.1
        if regression is not None:
            config.model.loss.depth = 0.05
    stages = share_out(_stages(args, steps, trained=segmentation is not None), args.steps)
    warmup = min(50, steps.loop)
    config.training = training.section(args, steps.batch_size, stages, warmup_steps=warmup)
    config.evaluation = dict(inference=_views(args, scale), also=_also(args))
    if args.recipe == "paper":
        published.perspective(config)
    return config


def _pooling(args: ml_collections.ConfigDict) -> dict[str, Any]:
    if args.variant == "baseline":
        return dict(signal="none")
    scales = dict(scales=SCALES) if args.pooling == "multiscale" else {}
    return dict(signal=args.variant, kind=args.pooling, tied=args.tied, gate=args.gate, **scales)


def share_out(stages: tuple[dict[str, Any], ...], total: int) -> tuple[dict[str, Any], ...]:
    """The stages with ``total`` steps together: 4 parts for the first, 1 for finetune, 2 for each other one.

    So variants with other stages train equally long. 0 leaves their steps as they are.

    Raises:
        UserError: Fewer steps than parts.
    """
    if not total:
        return stages
    parts = [1 if stage["name"] == "finetune" else 2 for stage in stages]
    parts[0] = 4
    if total < sum(parts):
        raise UserError(f"config argument steps={total}: expected at least {sum(parts)} for these stages")
    steps = [total * part // sum(parts) for part in parts]
    steps[0] += total - sum(steps)
    return tuple(dict(stage, steps=count) for stage, count in zip(stages, steps, strict=True))


def _views(args: ml_collections.ConfigDict, scale: float) -> dict[str, Any]:
    """The image alone, or (``test_aug``) at three sizes and mirrored; a depth smoothed by ``blur`` pixels."""
    blur = dict(blur=args.blur) if args.blur else {}
    if not args.test_aug:
        return dict(scales=(scale,), flip=False, **blur)
    return dict(scales=(0.75 * scale, scale, 1.25 * scale), flip=True, multiple=8, **blur)


def _also(args: ml_collections.ConfigDict) -> tuple[str, ...]:
    """The other way to apply the gates: what it costs and reaches is a row of its own."""
    if args.variant not in READ_BY["gate"] or args.pooling == "multiscale":
        return ()
    return ("argmax",) if args.gate == "softmax" else ("softmax",)


def _loop_loss(args: ml_collections.ConfigDict, loops: int) -> dict[str, Any]:
    """Lambda_s of a network with so many loops, of which the last has the last weight; {} for the default."""
    if args.loop_loss == "equal":
        return {}
    return dict(segmentation=LOOP_LOSS[args.loop_loss][-1 - loops :] if loops else (1.0,))


def _stages(args: ml_collections.ConfigDict, steps: Steps, *, trained: bool) -> tuple[dict, ...]:
    """Stages (section 5): baseline, gating instead of its second layer, each loop, the classes of all loops.

    With ``continue_from`` only what comes after the variant one stage earlier. Not ``trained``: without
    classes there is no baseline and no last stage. With ``regression`` there is no last stage either, because
    it would not train the depth.
    """
    # The backbone's norms keep their ImageNet moments and scales.
    norms = (r"backbone(_\d)?/stem_bn/.*", r"backbone(_\d)?/res\d_\d+/(bn\d|projection_bn)/.*")
    cpu = args.budget == "cpu"
    early = (r"backbone(_\d)?/stem_conv/.*", r"backbone(_\d)?/res2_\d+/(conv\d|projection)/.*") if cpu else ()
    # Layers that no ImageNet network has.
    new = ((r"(res6(_\d)?|feedforward|loop)/.*", 10.0), (r".*", 1.0))
    plain = dict(signal="none", kind="multipool", tied=False, scales=(), gate="softmax")
    common = dict(learning_rate=5e-5, frozen=(*norms, *early), multipliers=new)
    # The model's own number of loops is the last.
    looped = [dict(loops=n, loss=_loop_loss(args, n)) for n in range(args.loops)] + [{}]
    first = {} if args.variant == "baseline" else dict(pooling=plain, depth=None)
    base = dict(common, name="base", steps=steps.base, model=dict(looped[0], **first))
    gating = dict(common, name="gating", steps=steps.gating, learning_rate=3e-5, model=looped[0])
    loops = [
        dict(common, name=f"loop_{n}", steps=steps.loop, learning_rate=3e-5, model=looped[n])
        for n in range(1, args.loops + 1)
    ]
    if not trained:
        gating = dict(gating, steps=steps.base, learning_rate=5e-5)
        stages = [gating, *loops]
        return tuple(loops[-1:] if args.continue_from and loops else stages)
    if args.variant == "baseline":
        stages = [base, *loops]
    else:
        stages = [base, gating, *loops]
    if args.continue_from and len(stages) > 1:
        stages = stages[-1:]
    if (args.loops or args.variant == "pred_depth") and not args.regression:
        # Section 4: the losses of all loops, without those of the depth. Norms stay as they are, too.
        loss = dict(depth_class=0.0) if args.variant == "pred_depth" else {}
        finetune = dict(
            common,
            name="finetune",
            steps=steps.finetune,
            learning_rate=1e-5,
            model=dict(loss=loss, frozen_norm=True),
        )
        stages.append(finetune)
    return tuple(stages)
