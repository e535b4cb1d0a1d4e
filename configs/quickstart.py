"""A small gated network on synthetic scenes: what `make quickstart` trains and evaluates, in a few minutes.

    python train.py --config=configs/quickstart.py --workdir=runs/quickstart
    python eval.py --config=configs/quickstart.py --workdir=runs/quickstart

A ResNet-26 of half the usual width and without Res5 learns boundaries from nothing on rendered rooms (no
download); then its bottlenecks get gates, and the target density is lowered stage by stage: a row of the
report for rho 1.0, 0.7 and 0.5. Within a stage, sampled masks gradually become the masks of evaluation
(gate.noise). Two CPU cores are enough. Measured here: docs/results.md.

Argument: variant = gated | base, the same network without gates, trained as long.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs import training
from dynpix_jax.core.configs import one_of, parse_arg


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The quickstart's config."""
    args = parse_arg(arg, variant=one_of("gated", "base"))
    config = ml_collections.ConfigDict()
    config.name = "quickstart"
    config.model = dict(
        system="pag",
        task="boundaries",
        backbone=dict(depth=26, width=32, frozen_norm=False, preprocessing="torch"),
        head_features=8,
        # Boundaries do not need Res5, which has three quarters of the parameters.
        drop_blocks=2,
    )
    scenes = dict(name="scenes", size=(128, 160), fields=("boundaries",))
    config.data = dict(
        train=dict(source=dict(scenes, split="train", length=1000), augment=dict(flip=True)),
        eval=dict(source=dict(scenes, split="val", length=24)),
    )
    stages = _stages(gated=args.variant == "gated")
    config.training = training.section(args, 4, stages, warmup_steps=20, grad_clip=1.0, log_every=25)
    config.evaluation = dict(every_stage=True, thresholds=25, pictures=4)
    if args.variant == "gated":
        config.evaluation.chance = 1
    return config


def _stages(*, gated: bool) -> tuple[dict, ...]:
    """First without gates, then at two densities; or as many steps without gates."""
    base = dict(name="base", steps=600, learning_rate=1e-3)
    later = dict(base, steps=250)
    if not gated:
        return (base, dict(later, name="longer"), dict(later, name="longest"))
    gate = dict(
        kind="pixel",
        scope="residual",
        weight=0.02,
        # Nearly the same at all positions at first: what gates choose by is learned. With larger ones it
        # stays the random projection of the features that it begins as.
        options=dict(init_std=0.02, open_bias=2.0),
        ramp=0.5,
        noise=(1.0, 0.0),
        temperature=(1.0, 0.5),
        calibrate="each",
    )
    multipliers = ((r".*/gate/.*", 20.0), (r".*", 1.0))  # gates learn faster
    inserted = dict(gate, rho=0.7, rho_start=0.9, insert=True, ramp=0.4)
    lowered = dict(gate, rho=0.5, rho_start=0.7)
    return (
        base,
        dict(later, name="rho0.7", model=dict(gate=inserted), multipliers=multipliers),
        dict(later, name="rho0.5", model=dict(gate=lowered), multipliers=multipliers),
    )
