"""A small gated network on synthetic scenes: what `make quickstart` trains and evaluates, in a few minutes.

    python train.py --config=configs/quickstart.py --workdir=runs/quickstart
    python eval.py --config=configs/quickstart.py --workdir=runs/quickstart

A ResNet-26 of half the usual width learns boundaries from nothing on rendered rooms (no download); then its
bottlenecks get gates, and the target density is lowered stage by stage: a row of the report for rho 1.0, 0.7
and 0.5. Two CPU cores do. Measured here: docs/results.md.
"""

from __future__ import annotations

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The quickstart's config."""
    config = ml_collections.ConfigDict()
    config.name = "quickstart"
    config.seed = 0
    config.model = dict(
        system="pag",
        task="boundaries",
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
            ramp=0.5,
            insert=False,
            sparsity="per_layer",
            weight=0.1,
            temperature=(1.0, 0.1),
            soft=False,
            options=dict(),
        ),
        multipool=dict(blocks=(), selection="pag", dilations=(0, 1, 2, 4, 6, 8, 10), original_bias=0.0),
        head_features=8,
        drop_blocks=0,
    )
    scenes = dict(name="scenes", size=(128, 160), fields=("boundaries",), seed=0)
    config.data = dict(
        train=dict(source=dict(scenes, split="train", length=1000), augment=dict(flip=True)),
        eval=dict(source=dict(scenes, split="val", length=24)),
    )

    rest = (r".*", 1.0)
    learn_gates = (r".*/gate/.*", 5.0)
    gate = dict(kind="pixel", options=dict(blur=False, init_std=0.2, open_bias=2.0))
    config.training = dict(
        batch_size=4,
        stages=(
            dict(name="base", steps=600, learning_rate=1e-3, model=dict(), frozen=(), multipliers=(rest,)),
            dict(
                name="rho0.7",
                steps=250,
                learning_rate=3e-4,
                model=dict(gate=dict(gate, rho=0.7, rho_start=0.9, insert=True, ramp=0.4)),
                frozen=(),
                multipliers=(learn_gates, rest),
            ),
            dict(
                name="rho0.5",
                steps=250,
                learning_rate=3e-4,
                model=dict(gate=dict(gate, rho=0.5, rho_start=0.7, temperature=(0.5, 0.1))),
                frozen=(),
                multipliers=(learn_gates, rest),
            ),
        ),
        optimizer="adamw",
        weight_decay=1e-4,
        weight_decay_on=(r".*/kernel",),
        poly_power=0.9,
        warmup_steps=20,
        grad_clip=1.0,
        log_every=25,
        checkpoint_every=250,
        eval_every=0,
        keep=2,
        init_from="",
        mesh=dict(data=-1, model=1),
        workers=0,
    )
    config.evaluation = dict(
        mode="both",
        every_stage=True,
        thresholds=25,
        max_dist=0.0075,
        nms=True,
        smooth=True,
        workers=2,
        pictures=4,
        limit=0,
    )
    return config
