"""A small gated network on synthetic scenes: what `make quickstart` trains and evaluates, in a few minutes.

    python train.py --config=configs/quickstart.py --workdir=runs/quickstart
    python eval.py --config=configs/quickstart.py --workdir=runs/quickstart

A ResNet-26 of half the usual width learns boundaries from nothing on rendered rooms (no download); then its
bottlenecks get gates, and the target density is lowered stage by stage: a row of the report for rho 1.0, 0.7
and 0.5. Within a stage its samples become the masks of evaluation (gate.noise). Two CPU cores do. Measured
here: docs/results.md.
"""

from __future__ import annotations

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The quickstart's config."""
    config = ml_collections.ConfigDict()
    config.name = "quickstart"
    config.model = dict(
        system="pag",
        task="boundaries",
        backbone=dict(depth=26, width=32, frozen_norm=False, preprocessing="torch"),
        head_features=8,
    )
    scenes = dict(name="scenes", size=(128, 160), fields=("boundaries",))
    config.data = dict(
        train=dict(source=dict(scenes, split="train", length=1000), augment=dict(flip=True)),
        eval=dict(source=dict(scenes, split="val", length=24)),
    )

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
    learn_gates = ((r".*/gate/.*", 20.0), (r".*", 1.0))
    config.training = dict(
        batch_size=4,
        stages=(
            dict(name="base", steps=600, learning_rate=1e-3),
            dict(
                name="rho0.7",
                steps=250,
                learning_rate=1e-3,
                model=dict(gate=dict(gate, rho=0.7, rho_start=0.9, insert=True, ramp=0.4)),
                multipliers=learn_gates,
            ),
            dict(
                name="rho0.5",
                steps=250,
                learning_rate=1e-3,
                model=dict(gate=dict(gate, rho=0.5, rho_start=0.7)),
                multipliers=learn_gates,
            ),
        ),
        warmup_steps=20,
        grad_clip=1.0,
        log_every=25,
    )
    config.evaluation = dict(every_stage=True, thresholds=25, pictures=4, chance=1)
    return config
