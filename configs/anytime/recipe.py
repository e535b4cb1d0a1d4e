"""Shared by the segmentation configs of this folder: the network, the paper's variants, training.

variant=hrnet   HRNet with one exit at its end (table 1, "HRNet-W48")
variant=ee      exits after every stage, all with the plain head ("EE")
variant=rh      early exits with redesigned heads ("EE + RH")
variant=ca      the same, and nothing computed where an exit is confident ("EE + RH + CA")

Further arguments of all of them:
  arch           w48 | w32 | w18 | w18s2 | w18s1; the paper's W18 is HRNet-W18-Small-v2, w18s2
  heads          plain | redesigned, of variant=ca (plain: "CA only")
  downsampling   D of the exits after stages 1, 2, 3, joined by "+" (figure 6: 3+2+1, 1+1+1, 3+3+3)
  criterion      max_probability | entropy | top_k | random (figure 7), threshold with it (0: the recipe's)
  masked         training | inference: from when on positions are skipped; figure 7 skips in inference alone
  normalize      full | present: by what interpolation divides (reference code | the paper's text)
  steps          in place of the recipe's; 0 keeps them
  weights        ImageNet weights imported by ``dynpix import-weights``; "" begins from nothing

On a CPU (budget=cpu) AdamW takes the place of SGD, and variant=ca first trains with nothing skipped, then a
third of the steps with skipping: interpolation makes a training step slower. continue_from = workdir of
variant=rh trains that second part alone.
"""

from __future__ import annotations

from typing import Any

import ml_collections

from dynpix_jax.configs import training
from dynpix_jax.core.configs import check_least, check_read_by_variant, given_args, one_of, parse_arg
from dynpix_jax.core.errors import UserError

VARIANTS = ("hrnet", "ee", "rh", "ca")
ARCHITECTURES = ("w48", "w32", "w18", "w18s2", "w18s1")
THRESHOLDS = {"max_probability": 0.998, "entropy": 0.02, "top_k": 0.5, "random": 0.5}
"""The first is the paper's (section 4.1); the others skip about as much as it does."""

READ_BY = {
    "heads": ("ca",),
    "downsampling": ("rh", "ca"),
    "criterion": ("ca",),
    "threshold": ("ca",),
    "masked": ("ca",),
    "normalize": ("ca",),
    "continue_from": ("ca",),
}
"""Variants that read an argument; the others refuse it rather than train something else than asked for."""


def read_args(arg: str | None, *, arch: str, **more: Any) -> ml_collections.ConfigDict:
    """The string argument of a config; ``more`` are names and defaults of its own.

    Raises:
        UserError: An unknown name or value, or one that the variant does not read.
    """
    args = parse_arg(
        arg,
        variant=one_of(*VARIANTS, default="ca"),
        arch=one_of(*ARCHITECTURES, default=arch),
        heads=one_of("redesigned", "plain"),
        downsampling=(3, 2, 1),
        criterion=one_of(*THRESHOLDS),
        threshold=0.0,
        masked=one_of("training", "inference"),
        normalize=one_of("full", "present"),
        steps=0,
        continue_from="",
        **more,
    )
    check_read_by_variant(arg, args, READ_BY)
    if len(args.downsampling) != 3:
        raise UserError("config argument downsampling: expected three numbers joined by '+', as 3+2+1")
    if args.heads == "plain" and "downsampling" in given_args(arg):
        raise UserError("config argument downsampling: plain heads do not read it")
    if args.continue_from and "weights" in given_args(arg):
        raise UserError("config argument weights: continue_from gives the weights that training begins with")
    check_least(args, {"steps": 0})
    return args


def anytime_config(
    args: ml_collections.ConfigDict,
    dataset: str,
    *,
    task_options: dict[str, Any],
    batch_size: int,
    steps: int,
    cpu: bool,
    threshold: float,
    scale: float = 1.0,
) -> ml_collections.ConfigDict:
    """All sections but ``data``.

    Args:
        dataset: For the config's name.
        task_options: Options of segmentation.
        steps: Training steps, on a CPU without those of the second part.
        threshold: Threshold of the largest probability, unless args have one or another criterion.
        scale: Size at which the network sees an image in evaluation, relative to the image's own.
    """
    exits = (4,) if args.variant == "hrnet" else (1, 2, 3, 4)
    config = ml_collections.ConfigDict()
    config.name = f"anytime_{dataset}_{args.arch}_{args.variant}"
    config.model = dict(
        system="anytime",
        compute_dtype=training.COMPUTE_DTYPE["cpu" if cpu else "gpu"],
        task="segmentation",
        task_options=task_options,
        backbone=dict(arch=args.arch),
        exits=exits,
        weights=(1.0,) * len(exits),
        heads=_heads(args),
        adaptivity=_adaptivity(args, threshold) if args.variant == "ca" else None,
    )
    # As released, weight decay covers everything, the widths of interpolation too.
    optimizer = dict(warmup_steps=20) if cpu else dict(training.SGD, weight_decay_on=(r".*",))
    stages = _stages(args, args.steps or steps, cpu=cpu)
    config.training = training.section(args, batch_size, stages, keep=1, **optimizer)
    config.evaluation = dict(pictures=6, inference=dict(scales=(scale,)))
    return config


def _adaptivity(args: ml_collections.ConfigDict, threshold: float) -> dict[str, Any]:
    own = args.threshold or (threshold if args.criterion == "max_probability" else THRESHOLDS[args.criterion])
    by_share = args.criterion in ("top_k", "random")
    return dict(
        kind=args.criterion if by_share else "confidence",
        # Of the positions, "threshold" is the share that is skipped.
        options=dict(density=1.0 - own) if by_share else dict(measure=args.criterion, threshold=own),
        # Of each stage's steps, the share in which nothing is skipped.
        start=0.0 if args.masked == "training" else 1.0,
        radius=3,
        normalize=args.normalize,
    )


def _heads(args: ml_collections.ConfigDict) -> dict[str, Any]:
    if args.variant == "hrnet":
        return {}
    if args.variant == "ee" or args.heads == "plain":
        return dict(kind="plain")
    features = 128 if args.arch in ("w48", "w32") else 64
    return dict(kind="redesigned", features=features, downsampling=tuple(args.downsampling))


def _stages(args: ml_collections.ConfigDict, steps: int, *, cpu: bool) -> tuple[dict[str, Any], ...]:
    base = dict(name="base", steps=steps, learning_rate=2e-3 if cpu else 1e-2, model={})
    if args.variant != "ca":
        return (base,)
    adaptive = dict(base, name="adaptive")
    if cpu:
        adaptive.update(steps=max(steps // 3, 1), learning_rate=5e-4)
        # Without skipping there is no interpolation: its widths stay fresh.
        base.update(model=dict(adaptivity=None))
    return (base, adaptive) if cpu and not args.continue_from else (adaptive,)
