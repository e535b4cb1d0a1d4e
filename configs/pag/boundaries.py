"""PAG on BSDS500 made small: the network ``boundaries`` of ``dynpix predict``.

    dynpix train --config=configs/pag/boundaries.py:variant=base --workdir=runs/base
    dynpix train --config=configs/pag/boundaries.py:continue_from=runs/base --workdir=runs/gated
    dynpix eval --workdir=runs/gated

Needs the data set (root=DIR) and ImageNet weights imported by ``dynpix import-weights`` (weights=FILE). The
ResNet-50 ends with the fourth block of Res4, the decoder is half as wide as that of bsds500.py, and there is
no MultiPool. Res2 has no gates: skipping saves little time in its narrow blocks. The stages with gates are
longer than those of bsds500.py. Arguments are those of recipe.py, with variant = gated | base, budget = cpu
and recipe = ours, and train_split = train | trainval as in bsds500.py.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs import published
from dynpix_jax.configs.datasets import BSDS500
from dynpix_jax.configs.pag import recipe
from dynpix_jax.core.configs import one_of, refuse_args

LAST = "res4_4"
"""The last block of the network. Its weights, in 8 bits, are small enough for a package."""


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of the network, or of its base without gates."""
    args = recipe.read_args(
        arg,
        tasks=("boundaries",),
        root=BSDS500.root,
        split="val",
        train_split=published.TRAIN_SPLIT,
        variant=one_of("gated", "base"),
        rho=0.3,
        gate_scope=one_of("residual"),
        calibrate=one_of("each"),
        multipool=(),
        budget=one_of("cpu"),
        recipe=one_of("ours"),
    )
    refuse_args(arg, ("drop_blocks", "drop_layers", "multipool"), "the network boundaries does")
    published.choose_bsds_split(arg, args)
    args.drop_blocks = len(recipe.BLOCKS) - recipe.BLOCKS.index(LAST) - 1
    config = recipe.pag_config(
        args,
        "boundaries",
        task_options={},
        schedule=recipe.Schedule(1, 2400, 0, 500, 600, head_rate=10.0, learning_rates=(1e-4, 1e-4)),
        head_features=8,
    )
    config.data = BSDS500.data(args, (), augment=dict(flip=True, crop=(320, 320)))
    if args.variant == "gated":
        recipe.choosing_gates(config, args, stages=("res3", "res4"), calibrate="each")
    return config
